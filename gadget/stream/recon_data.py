"""ReconData, the buffered k-space of Gadgetron's BucketToBuffer and GenericRecon chains, read with care.

Wire layout (Gadgetron's core IO, little endian): u64 number of bits; per bit a buffer and an optional reference
buffer (one byte says whether it follows). A buffer is: array complex64 (RO, E1, E2, CHA, N, S, SLC); optional
array float32 of the trajectory; optional array float32 of density weights; array of acquisition headers
(E1, E2, N, S, SLC); sampling description. An array is: u64 rank, that many u64 sizes, values in Fortran order.

Lines that were not sampled are zero and their header says 0 samples: the headers are the sampling mask. The
size of the readout is that of the array; the sampling description does not always agree with it.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError, HeaderError
from gadget.scan.classify import Kind, classify
from gadget.scan.frames import AcquiredFrame, FrameKey, assemble
from gadget.scan.geometry import ScanGeometry
from gadget.stream.wire import ExactSocket, broken

_MAX_BITS = 256  # encoding spaces of one scan; real ones have a handful
_HEAD_BYTES = ctypes.sizeof(ismrmrd.AcquisitionHeader)
# 2 x 3 fields of view (float32), 2 x 3 matrix sizes (uint16), 3 x (min, centre, max) (uint16), and the two bytes that
# C++ pads a structure with floats to
_DESCRIPTION_BYTES = struct.calcsize("@6f6H9H0f")

_T = TypeVar("_T")
CheckBytes = Callable[[str, int], None]


@dataclass(frozen=True)
class ReconBuffer:
    """One buffer.

    Attributes
    ----------
    data
        complex64 `(RO, E1, E2, CHA, N, S, SLC)`.
    heads
        Bytes of the acquisition headers, `(E1, E2, N, S, SLC)` of 340-byte strings.
    has_trajectory
        Whether positions came with the data: then it is not on a grid.
    """

    data: np.ndarray
    heads: np.ndarray
    has_trajectory: bool

    def lines(self, n: int, s: int, slc: int) -> dict[int, ismrmrd.Acquisition]:
        """Sampled readouts of one image by their encode step; averages of a reference serve every N and S."""
        n_ro, n_e1, n_e2, n_coils = self.data.shape[:4]
        data = self.data[..., min(n, self.data.shape[4] - 1), min(s, self.data.shape[5] - 1), slc]
        heads = self.heads[..., min(n, self.heads.shape[2] - 1), min(s, self.heads.shape[3] - 1), slc]
        found = {}
        for e2 in range(n_e2):
            parsed = [ismrmrd.AcquisitionHeader.from_buffer_copy(raw.tobytes()) for raw in heads[:, e2]]
            sampled = [(i, head) for i, head in enumerate(parsed) if head.number_of_samples > 0]
            if n_e1 != len(parsed):
                # cropped to the sampled lines, the headers were not (GenericReconCartesianReferencePrep)
                if n_e1 != len(sampled):
                    raise DataError(
                        305,
                        f"a ReconData buffer has {n_e1} lines, but headers of {len(sampled)} sampled ones.",
                        "Check the chain before the gadget.",
                    )
                sampled = [(i, head) for i, (_, head) in enumerate(sampled)]
            for row, head in sampled:
                head.number_of_samples, head.center_sample = n_ro, n_ro // 2  # the buffer is centred
                head.active_channels = head.available_channels = n_coils
                head.discard_pre = head.discard_post = head.trajectory_dimensions = 0
                values = np.ascontiguousarray(data[:, row, e2].T)
                found[head.idx.kspace_encode_step_1] = ismrmrd.Acquisition(head, data=values)
        return found


@dataclass(frozen=True)
class ReconBit:
    """Data of one encoding space and, where the chain made them, its calibration lines."""

    data: ReconBuffer
    ref: ReconBuffer | None


def read_recon_data(source: ExactSocket, check: CheckBytes) -> tuple[ReconBit, ...]:
    """Read the body of a ReconData message.

    Parameters
    ----------
    source
        Where the bytes come from.
    check
        Called with a name and a number of bytes before they are read; raises E302 when too many.

    Raises
    ------
    TransportError
        E404 a rank or a flag that cannot be: message boundaries are lost.
    DataError
        E302 from `check`.
    """
    budget = _Budget(check)
    (n_bits,) = struct.unpack("<Q", source.read(8))
    if n_bits > _MAX_BITS:
        raise broken(404, f"a ReconData message announces {n_bits} encoding spaces (limit {_MAX_BITS}).")
    return tuple(ReconBit(_buffer(source, budget), _optional(source, budget, _buffer)) for _ in range(n_bits))


def frames_of(bits: tuple[ReconBit, ...], geometry: ScanGeometry) -> Iterator[AcquiredFrame]:
    """Frames of every bit, calibration lines merged where they are samples of the image.

    Raises
    ------
    HeaderError
        E204 several partitions.
    DataError
        E305 arrays and headers that do not belong together, E320 a trajectory, and those of `assemble`.
    """
    for bit in bits:
        shape = bit.data.data.shape
        if shape[2] > 1:
            raise HeaderError(204, f"ReconData with {shape[2]} partitions: a 3-D scan, only 2-D is supported.")
        if bit.data.has_trajectory:
            raise DataError(
                320,
                "ReconData with a trajectory is not supported.",
                "Send acquisitions of non-Cartesian scans: see pogmdm_noncartesian.xml.",
            )
        for slc in range(shape[6]):
            yield from _frames_of_slice(bit, slc, geometry)


def _frames_of_slice(bit: ReconBit, slc: int, geometry: ScanGeometry) -> Iterator[AcquiredFrame]:
    """Frames in the order of S and N; averages, which chains keep apart as S or N, are parts of one image."""
    images: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
    calibration: dict[FrameKey, dict[int, ismrmrd.Acquisition]] = {}
    for s, n in np.ndindex(bit.data.data.shape[5], bit.data.data.shape[4]):
        lines = bit.data.lines(n, s, slc)
        if not lines:
            continue  # e.g. a repetition that was not acquired
        key = FrameKey.of(next(iter(lines.values())).getHead())
        images.setdefault(key, []).extend(lines.values())
        if key not in calibration:
            calibration[key] = _calibration(bit, (n, s, slc), key, geometry)
    for key, readouts in images.items():
        measured = {acq.idx.kspace_encode_step_1 for acq in readouts}
        readouts += [acq for step, acq in calibration[key].items() if step not in measured]
        readouts.sort(key=lambda acq: acq.idx.kspace_encode_step_1)
        wanted = [acq for acq in readouts if classify(acq.flags) not in (Kind.NOISE, Kind.SKIP)]
        # the header's receiverChannels is that before a compression upstream
        yield assemble(key, wanted or readouts, geometry.encoding(key.encoding), None)


def _calibration(
    bit: ReconBit, index: tuple[int, int, int], key: FrameKey, geometry: ScanGeometry
) -> dict[int, ismrmrd.Acquisition]:
    """Calibration lines that are samples of the image, by encode step; nothing where they are another scan's."""
    if bit.ref is None or geometry.encoding(key.encoding).has_foreign_calibration:
        return {}
    own, ref = bit.data.data.shape, bit.ref.data.shape
    if (own[0], own[3]) != (ref[0], ref[3]) or index[2] >= ref[6]:
        logs.get().warning(
            "%s: calibration lines of %d samples and %d channels are not used, the data have %d and %d",
            key,
            ref[0],
            ref[3],
            own[0],
            own[3],
        )
        return {}
    return bit.ref.lines(*index)


