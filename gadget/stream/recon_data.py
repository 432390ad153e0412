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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import ismrmrd
import numpy as np

from gadget.errors import DataError
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
