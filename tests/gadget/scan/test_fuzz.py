"""Damaged input gives coded errors only; `benchmarks/fuzz.py` does the same in great numbers."""

import random
import struct

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks.fuzz import good_messages, kinds, mutate, read_stream, run_case
from gadget.errors import DataError

KINDS = {name: (read, inputs) for name, _, read, inputs in kinds()}
quick = hypothesis_settings(deadline=5000, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", KINDS)
def test_undamaged_input_is_read(name):
    read, inputs = KINDS[name]
    if name == "message":
        # a stream ends with CLOSE, and an error message in it is an error; all others are fine
        *fine, error, close = good_messages()
        assert run_case(read, b"".join(fine) + close) == "ok"
        assert run_case(read, error + close) == "E405"
    else:
        assert [run_case(read, data) for data in inputs] == ["ok"] * len(inputs)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_gives_coded_errors(name):
    read, inputs = KINDS[name]
    rng = random.Random(7)
    for _ in range(20 if name == "weights" else 300):
        data = mutate(rng.choice(inputs), rng)
        assert not (outcome := run_case(read, data)).startswith("!"), (outcome, data[:400])


@quick
@given(st.lists(st.sampled_from(good_messages()[:-1]) | st.binary(max_size=600), max_size=5).map(b"".join))
def test_any_bytes_in_the_stream(data):
    assert not run_case(read_stream, data).startswith("!")


@quick
@given(name=st.sampled_from(["introduction", "header", "settings", "parameters"]), data=st.binary(max_size=300))
def test_any_bytes_elsewhere(name, data):
    assert not run_case(KINDS[name][0], data).startswith("!")


@quick
@given(data=st.data())
def test_any_change_of_a_weights_file(data):
    """Cut off, lengthened, or with bytes of its header or its numbers replaced."""
    read, (good, *_) = KINDS["weights"]
    header = 8 + int.from_bytes(good[:8], "little")
    at = data.draw(st.integers(0, header + 64) | st.integers(0, len(good)))
    put = data.draw(st.binary(max_size=16) | st.sampled_from([b"\xff" * 8, b"nan", b"-1", b"1e999", b"{}", b"[]"]))
    end = data.draw(st.sampled_from([len(good), at + len(put), header, len(good) + 3]))
    assert not run_case(read, (good[:at] + put + good[at + len(put) :] + bytes(3))[:end]).startswith("!")


@quick
@given(st.sampled_from([1008, 1022, 1023, 1026]), st.binary(min_size=340, max_size=700), st.integers(0, 2**64 - 1))
def test_any_header_of_a_message(mid, head, number):
    for at in (0, 8, 24, 26):
        data = struct.pack("<H", mid) + head[:at] + struct.pack("<Q", number) + head[at:]
        assert not run_case(read_stream, data).startswith("!")


def test_an_empty_axis_does_not_excuse_a_huge_one():
    array = struct.pack("<8Q", 7, 2**62, 2**40, 0, 1, 1, 1, 1)
    assert run_case(read_stream, struct.pack("<HQ", 1023, 1) + array + bytes(100)) == "E302"


def test_the_fuzzer_tells_a_failure():
    def read(_data):
        raise KeyError

    def refuse(_data):
        raise DataError(302, "too big")

    assert run_case(read, b"") == "!KeyError"
    assert run_case(refuse, b"") == "E302"
