import contextlib
import socket
import struct
import threading
import time

import ismrmrd
import numpy as np
import pytest
from helpers import gadgetron_server as server
from helpers.gadgetron_server import Drop, GadgetronServer, Stall

from gadget.replay.gadgetron_client import address_from, one_line, query, send_scan, shown
from pogmdm_core import errors

NAME = "some.xml"
HEADER = b"<ismrmrdHeader/>"
LIMIT_S = 20.0


def readout(seed, n_channels=2, n_samples=8, n_columns=2):
    random = np.random.default_rng(seed)
    data = (random.normal(size=(n_channels, n_samples)) + 1j).astype(np.complex64)
    trajectory = random.normal(size=(n_samples, n_columns)).astype(np.float32) if n_columns else None
    item = ismrmrd.Acquisition.from_array(data, trajectory)
    item.scan_counter = seed
    return item


READOUTS = [readout(i, n_columns=i % 4, n_channels=1 + i % 3) for i in range(12)]
MESSAGES = [server.acquisition(item) for item in READOUTS]


@contextlib.contextmanager
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not [t for t in threading.enumerate() if t not in before and t.name == "gadgetron-sender"]


def send_to(behaviour, messages=MESSAGES, timeout_s=LIMIT_S, **kwargs):
    """Send the readouts to a chain that behaves so; returns the answer and what the server received."""
    with GadgetronServer({NAME: behaviour}, **kwargs) as gadgetron, no_thread_is_left():
        answer = send_scan(gadgetron.address, NAME, HEADER, messages, timeout_s)
    return answer, gadgetron.connections[0]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("here", ("here", 9002)),
        ("here.org:18", ("here.org", 18)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]", ("::1", 9002)),
        (" [fe80::1%eth0]:1 ", ("fe80::1%eth0", 1)),
    ],
)
def test_addresses(text, address):
    assert address_from(text) == address
    assert address_from(shown(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":9002", "here:", "here:0", "here:65536", "here:x", "::1", "::1:9002", "[::1", "[]:3", "a b", "h:1:2"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(errors.ConfigError, match=r"^E110 .*\[::1\]:9002"):
        address_from(text)


def test_texts_of_the_server_are_shown_as_one_short_line():
    assert one_line(" a\tb\r\n\x1b[2J\x00c\u2028d ") == "a b [2J c d"
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 197 + "..."


def test_a_query_is_answered():
    with GadgetronServer({}, version="4.7.2 \u00b5") as gadgetron:
        assert query(gadgetron.address, "gadgetron::version") == "4.7.2 \u00b5"
        with pytest.raises(errors.ComputeError, match="E500 the server reports: map::at"):
            query(gadgetron.address, "gadgetron::nonsense")
        gadgetron.correlation_offset = 1
        with pytest.raises(errors.TransportError, match="E404 .*another question"):
            query(gadgetron.address, "gadgetron::version")
    assert [each.queries for each in gadgetron.connections] == [
        ["gadgetron::version"],
        ["gadgetron::nonsense"],
        ["gadgetron::version"],
    ]
    assert gadgetron.connections[0].closed


def test_a_query_that_is_not_answered():
    with GadgetronServer({}, version=None) as gadgetron, pytest.raises(errors.TransportError, match="E401"):
        query(gadgetron.address, "gadgetron::version")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(errors.TransportError, match=r"E403 the server did not finish within 0\.3 s"):
            query(silent.getsockname(), "gadgetron::version", 0.3)
        assert 0.25 < time.monotonic() - start < 5


def test_no_server_is_a_coded_error():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    for address in (nobody, ("a..b", 9002), ("nowhere.invalid", 9002)):
        with pytest.raises(errors.TransportError, match=r"^E413 cannot connect to \S+ \(.*\)\. Is Gadgetron running"):
            query(address, "gadgetron::version")
        with pytest.raises(errors.TransportError, match="^E413"):
            send_scan(address, NAME, HEADER, MESSAGES, LIMIT_S)


def test_a_scan_arrives_as_it_is_and_everything_comes_back():
    def behaviour(received):
        yield server.text("working")
        yield server.image(1, server.ramp())
        yield server.acquisition(received.readouts[3])
        yield server.image(7, server.ramp((4, 6), np.uint16))

    answer, received = send_to(behaviour)
    assert received.configuration == NAME
    assert received.header == HEADER
    assert received.closed
    assert [server.acquisition(item) for item in received.readouts] == MESSAGES
    assert [image.image_series_index for image in answer.images] == [1, 7]
    np.testing.assert_array_equal(answer.images[1].data[0, 0], server.ramp((4, 6), np.uint16))
    assert answer.readouts == (MESSAGES[3],)
    assert (answer.texts, answer.errors, answer.closed) == (("working",), (), True)


def test_a_chain_of_ones_own_is_sent_as_xml():
    names = {"reader": "AcquisitionReader", "writer": "AcquisitionWriter"}
    inner = "".join(f"<{k}s><{k}><classname>{v}</classname></{k}></{k}s>" for k, v in names.items())
    chain = f"<configuration><version>2</version>{inner}<stream/></configuration>".encode()
    with GadgetronServer({}) as gadgetron:
        answer = send_scan(gadgetron.address, chain, HEADER, MESSAGES, LIMIT_S)
    assert answer.readouts == tuple(MESSAGES)
    assert gadgetron.connections[0].configuration.encode() == chain


@pytest.mark.parametrize("n_bytes", [1023, 1024])
def test_a_name_leaves_room_for_its_end(n_bytes):
    name = "x" * n_bytes
    with GadgetronServer({name: server.images}) as gadgetron:
        if n_bytes < 1024:
            assert len(send_scan(gadgetron.address, name, HEADER, MESSAGES, LIMIT_S).images) == 2
        else:
            with pytest.raises(errors.ConfigError, match="E108"):
                send_scan(gadgetron.address, name, HEADER, MESSAGES, LIMIT_S)


def test_sending_and_receiving_run_at_the_same_time():
    # 24 MB come before anything is read, and 24 MB are sent: neither fits in the sockets' buffers
    big = server.image(1, np.ones((1000, 1000), np.float32))
    long = [server.acquisition(readout(0, 8, 4096))] * 80
    answer, received = send_to(lambda received: [big] * 6, long, eager=[NAME])
    assert len(answer.images) == 6
    assert len(received.readouts) == 80
    assert received.closed


def test_an_error_is_part_of_the_answer_and_outlives_the_connection():
    answer, _ = send_to(lambda received: [server.error("bad\nthing"), server.image(1, server.ramp())])
    assert (answer.errors, len(answer.images), answer.closed) == (("bad\nthing",), 1, True)
    answer, _ = send_to(lambda received: [server.error("bad"), b"\x01", Drop()])
    assert (answer.errors, answer.closed) == (("bad",), False)
    answer, _ = send_to(lambda received: [server.error("bad"), Stall()], timeout_s=1)
    assert (answer.errors, answer.closed) == (("bad",), False)


def test_the_end_of_the_connection_is_not_close():
    answer, _ = send_to(lambda received: [server.image(1, server.ramp()), Drop()])
    assert (len(answer.images), answer.closed) == (1, False)


@pytest.mark.parametrize(
    ("sent", "error", "message"),
    [
        ([server.image(1, server.ramp())[:-5], Drop()], errors.TransportError, "E402"),
        ([struct.pack("<H", 1030), b"whatever"], errors.TransportError, "E404 .*unknown id 1030"),
        ([struct.pack("<HQ", 8, 1 << 40), b"x"], errors.DataError, "E302"),
        ([server.image(1, server.ramp()).replace(struct.pack("<HH", 1, 5), struct.pack("<HH", 1, 99), 1)],
         errors.DataError, "E301 .*TypeError"),
        ([server.image(1, server.ramp())[:100], Stall()], errors.TransportError, "E403"),
    ],
)  # fmt: skip
def test_a_damaged_answer_is_a_coded_error(sent, error, message):
    with pytest.raises(error, match=f"^{message}"):
        send_to(lambda received: sent, timeout_s=1 if isinstance(sent[-1], Stall) else LIMIT_S)


def test_bytes_that_trickle_in_do_not_extend_the_limit():
    def behaviour(received):
        yield server.image(1, server.ramp())[:300]
        for _ in range(100):
            time.sleep(0.05)
            yield b"\0"

    start = time.monotonic()
    with pytest.raises(errors.TransportError, match="E403"):
        send_to(behaviour, timeout_s=0.5)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("problem", [errors.DataError(301, "unreadable"), OSError("unreadable")])
def test_an_input_that_breaks_is_the_error_and_looks_like_no_whole_scan(problem):
    def broken():
        yield from MESSAGES[:3]
        raise problem

    raises = pytest.raises(type(problem), match="unreadable")
    with GadgetronServer({NAME: server.images}) as gadgetron, no_thread_is_left(), raises:
        send_scan(gadgetron.address, NAME, HEADER, broken(), LIMIT_S)
    assert not gadgetron.connections[0].closed
