"""Whether readouts are lines of the Cartesian grid: what the header says, unless their positions contradict it."""

from __future__ import annotations

from collections.abc import Sequence

import ismrmrd
import numpy as np

from gadget.scan.classify import has_flag
from gadget.scan.geometry import Encoding

LINES = ("cartesian", "epi")
_STRAIGHT = 1e-3  # of the extent of k-space: how much ky may vary along a line
_SAME_ROW = 0.3  # of the distance between rows


def why_off_grid(encoding: Encoding, readouts: Sequence[ismrmrd.Acquisition], trajectory: np.ndarray | None) -> str:
    """Say why readouts are not to be placed by their encode steps; an empty string where they are.

    Positions that are stored win over counters and flags: simulators and Pulseq store them, and set neither.

    Parameters
    ----------
    encoding
        Of the readouts.
    readouts
        At least one.
    trajectory
        Their positions in any unit, `(readout, sample, dims)`, or None. Without them EPI readouts are lines.
    """
    if encoding.trajectory not in LINES:
        return f"the header says {encoding.trajectory[:20]}"
    if trajectory is None or trajectory.shape[2] < 2:  # noqa: PLR2004 - kx and ky
        return ""
    # positions that are not finite tell nothing: the first of their line that is stands in for them
    is_told = np.isfinite(trajectory[..., :2]).all(axis=2)
    lines = np.flatnonzero(is_told.any(axis=1))
    if not lines.size:
        return ""
    first = is_told[lines].argmax(axis=1)
    k = trajectory[lines, :, :2].astype(np.float64)
    k = np.where(is_told[lines, :, None], k, k[np.arange(len(lines)), first][:, None])
    if not np.ptp(k):
        return ""
    extent = float(np.ptp(k[..., 0]))
    if float(np.ptp(k[..., 1], axis=1).max()) > _STRAIGHT * max(extent, 1e-12):
        return "the readouts are not lines along kx"
    if encoding.trajectory == "epi":
        return "positions are stored"
    heads = [readouts[line].getHead() for line in lines.tolist()]
    last = is_told.shape[1] - 1 - is_told[lines, ::-1].argmax(axis=1)
    way = k[np.arange(len(lines)), last, 0] - k[:, 0, 0]
    wanted = np.array([-1 if has_flag(head.flags, ismrmrd.ACQ_IS_REVERSE) else 1 for head in heads])
    if bool((way * wanted < -_STRAIGHT * extent).any()):
        return "some lines run the other way than their flags say"
    rows = np.array([encoding.row(head.idx.kspace_encode_step_1) for head in heads]) - encoding.encoded.matrix[1] // 2
    ky = k[:, 0, 1]
    if np.ptp(rows) == 0 or float(np.ptp(ky)) <= _STRAIGHT * extent:
        return ""  # the positions do not tell the rows
    spacing = float(ky @ rows) / float(rows @ rows)
    if spacing <= 0 or float(np.abs(ky - spacing * rows).max()) > _SAME_ROW * spacing:
        return "kspace_encode_step_1 is not where the lines lie"
    return ""


def padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays `(..., n)`, shorter ones with zeros behind."""
    longest = max(array.shape[-1] for array in arrays)
    out = np.zeros((len(arrays), *arrays[0].shape[:-1], longest), arrays[0].dtype)
    for place, array in zip(out, arrays, strict=True):
        place[..., : array.shape[-1]] = array
    return out
