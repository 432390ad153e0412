"""Scans on disk as the byte messages a Gadgetron server would send: HDF5 files and ISMRMRD streams."""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gadget.stream.wire import ACQUISITION, CLOSE, CONFIG, CONFIG_FILE, CONFIG_FILE_BYTES, HEADER, TEXT, WAVEFORM, fill
from pogmdm_core.errors import DataError, HeaderError, TransportError

if TYPE_CHECKING:
    import h5py
    import numpy as np

_BATCH = 256
_MAX_MESSAGE = 1 << 30
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Scan:
    """One scan, ready to be sent.

    Attributes
    ----------
    header
        The XML header as the server would pass it on: parsed and written again.
    messages
        Readouts and waveforms, each a complete message (id and payload), in the order of acquisition.
    """

    header: bytes
    messages: Iterator[bytes]


@contextmanager
def open_scan(source: str, group: str = "dataset") -> Iterator[Scan]:
    """Open a scan for replay.

    Parameters
    ----------
    source
        Path of an ISMRMRD HDF5 file or ISMRMRD stream file; ``-`` reads a stream from stdin.
    group
        Group inside an HDF5 file.

    Raises
    ------
    DataError
        E301 not readable or no such group, E302 an impossible size, E331 no acquisitions.
    HeaderError
        E201 the header is missing or not valid.
    TransportError
        E401 to E404 for a stream that is cut short or holds something else.
    """
    if source == "-":
        yield _stream_scan(sys.stdin.buffer, "stdin")
        return
    path = Path(source)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(301, f"cannot read {source}: {error.strerror}.", "Check the file name.") from error
    with stream:
        if stream.read(len(_HDF5_MAGIC)) != _HDF5_MAGIC:
            stream.seek(0)
            yield _stream_scan(stream, path.name)
            return
    with _hdf5(path) as file:
        try:
            scan = _hdf5_scan(file, path.name, group.strip("/"))
        except (OSError, KeyError, RuntimeError) as error:
            raise _unreadable(path.name, error) from error
        yield scan


def clean_header(raw: bytes) -> bytes:
    """Parse a header and write it again, as the server does: no NUL at the end, no unknown elements.

    Raises HeaderError E201 when it is no ISMRMRD header; its text is never repeated, it may name a patient.
    """
    from gadget.scan.header import parse, to_xml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        return to_xml(parse(raw))


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file read-only; E301 when it cannot be opened."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except (OSError, KeyError, RuntimeError) as error:
        raise _unreadable(path.name, error) from error
    with file:
        yield file


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(
        301, f"{name} is not a readable HDF5 file ({type(error).__name__}).", "It may be cut short or in use."
    )


def _hdf5_scan(file: h5py.File, name: str, group: str) -> Scan:
    import h5py

    if {"kspace", "ismrmrd_header"} <= file.keys():
        raise DataError(
            301,
            f"{name} is a fastMRI file (kspace and ismrmrd_header at its root), not an ISMRMRD file of readouts.",
            "Convert it: every line of kspace is one acquisition.",
        )
    if not isinstance(file.get(group), h5py.Group):
        present = ", ".join(k for k, v in file.items() if isinstance(v, h5py.Group)) or "none"
        raise DataError(301, f"{name} has no group {group!r}; it has: {present}.", "Choose one with -g.")
    dataset = file[group]
    if "data" not in dataset or "header" in dataset or dataset["data"].shape[0] == 0:
        raise DataError(331, f"{name} has no acquisitions in the group {group!r}.")
    if "xml" not in dataset or dataset["xml"].size == 0:
        raise HeaderError(201, f"{name} has no header in the group {group!r}.")
    # a string of its own, or an array of one, as the standard has it
    raw = dataset["xml"][()] if dataset["xml"].shape == () else dataset["xml"][:].flat[0]
    header = clean_header(raw.encode() if isinstance(raw, str) else bytes(raw))
    return Scan(header, _hdf5_messages(dataset, name))


def _hdf5_messages(dataset: h5py.Group, name: str) -> Iterator[bytes]:
    """Readouts in batches (one by one is 20 times slower), waveforms in between by their time stamps."""
    try:
        waveforms = list(_hdf5_waveforms(dataset))
        rows = dataset["data"]
        for start in range(0, rows.shape[0], _BATCH):
            for i, row in enumerate(rows[start : start + _BATCH].reshape(-1)):  # some writers store (n, 1)
                while waveforms and waveforms[0][0] <= int(row["head"]["acquisition_time_stamp"]):
                    yield waveforms.pop(0)[1]
                yield _acquisition_message(row, start + i)
        for _, message in waveforms:
            yield message
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(name, error) from error


