"""One frame of readouts: all that belongs to one 2-D image, screened and stacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError
from gadget.scan.geometry import Encoding

MAX_BROKEN_SHARE = 0.01
MAX_OUTSIDE_SHARE = 0.05


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
    """Readouts of one image, all of one shape, in the order they came.

    Attributes
    ----------
    key
        Its indices.
    encoding
        The encoding space it belongs to.
    data
        complex64 `(readout, coil, sample)`, scanner units.
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

    @property
    def trajectory_name(self) -> str:
        """The header's name, or ``other`` where the readouts contradict it."""
        contradicted = not self.on_grid and self.encoding.trajectory == "cartesian"
        return "other" if contradicted else self.encoding.trajectory


def assemble(
    key: FrameKey,
    readouts: Sequence[ismrmrd.Acquisition],
    encoding: Encoding,
    n_channels: int | None,
    *,
    is_window: bool = False,
    numbers: Sequence[int] | None = None,
) -> AcquiredFrame:
    """Screen the readouts of one image and stack them.

    Parameters
    ----------
    key, readouts, encoding
        The frame's indices, its readouts (at least one), and their encoding.
    n_channels
        Receive channels the header announces, or None.
    is_window
        Whether fewer readouts than the header announces were asked for.
    numbers
        Of the readouts in the order in which the slice's came over the whole scan; None counts from 0.

    Raises
    ------
    DataError
        E303 over 5 % of the readouts lie outside the matrix or the encoding limits (Cartesian), E305 most have no
        samples or not the shape of the others, E330 over 1 % hold NaN or infinite samples.
    """
    total = len(readouts)
    measured = [acq for acq in readouts if acq.discard_pre + acq.discard_post < acq.number_of_samples]
    kept = _one_shape(measured, n_channels)
    if not kept:
        raise DataError(
            305,
            f"{key}: none of its {total} readouts has samples that are not to be discarded.",
            "Check the converter, discard_pre and discard_post.",
        )
    if len(kept) < total - len(kept):
        n_coils, n_samples = kept[0].data.shape
        raise DataError(
            305,
            f"{key}: only {len(kept)} of {total} readouts have {n_coils} channels of {n_samples} samples "
            f"(receiverChannels: {n_channels or 'not stated'}).",
            "Check receiverChannels and the converter.",
        )
    warnings = ["EMPTY_READOUTS"] if len(measured) < total else []
    if len(kept) < len(measured):
        warnings.append("MIXED_SHAPES")

    finite = [acq for acq in kept if np.isfinite(acq.data).all()]
    n_broken = len(kept) - len(finite)
    if n_broken > MAX_BROKEN_SHARE * len(kept):
        raise DataError(
            330,
            f"{key}: {n_broken} of {len(kept)} readouts hold NaN or infinite samples (limit 1 %).",
            "The receiver or the converter is broken.",
        )
    if n_broken:
        warnings.append("BROKEN_READOUTS")

    ny = encoding.encoded.matrix[1]
    has_trajectory = all(acq.trajectory_dimensions > 0 for acq in finite)
    trajectory = np.stack([acq.traj for acq in finite]) if has_trajectory else None
    on_grid = _is_on_grid(encoding, trajectory)
    if not on_grid and encoding.trajectory == "cartesian":
        warnings.append("TRAJECTORY_NOT_CARTESIAN")
        logs.get().warning(
            "%s: the header says cartesian, but the readouts are not lines along kx; their trajectory is used", key
        )
    # off the grid the encode steps merely count readouts
    inside = [acq for acq in finite if _is_inside(acq, encoding)] if on_grid else finite
    n_outside = len(finite) - len(inside)
    if n_outside > MAX_OUTSIDE_SHARE * len(finite):
        raise DataError(
            303,
            f"{key}: {n_outside} of {len(finite)} readouts lie outside the {ny} rows of encodedSpace (centre "
            f"{encoding.centre_row}) or the encoding limits {_range(encoding.steps)} (at most 5 % may).",
            "Check encodingLimits.kspace_encoding_step_1 and encodedSpace.matrixSize.y.",
        )
    if n_outside:
        warnings.append("OUTSIDE_MATRIX")
    if len(inside) < total:
        logs.get().warning(
            "%s: dropped %d readouts without samples, %d of another shape, %d with NaN or infinite samples, %d outside "
            "the matrix",
            key,
            total - len(measured),
            len(measured) - len(kept),
            n_broken,
            n_outside,
        )

    if on_grid:
        rows = np.array([encoding.row(acq.idx.kspace_encode_step_1) for acq in inside])
        nearest = int(np.argmin(np.abs(rows - ny // 2)))
        n_repeated = len(inside) - len({(row, acq.idx.average) for row, acq in zip(rows, inside, strict=True)})
        if n_repeated:
            warnings.append("REPEATED_LINES")
            logs.get().warning("%s: %d lines came more than once in an average: their mean is used", key, n_repeated)
    else:
        chosen = set(map(id, inside))
        places = np.flatnonzero([id(acq) in chosen for acq in readouts])
        rows, nearest = places if numbers is None else np.asarray(numbers)[places], len(inside) // 2
    expected = encoding.expected_rows if on_grid else encoding.expected_shots
    if len(np.unique(rows)) < expected and not is_window:
        warnings.append("INCOMPLETE")
    return AcquiredFrame(
        key=key,
        encoding=encoding,
        data=np.stack([acq.data for acq in inside]).astype(np.complex64, copy=False),
        rows=rows,
        heads=tuple(acq.getHead() for acq in inside),
        trajectory=None if on_grid else trajectory,
        reference=inside[nearest].getHead(),
        on_grid=on_grid,
        warnings=tuple(warnings),
        is_window=is_window,
    )


def _is_on_grid(encoding: Encoding, trajectory: np.ndarray | None) -> bool:
    """Whether readouts are lines along kx: the header says cartesian, and positions do not contradict it.

    Parameters
    ----------
    encoding
        Of the frame.
    trajectory
        `(readout, sample, dims)` or None. Some Cartesian sources attach one.
    """
    if encoding.trajectory != "cartesian":
        return False
    if trajectory is None or trajectory.shape[2] < 2:
        return True
    k = np.where(np.isfinite(trajectory[..., :2]), trajectory[..., :2], 0)
    return bool(np.ptp(k[..., 1], axis=1).max() <= 1e-3 * max(float(np.ptp(k[..., 0])), 1e-12))


def _is_inside(acq: ismrmrd.Acquisition, encoding: Encoding) -> bool:
    """Whether a line lies in the encoded matrix, and within the encoding limits where the header has them."""
    step = acq.idx.kspace_encode_step_1
    allowed = encoding.steps is None or step in encoding.steps
    return allowed and 0 <= encoding.row(step) < encoding.encoded.matrix[1] and acq.idx.kspace_encode_step_2 == 0


def _range(steps: range | None) -> str:
    return "(none given)" if steps is None else f"{steps.start}..{steps.stop - 1}"


def _one_shape(readouts: Sequence[ismrmrd.Acquisition], n_channels: int | None) -> list[ismrmrd.Acquisition]:
    """Keep the readouts of the commonest shape, among those with the announced channels if any."""
    shapes = Counter((acq.data.shape, acq.trajectory_dimensions) for acq in readouts if acq.data.size)
    if not shapes:
        return []
    announced = [shape for shape in shapes if shape[0][0] == n_channels]
    best = max(announced or shapes, key=lambda shape: shapes[shape])
    return [acq for acq in readouts if (acq.data.shape, acq.trajectory_dimensions) == best]
