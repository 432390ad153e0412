"""One frame of readouts: all that belongs to one 2-D image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import ismrmrd
import numpy as np

from gadget.scan.geometry import Encoding


class FrameKey(NamedTuple):
    """The indices that tell images apart; averages and segments are parts of the same image."""

    encoding: int
    slice: int
    contrast: int
    phase: int
    repetition: int
    set: int

    @classmethod
    def of(cls, head: ismrmrd.AcquisitionHeader) -> FrameKey:
        """Key of the frame a readout belongs to."""
        i = head.idx
        return cls(head.encoding_space_ref, i.slice, i.contrast, i.phase, i.repetition, i.set)

    def __str__(self) -> str:
        return " ".join(
            f"{name} {value}" for name, value in zip(self._fields, self, strict=True) if value or name == "slice"
        )


@dataclass(frozen=True)
class AcquiredFrame:
    """Readouts of one image, with the same channels, in the order they came.

    Attributes
    ----------
    key
        Its indices.
    encoding
        The encoding space it belongs to.
    data
        complex64 `(readout, coil, sample)`, scanner units; 0 beyond the samples of shorter ones (off the grid).
    rows
        Row of the encoded matrix of each readout, int `(readout,)`, centre at ny // 2; off the grid its number in the
        order in which the slice's readouts came, over the whole scan and counting those that were dropped.
    heads
        Header of each readout.
    trajectory
        float32 `(readout, sample, dims)`, or None.
    reference
        Header of the readout nearest the k-space centre, off the grid of the middle one: where and when the image is.
    on_grid
        Whether the readouts are lines of the Cartesian grid.
    warnings
        Short upper-case words, e.g. ``INCOMPLETE``.
    is_window
        Whether it is a part of a running scan that begins anywhere.
    phase_references
        Lines without phase encoding that tell how reversed lines differ from the others (EPI).
    are_whole_numbers
        Whether its samples were whole numbers when they came: they hold the noise of rounding.
    """

    key: FrameKey
    encoding: Encoding
    data: np.ndarray
    rows: np.ndarray
    heads: tuple[ismrmrd.AcquisitionHeader, ...]
    trajectory: np.ndarray | None
    reference: ismrmrd.AcquisitionHeader
    on_grid: bool = True
    warnings: tuple[str, ...] = ()
    is_window: bool = False
    phase_references: tuple[ismrmrd.Acquisition, ...] = ()
    are_whole_numbers: bool = False

    @property
    def trajectory_name(self) -> str:
        """The header's name, or ``other`` where the readouts contradict it."""
        contradicted = not self.on_grid and self.encoding.trajectory == "cartesian"
        return "other" if contradicted else self.encoding.trajectory