def _acquisition_message(row: np.void, number: int) -> bytes:
    from ismrmrd.hdf5 import acquisition_header_dtype

    head = row["head"]
    n_samples, n_channels = int(head["number_of_samples"]), int(head["active_channels"])
    n_columns = int(head["trajectory_dimensions"])
    traj, data = row["traj"], row["data"]
    if traj.size != n_samples * n_columns or data.size != 2 * n_samples * n_channels:
        raise DataError(
            301,
            f"readout {number} announces {n_channels} channels of {n_samples} samples and {n_columns} "
            f"trajectory columns but holds {data.size // 2} samples and {traj.size} trajectory values.",
        )
    packed = head.astype(acquisition_header_dtype).tobytes()
    return b"".join((struct.pack("<H", ACQUISITION), packed, traj.tobytes(), data.tobytes()))


def _hdf5_waveforms(dataset: h5py.Group) -> Iterator[tuple[int, bytes]]:
    """Waveforms as (time stamp, message), oldest first."""
    import ismrmrd
    import numpy as np
    from ismrmrd.hdf5 import waveform_header_dtype

    found = []
    for row in dataset["waveforms"][:] if "waveforms" in dataset else ():
        head = np.zeros((1,), dtype=waveform_header_dtype)  # zeros: the padding has to be defined
        head[0] = row["head"]
        waveform = ismrmrd.Waveform(head)
        waveform.data[:] = row["data"].view(np.uint32).reshape(waveform.data.shape)
        found.append((int(waveform.time_stamp), struct.pack("<H", WAVEFORM) + waveform.to_bytes()))
    yield from sorted(found, key=lambda item: item[0])


def _stream_scan(file: IO[bytes], name: str) -> Scan:
    """Read an ISMRMRD stream up to its header; the rest follows as messages."""
    read = _exact(file, name)
    first = _reading(file, name)(2)
    if first == _HDF5_MAGIC[:2]:
        raise DataError(301, f"{name} is an HDF5 file.", "Give it by its name, not through a pipe.")
    if len(first) < 2:
        raise DataError(301, f"{name} is empty.")
    while (message := struct.unpack("<H", first)[0]) != HEADER:
        if message not in (CONFIG_FILE, CONFIG, TEXT):
            raise DataError(301, f"{name} is neither an ISMRMRD HDF5 file nor an ISMRMRD stream (first id {message}).")
        read(CONFIG_FILE_BYTES if message == CONFIG_FILE else _length(read(4)))
        first = read(2)
    header = clean_header(read(_length(read(4))))
    messages = _stream_messages(read, name)
    head = next(messages, None)
    if head is None:
        raise DataError(331, f"{name} has no acquisitions.")

    def everything() -> Iterator[bytes]:
        yield head
        yield from messages

    return Scan(header, everything())


def _stream_messages(read: Callable[[int], bytes], name: str) -> Iterator[bytes]:
    import ctypes

    import ismrmrd

    while True:
        ident = read(2)
        message = struct.unpack("<H", ident)[0]
        if message == CLOSE:
            return
        if message == TEXT:
            read(_length(read(4)))
        elif message == ACQUISITION:
            raw = read(ctypes.sizeof(ismrmrd.AcquisitionHeader))
            head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw)
            per_sample = 4 * head.trajectory_dimensions + 8 * head.active_channels
            yield ident + raw + read(head.number_of_samples * per_sample)
        elif message == WAVEFORM:
            raw = read(ctypes.sizeof(ismrmrd.WaveformHeader))
            wave = ismrmrd.WaveformHeader.from_buffer_copy(raw)
            yield ident + raw + read(4 * wave.channels * wave.number_of_samples)
        else:
            raise TransportError(404, f"{name} holds a message with the unknown id {message}.")


def _length(raw: bytes) -> int:
    return int(struct.unpack("<I", raw)[0])


def _exact(file: IO[bytes], name: str) -> Callable[[int], bytes]:
    """Return a reader of exactly n bytes that refuses absurd sizes and early ends."""

    def read(n: int) -> bytes:
        if n > _MAX_MESSAGE:
            raise DataError(302, f"{name} announces a message of {n} bytes; the limit is {_MAX_MESSAGE}.")
        data = bytearray()
        if not fill(data, n, _reading(file, name)):
            raise TransportError(402, f"{name} is cut short: got {len(data)}/{n} bytes of a message.")
        return bytes(data)

    return read


def _reading(file: IO[bytes], name: str) -> Callable[[int], bytes]:
    """Reading from a file whose failures are those of the input."""

    def read(most: int) -> bytes:
        try:
            return file.read(most)
        except OSError as error:
            raise DataError(301, f"{name} cannot be read: {error.strerror}.", "Check the disk.") from error

    return read
