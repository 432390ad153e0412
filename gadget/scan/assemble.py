"""From the readouts of one image to its frame: screened and stacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError
from gadget.scan.frames import AcquiredFrame, FrameKey
from gadget.scan.geometry import Encoding
from gadget.scan.on_grid import LINES, padded, why_off_grid
from gadget.scan.whole_numbers import are_whole_numbers

MAX_BROKEN_SHARE = 0.01
MAX_OUTSIDE_SHARE = 0.05
_SAME_FOV = 0.01
_FINER = 1.5  # encoded pixels, times smaller than wanted ones: nobody measures what is then thrown away


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
    screening = _screened(key, readouts, n_channels, encoding.trajectory in LINES)
    left = screening.left
    has_trajectory = all(acq.trajectory_dimensions > 0 for acq in left)
    trajectory = padded([acq.traj.T for acq in left]).transpose(0, 2, 1) if has_trajectory else None
    objection = why_off_grid(encoding, left, trajectory)
    on_grid = not objection
    if on_grid:
        _keep_inside(screening, encoding)
        if _hides_oversampling(encoding, left):
            screening.warnings.append("READOUT_FOV_UNCLEAR")
            logs.get().warning(
                "%s: the header wants %d of %d columns on the same field of view, %g mm. If readouts are oversampled, "
                "encodedSpace.fieldOfView_mm.x is larger, and this image is squeezed along x",
                key,
                encoding.recon.matrix[0],
                encoding.encoded.matrix[0],
                encoding.encoded.fov_mm[0],
            )
        if encoding.trajectory != "cartesian" and encoding.has_foreign_description:
            screening.warnings.append("TRAJECTORY_DESCRIPTION_IGNORED")
            logs.get().warning("%s: the header's trajectoryDescription is not understood, and not used", key)
    elif encoding.trajectory == "cartesian":
        screening.warnings.append("TRAJECTORY_NOT_CARTESIAN")
        logs.get().warning("%s: the header says cartesian, but %s; their positions are used", key, objection)
    screening.tell()
    if on_grid:
        rows, nearest = _rows(screening, encoding)
    else:  # there the encode steps merely count readouts
        rows, nearest = _places(screening.left, readouts, numbers), len(screening.left) // 2
    expected = encoding.expected_rows if on_grid else encoding.expected_shots
    if len(np.unique(rows)) < expected and not is_window:
        screening.warnings.append("INCOMPLETE")
    return AcquiredFrame(
        key=key,
        encoding=encoding,
        data=padded([acq.data for acq in screening.left]).astype(np.complex64, copy=False),
        rows=rows,
        heads=tuple(acq.getHead() for acq in screening.left),
        trajectory=None if on_grid else trajectory,
        reference=screening.left[nearest].getHead(),
        on_grid=on_grid,
        warnings=tuple(screening.warnings),
        is_window=is_window,
        are_whole_numbers=are_whole_numbers(screening.left),
    )


@dataclass
class _Screening:
    """Readouts of a frame that are left so far; how many are not, by reason, and the words for it."""

    key: FrameKey
    left: list[ismrmrd.Acquisition]
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def keep(self, kept: list[ismrmrd.Acquisition], reason: str, warning: str) -> None:
        n_dropped = len(self.left) - len(kept)
        self.left = kept
        if n_dropped:
            self.dropped[reason] = n_dropped
            self.warnings.append(warning)

    def tell(self) -> None:
        if self.dropped:
            text = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            logs.get().warning("%s: dropped readouts: %s", self.key, text)


def _screened(
    key: FrameKey, readouts: Sequence[ismrmrd.Acquisition], n_channels: int | None, of_one_length: bool
) -> _Screening:
    """Readouts with samples, of the commonest shape, all of them finite; E305 and E330, see `assemble`.

    Off the grid readouts with positions may have any length.
    """
    total = len(readouts)
    screening = _Screening(key, list(readouts))
    measured = [acq for acq in readouts if acq.discard_pre + acq.discard_post < acq.number_of_samples]
    screening.keep(measured, "without samples", "EMPTY_READOUTS")
    one_shape = _one_shape(measured, n_channels, of_one_length)
    if not one_shape:
        raise DataError(
            305,
            f"{key}: none of its {total} readouts has samples that are not to be discarded.",
            "Check the converter, discard_pre and discard_post.",
        )
    if len(one_shape) < total - len(one_shape):
        n_coils, n_samples = one_shape[0].data.shape
        raise DataError(
            305,
            f"{key}: only {len(one_shape)} of {total} readouts have {n_coils} channels"
            f"{f' of {n_samples} samples' if of_one_length else ''} "
            f"(receiverChannels: {n_channels or 'not stated'}).",
            "Check receiverChannels and the converter.",
        )
    screening.keep(one_shape, "of another shape", "MIXED_SHAPES")
    finite = [acq for acq in one_shape if np.isfinite(acq.data).all()]
    n_broken = len(one_shape) - len(finite)
    if n_broken > MAX_BROKEN_SHARE * len(one_shape):
        raise DataError(
            330,
            f"{key}: {n_broken} of {len(one_shape)} readouts hold NaN or infinite samples (limit 1 %).",
            "The receiver or the converter is broken.",
        )
    screening.keep(finite, "with NaN or infinite samples", "BROKEN_READOUTS")
    return screening


def _keep_inside(screening: _Screening, encoding: Encoding) -> None:
    """Keep lines inside the matrix and the encoding limits; E303, see `assemble`."""
    partitions = Counter(acq.idx.kspace_encode_step_2 for acq in screening.left)
    partition = partitions.most_common(1)[0][0]  # converters that kept one slab of many
    inside = [acq for acq in screening.left if _is_inside(acq, encoding) and acq.idx.kspace_encode_step_2 == partition]
    n_outside = len(screening.left) - len(inside)
    if n_outside > MAX_OUTSIDE_SHARE * len(screening.left):
        raise DataError(
            303,
            f"{screening.key}: {n_outside} of {len(screening.left)} readouts lie outside the "
            f"{encoding.encoded.matrix[1]} rows of encodedSpace (centre {encoding.centre_row}) or the encoding limits "
            f"{_range(encoding.steps)} (at most 5 % may), or have another kspace_encode_step_2 than {partition}.",
            "Check encodingLimits.kspace_encoding_step_1, encodedSpace.matrixSize.y and, in 3-D scans, matrixSize.z.",
        )
    screening.keep(inside, "outside the matrix", "OUTSIDE_MATRIX")


def _rows(screening: _Screening, encoding: Encoding) -> tuple[np.ndarray, int]:
    """Row of each line, and which one is nearest the centre; lines that came again in an average are told."""
    rows = np.array([encoding.row(acq.idx.kspace_encode_step_1) for acq in screening.left])
    different = {(row, acq.idx.average) for row, acq in zip(rows, screening.left, strict=True)}
    n_repeated = len(rows) - len(different)
    if n_repeated:
        screening.warnings.append("REPEATED_LINES")
        logs.get().warning(
            "%s: %d lines came more than once in an average: their mean is used", screening.key, n_repeated
        )
    return rows, int(np.argmin(np.abs(rows - encoding.encoded.matrix[1] // 2)))


def _places(
    kept: Sequence[ismrmrd.Acquisition], readouts: Sequence[ismrmrd.Acquisition], numbers: Sequence[int] | None
) -> np.ndarray:
    """Numbers of those that are kept; without any they count from 0 in the order of all readouts."""
    chosen = set(map(id, kept))
    places = np.flatnonzero([id(acq) in chosen for acq in readouts])
    return places if numbers is None else np.asarray(numbers)[places]


def _is_inside(acq: ismrmrd.Acquisition, encoding: Encoding) -> bool:
    """Whether a line lies in the encoded matrix, and within the encoding limits where the header has them."""
    step = acq.idx.kspace_encode_step_1
    allowed = encoding.steps is None or step in encoding.steps
    return allowed and 0 <= encoding.row(step) < encoding.encoded.matrix[1]


def _hides_oversampling(encoding: Encoding, readouts: Sequence[ismrmrd.Acquisition]) -> bool:
    """Whether the header hides readout oversampling: fewer columns wanted than measured, on the same field of view."""
    encoded, recon = encoding.encoded, encoding.recon
    finer_x, finer_y = (encoded.matrix[i] / recon.matrix[i] for i in (0, 1))
    n_samples = max(acq.number_of_samples for acq in readouts)
    is_same_fov = abs(encoded.fov_mm[0] / recon.fov_mm[0] - 1) < _SAME_FOV
    return is_same_fov and finer_x >= _FINER * max(finer_y, 1) and n_samples >= _FINER * recon.matrix[0]


def _range(steps: range | None) -> str:
    return "(none given)" if steps is None else f"{steps.start}..{steps.stop - 1}"


def _one_shape(
    readouts: Sequence[ismrmrd.Acquisition], n_channels: int | None, of_one_length: bool
) -> list[ismrmrd.Acquisition]:
    """Keep the readouts of the commonest shape, among those with the announced channels if any."""

    def shape_of(acq: ismrmrd.Acquisition) -> tuple[int, ...]:
        n_columns = acq.trajectory_dimensions
        return acq.data.shape[0], n_columns, acq.data.shape[1] if of_one_length or not n_columns else 0

    shapes = Counter(shape_of(acq) for acq in readouts if acq.data.size)
    if not shapes:
        return []
    announced = [shape for shape in shapes if shape[0] == n_channels]
    best = max(announced or shapes, key=lambda shape: shapes[shape])
    return [acq for acq in readouts if shape_of(acq) == best and acq.data.size]
