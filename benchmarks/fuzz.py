"""Damaged messages, introductions, headers, settings and weights in great numbers: only coded errors may come of them.

    python benchmarks/fuzz.py 1000000 --seed 1

prints the outcomes by kind and code, the slowest case and the growth of memory, and ends with status 1 after any
exception that is no PogmdmError, or any case above `SLOW_S`. Everything runs in this process; a crash ends it.
"""

from __future__ import annotations

import argparse
import collections
import io
import logging
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ismrmrd
import numpy as np
from gadgetron.types import recon_data

from gadget.scan.header import read_geometry
from gadget.service.handshake import ServedConnection, read_parameters, written_configuration
from gadget.settings import load as settings
from gadget.stream.link import Link
from gadget.stream.wire import ExactSocket
from pogmdm_core.errors import PogmdmError
from pogmdm_core.prior.weights import load_prior, shipped_weights

SLOW_S = 2.0
HEADER = b"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>32</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>64</x><y>32</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>16</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>32</x><y>32</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>15</maximum><center>8</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""
CONFIG = (
    b'<configuration><property name="preset" value="fast"/><property name="sampler.n_samples" value="4"/>'
    b"<property><name>output.maps</name><value>image,std</value></property></configuration>"
)
PARAMETERS = b'{"version": "1", "parameters": {"preset": "fast", "sampler.n_samples": 4, "coils.n_virtual": "8"}}\0'
# Where a length or a count goes wrong.
_NUMBERS = [struct.pack(f, n) for f, n in (("<H", 0), ("<H", 65535), ("<I", 2**31), ("<I", 2**32 - 1), ("<Q", 2**60))]
_IDS = [struct.pack("<H", n) for n in (0, 1, 2, 3, 4, 5, 8, 1008, 1022, 1023, 1024, 1026, 1050)]


class BytesSocket(ExactSocket):
    """Reads from memory instead of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        super().__init__(self, 1.0)  # type: ignore[arg-type]

    def settimeout(self, _seconds: float) -> None:
        """Nothing to wait for."""

    def recv(self, n_bytes: int) -> bytes:
        return self._data.read(n_bytes)

    def getpeername(self) -> str:
        return ""

    def _wait(self) -> None:
        pass


def connection(data: bytes) -> ServedConnection:
    made = object.__new__(ServedConnection)
    made.socket, made.readers, made.fire, made._timeout_s, made._defaults = BytesSocket(data), {}, False, 1.0, {}
    return made


def good_messages() -> list[bytes]:
    """One of each kind that the stream may hold."""
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((2, 16)) + 1j).astype(np.complex64)
    acquisition = ismrmrd.Acquisition.from_array(data, trajectory=np.zeros((16, 2), np.float32))
    image = ismrmrd.Image.from_array(np.ones((4, 5), np.float32), transpose=False)
    image.meta = {"name": "value"}
    waveform = ismrmrd.Waveform.from_array(np.zeros((2, 20), np.uint32))
    made = []
    for mid, item in ((1008, acquisition), (1022, image), (1026, waveform)):
        buffer = io.BytesIO()
        item.serialize_into(buffer.write)
        made.append(struct.pack("<H", mid) + buffer.getvalue())
    heads = np.empty((2, 1, 1, 1, 1), dtype=object)
    heads[0, 0, 0, 0, 0], heads[1, 0, 0, 0, 0] = ismrmrd.AcquisitionHeader(), ismrmrd.AcquisitionHeader()
    empty = np.zeros((4, 2, 1, 1, 1, 1, 1), np.complex64)
    bit = recon_data.ReconBit(recon_data.ReconBuffer(empty, None, None, heads, recon_data.SamplingDescription()))
    buffer = io.BytesIO()
    recon_data.write_recon_data(buffer, recon_data.ReconData([bit]))
    recon = buffer.getvalue()
    return [*made, recon, struct.pack("<HI", 5, 3) + b"abc", struct.pack("<HQ", 8, 3) + b"abc", struct.pack("<H", 4)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random damages."""
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randint(0, len(data)), rng.randrange(6)
        if kind == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            number = rng.choice(_NUMBERS)
            data = data[:at] + number + data[at + len(number) :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]
        elif kind == 4:
            end = rng.randint(at, len(data))
            data = data[:end] + data[at:end] + data[end:]
        else:
            data = rng.choice(_IDS) + data[2:]
    return data[:100_000]


def read_stream(data: bytes) -> None:
    link = Link(connection(data))
    link.configure(1 << 20, 1.0)
    for _ in link.messages():
        pass


def read_weights(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        load_prior(file.name)


def kinds() -> list[tuple[str, float, Callable[[bytes], object], list[bytes]]]:
    """Name, share of the cases, reader, undamaged inputs."""

    def text(mid: int, content: bytes) -> bytes:
        return struct.pack("<HI", mid, len(content)) + content

    streams = good_messages()
    introductions = [
        text(2, CONFIG) + text(3, HEADER) + struct.pack("<H", 4),
        struct.pack("<H1024s", 1, b"openrecon") + text(3, HEADER + b"\0") + text(5, PARAMETERS) + struct.pack("<H", 4),
    ]
    return [
        ("message", 0.92, read_stream, [*streams, b"".join(streams)]),
        ("introduction", 0.05, lambda data: connection(data).introduction(), introductions),
        ("header", 0.01, read_geometry, [HEADER]),
        ("settings", 0.0095, lambda data: settings.load(properties=written_configuration(data)), [CONFIG]),
        ("parameters", 0.01, lambda data: settings.load(overrides=read_parameters(data)), [PARAMETERS]),
        ("weights", 0.0005, read_weights, [shipped_weights()["default"].read_bytes()]),
    ]


def run_case(read: Callable[[bytes], object], data: bytes) -> str:
    """Outcome of one case: ``ok``, a code, or the name of an exception that must not be."""
    try:
        read(data)
    except PogmdmError as error:
        return f"E{error.code}"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"!{type(error).__name__}"
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", type=int, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the inputs of failures here")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    rng, table = random.Random(args.seed), kinds()
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest, bad, memory = ("", 0.0), 0, 0
    start = time.monotonic()
    for number in range(args.n):
        if number == min(1000, args.n // 10):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        name, _, read, inputs = rng.choices(table, [share for _, share, _, _ in table])[0]
        data = mutate(rng.choice(inputs), rng)
        begun = time.perf_counter()
        outcome = run_case(read, data)
        seconds = time.perf_counter() - begun
        outcomes[name, outcome] += 1
        if seconds > slowest[1]:
            slowest = (name, seconds)
        if outcome.startswith("!") or seconds > SLOW_S:
            bad += 1
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                (args.save / f"{name}_{number}{outcome}").write_bytes(data)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    for (name, outcome), count in sorted(outcomes.items()):
        sys.stdout.write(f"{name:14}{outcome:24}{count}\n")
    sys.stdout.write(
        f"{args.n} cases in {time.monotonic() - start:.0f} s; bad: {bad}; slowest: {slowest[1]:.3f} s ({slowest[0]}); "
        f"peak memory grew by {growth / 1024:.1f} MiB\n"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
