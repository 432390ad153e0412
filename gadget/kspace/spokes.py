"""Positions of spokes that carry none: from the angle scheme the header or the settings name.

The spoke number is kspace_encode_step_1, or the order of arrival over the whole scan where that is the same for all
readouts of a frame. A readout runs through the centre from -kmax to kmax, along read_dir at angle 0 and along phase_dir
at 90 degrees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from gadget.errors import DataError
from gadget.kspace.readout import centre_sample, is_reversed
from gadget.scan.on_grid import padded

if TYPE_CHECKING:
    from gadget.scan.frames import AcquiredFrame

_GOLDEN_ORDERS = {"golden": 1, "tiny_golden": 7}


def radial_trajectory(acquired: AcquiredFrame, wanted: str) -> tuple[np.ndarray, str]:
    """Positions of a radial frame.

    Parameters
    ----------
    acquired
        A frame whose readouts carry no positions.
    wanted
        The setting ``trajectory.radial``: ``uniform``, ``golden``, ``tiny_golden``, or ``auto`` for the
        header's.

    Returns
    -------
        Cycles per pixel, float64 `(readout, sample, 2)`, columns kx and ky, and the scheme.

    Raises
    ------
    DataError
        E320 the scan is not radial, or nobody says at which angles its spokes lie.
    """
    from pogmdm_core.measurement.trajectories import golden_angle

    encoding = acquired.encoding
    scheme = encoding.spokes if wanted == "auto" else wanted
    if encoding.trajectory not in ("radial", "goldenangle") or not scheme:
        raise DataError(
            320,
            f"{acquired.key}: the header says {encoding.trajectory[:20]!r}, but the readouts carry no trajectory.",
            "Store it with the readouts (2 columns, kx and ky); or have a gadget upstream compute it "
            "(SpiralToGeneric), or for spokes set trajectory.radial to uniform, golden or tiny_golden; or correct the "
            "header's trajectory to cartesian if the readouts are lines.",
        )
    number = np.array([head.idx.kspace_encode_step_1 for head in acquired.heads])
    n_spokes = len(encoding.steps or ()) or int(number.max()) + 1
    if not np.ptp(number):  # a source that does not count
        number = acquired.rows
        if scheme == "uniform":
            number, n_spokes = _within_turn(acquired)
    angle = number * (np.pi / n_spokes if scheme == "uniform" else golden_angle(_GOLDEN_ORDERS[scheme]))
    radius = padded([_radius(head, encoding.encoded.matrix[0]) for head in acquired.heads])
    return np.stack([radius * np.cos(angle)[:, None], radius * np.sin(angle)[:, None]], axis=2), scheme


def _within_turn(acquired: AcquiredFrame) -> tuple[np.ndarray, int]:
    """Number of each spoke in its turn of uniform angles, and how many a turn has.

    By the encoding limits where they tell; else each frame is taken for a turn, which a window of a running scan is
    not.
    """
    steps = acquired.encoding.steps
    if steps is not None:
        return acquired.rows % len(steps), len(steps)
    if acquired.is_window:
        raise DataError(
            320,
            f"{acquired.key}: a window of uniform spokes that are not counted, and the header does not say how many "
            "make a turn.",
            "Write kspace_encode_step_1 or encodingLimits.kspace_encoding_step_1, or store the trajectory.",
        )
    number = acquired.rows - int(acquired.rows.min())
    return number, int(number.max()) + 1


def _radius(head: ismrmrd.AcquisitionHeader, n_encoded: int) -> np.ndarray:
    """Signed distance of each sample from the centre, cycles per pixel, `(sample,)`."""
    n = int(head.number_of_samples)
    index = np.arange(n)
    if is_reversed(head):
        index = index[::-1]
    # an asymmetric echo is shorter than the encoded matrix, a denser readout longer: both keep the matrix' extent
    return (index - centre_sample(head, n_encoded)) / max(n, n_encoded)