class _Budget:
    """Bytes of one message, all its arrays together, against the limit."""

    def __init__(self, check: CheckBytes) -> None:
        self._check, self._bytes = check, 0

    def take(self, n_bytes: int) -> int:
        self._bytes += n_bytes
        self._check("a ReconData message", self._bytes)
        return n_bytes


def _buffer(source: ExactSocket, budget: _Budget) -> ReconBuffer:
    shape, raw = _array(source, budget, 8, 7)
    data = np.frombuffer(raw, "<c8").reshape(shape, order="F")
    positions = _optional(source, budget, lambda s, b: _array(s, b, 4, None))
    _optional(source, budget, lambda s, b: _array(s, b, 4, None))  # density weights belong to trajectories
    head_shape, head_raw = _array(source, budget, _HEAD_BYTES, 5)
    heads = np.frombuffer(head_raw, np.dtype((np.void, _HEAD_BYTES))).reshape(head_shape, order="F")
    source.read(_DESCRIPTION_BYTES)
    if 0 in shape or 0 in head_shape or (shape[2], shape[6]) != (head_shape[1], head_shape[4]):
        raise DataError(
            305,
            f"ReconData arrays (RO, E1, E2, CHA, N, S, SLC) = {shape} do not belong to headers "
            f"(E1, E2, N, S, SLC) = {head_shape}.",
            "Check the chain before the gadget.",
        )
    return ReconBuffer(data, heads, positions is not None)


def _optional(source: ExactSocket, budget: _Budget, read: Callable[[ExactSocket, _Budget], _T]) -> _T | None:
    (flag,) = source.read(1)
    if flag not in (0, 1):
        raise broken(404, f"a flag of a ReconData message is {flag}, expected 0 or 1.")
    return read(source, budget) if flag else None


def _array(source: ExactSocket, budget: _Budget, item_bytes: int, rank: int | None) -> tuple[tuple[int, ...], bytes]:
    """Sizes and bytes of an array; its size is checked before anything of it is read."""
    (found,) = struct.unpack("<Q", source.read(8))
    if found > 8 or (rank is not None and found != rank):
        raise broken(404, f"an array of a ReconData message has {found} axes, expected {rank or 'at most 8'}.")
    shape = struct.unpack(f"<{found}Q", source.read(8 * found))
    # an axis of length 0 must not excuse the others: numpy refuses such shapes with an error of its own
    budget.take(item_bytes * math.prod(max(length, 1) for length in shape))
    return shape, source.read(item_bytes * math.prod(shape))
