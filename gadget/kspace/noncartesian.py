"""K-space positions as readouts bring them: which columns, which unit, which samples count.

The ISMRMRD format fixes neither the meaning of a third column nor the unit of a trajectory. Both are decided
from the values and the header, told in the log, and refused when more than one reading is possible: a wrong
guess is a wrong image that looks right.

Positions belong to samples as they lie in the readout, so a readout flagged as reversed is not turned here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gadget import logs
from gadget.errors import DataError
from gadget.kspace.spokes import radial_trajectory
from gadget.scan.geometry import n_wanted

if TYPE_CHECKING:
    from gadget.scan.frames import AcquiredFrame
    from gadget.scan.geometry import Encoding
    from gadget.settings.schema import TrajectorySettings

MAX_DROPPED_SHARE = 0.01

# Most of k-space a unit may claim and still be a candidate: up to 25 % beyond the matrix (it is refused later,
# by name), down to 30 % of it. Two units at a time fit only matrices below some 25 points.
_LEAST_REACH, _MOST_REACH = 0.3, 1.25
_USUAL_UNITS = ("normalized", "radians", "per_fov")
_AT_EDGE = 0.9
_SQUARE = 1.05  # ratio of a pixel's sides
_EDGE = 1 + 1e-3  # rounding beyond the matrix is moved onto its edge
_MIN_GROWTH = 0.5  # rank correlation of weight and radius


@dataclass(frozen=True)
class SampledFrame:
    """Samples off the grid, one after the other.

    Attributes
    ----------
    samples
        complex64 `(coil, n)`, scaled so that the images of an enlarged matrix have the intensities of the
        header's one.
    k
        float64 `(2, n)`, rows kx and ky, cycles per field of view of `shape`.
    density
        float64 `(n,)`, or None.
    shot
        Readout of each sample, int64 `(n,)`.
    shape
        Image matrix `(ny, nx)`.
    fov_mm
        Its field of view `(y, x)`, mm.
    scale
        What the samples were multiplied with.
    reading
        How the positions were read: columns and unit, or the angles' rule.
    warnings
        Short upper-case words.
    """

    samples: np.ndarray
    k: np.ndarray
    density: np.ndarray | None
    shot: np.ndarray
    shape: tuple[int, int]
    fov_mm: tuple[float, float]
    scale: float
    reading: str
    warnings: tuple[str, ...]


def sampled_frame(acquired: AcquiredFrame, data: np.ndarray, settings: TrajectorySettings) -> tuple[SampledFrame, str]:
    """Decode the positions of a frame's samples and drop what cannot be used.

    Parameters
    ----------
    acquired
        Where the samples belong.
    data
        Their values (whitened perhaps), complex64 `(readout, coil, sample)`.
    settings
        Columns, unit, and how much larger than the field of view the object is.

    Returns
    -------
        The samples, and a line for the log that says how the trajectory was read.

    Raises
    ------
    DataError
        E320 no trajectory, E321 columns, E322 unit, E323 over 1 % of the positions beyond the matrix, NaN or infinite.
    """
    key, encoding = acquired.key, acquired.encoding
    trajectory, scheme = acquired.trajectory, ""
    if trajectory is None or not np.any(trajectory):
        trajectory, scheme = radial_trajectory(acquired, settings.radial)
    measured = _measured(acquired)
    position = trajectory[measured].astype(np.float64)
    shot, sample = np.nonzero(measured)
    columns = "kxky" if scheme else _columns(position, settings.columns, str(key))
    encoded, recon = encoding.encoded, encoding.recon
    matrix = np.array([n_wanted(encoded.matrix[i], encoded.fov_mm[i], recon.fov_mm[i]) for i in (0, 1)])
    chosen = "normalized" if scheme else settings.unit
    units = _units(encoding, matrix)
    pixel = _pixel(encoding)
    by_largest = matrix * pixel / pixel.min()
    unit = chosen if chosen != "auto" else _unit(position[:, :2], units, matrix, str(key))
    if chosen == "auto" and unit == "normalized" and _is_by_largest(position[:, :2], by_largest / matrix):
        unit = "normalized_by_largest"
    units["normalized_by_largest"] = by_largest
    k = position[:, :2] * units[unit]

    good = np.isfinite(k).all(axis=1)
    good[good] = (np.abs(k[good]) <= matrix / 2 * _EDGE).all(axis=1)
    if columns == "kxky_dcf":
        good &= np.isfinite(position[:, 2])
    n_bad = len(good) - int(good.sum())
    if n_bad > MAX_DROPPED_SHARE * len(good):
        raise DataError(
            323,
            f"{key}: {n_bad} of {len(good)} positions are NaN, infinite or beyond the matrix of "
            f"{matrix[0]} x {matrix[1]} (unit {unit}; limit 1 %).",
            "Set trajectory.unit if the unit is another; else correct the trajectory or the header's matrix.",
        )
    if n_bad:
        logs.get().warning("%s: dropped %d of %d samples whose positions cannot be used", key, n_bad, len(good))
    factor = 1.0 if settings.fov_factor == "auto" else settings.fov_factor
    grid = np.array([2 * math.ceil(n * factor / 2) for n in matrix]) if factor > 1 else matrix
    growth = grid / matrix
    scale = float(1 / np.sqrt(growth.prod()))
    found = SampledFrame(
        samples=np.ascontiguousarray(data.transpose(1, 0, 2)[:, shot[good], sample[good]] * np.float32(scale)),
        k=np.clip(k[good], -matrix / 2, matrix / 2).T * growth[:, None],
        density=position[good, 2] if columns == "kxky_dcf" else None,
        shot=shot[good],
        shape=(int(grid[1]), int(grid[0])),
        fov_mm=(float(grid[1] * pixel[1]), float(grid[0] * pixel[0])),
        scale=scale,
        reading=f"{scheme} spokes, not stored" if scheme else f"{columns}, unit {unit}",
        warnings=("DROPPED_POSITIONS",) if n_bad else (),
    )
    return found, f"trajectory: {found.reading}, {found.k.shape[1]} samples in {len(data)} readouts, {n_bad} dropped"


def _measured(acquired: AcquiredFrame) -> np.ndarray:
    """Samples that are not marked to be discarded, bool `(readout, sample)`."""
    n, pre, post = (
        np.array([[getattr(head, name)] for head in acquired.heads], np.int64)
        for name in ("number_of_samples", "discard_pre", "discard_post")
    )
    index = np.arange(acquired.data.shape[2])
    return (index >= pre) & (index < n - post)


def _columns(position: np.ndarray, wanted: str, key: str) -> str:
    """Meaning of the columns of `(n, dims)`: ``kxky``, ``kxky_dcf`` or ``kxkykz``."""
    n_columns = position.shape[1]
    if n_columns not in (2, 3):
        raise DataError(321, f"{key}: the trajectory has {n_columns} columns, expected 2 or 3.", "Store kx and ky.")
    if wanted == "kxky" or (wanted == "auto" and n_columns == 2):
        return "kxky"
    if n_columns == 2:
        raise DataError(
            321, f"{key}: trajectory.columns={wanted} needs 3 columns, there are 2.", "Set trajectory.columns=kxky."
        )
    third = position[np.isfinite(position).all(axis=1), 2]
    constant = not len(third) or float(np.ptp(third)) <= 1e-6 * float(np.abs(third).max())
    if wanted == "kxkykz" or (wanted == "auto" and constant):
        if constant:
            return "kxkykz"
        raise DataError(
            321,
            f"{key}: kz varies, but encodedSpace.matrixSize.z is 1.",
            "Correct the header, or set kxky_dcf or kxky.",
        )
    if third.min() < 0 or not third.max() > 0:
        problem = "holds negative values or zeros only, so it is no density weight"
    elif wanted == "auto" and not _grows_with_radius(position):
        problem = "varies, but does not grow with the radius: kz or density weight"
    else:
        return "kxky_dcf"
    raise DataError(
        321,
        f"{key}: the third column of the trajectory {problem}.",
        "Set trajectory.columns to kxky, kxky_dcf or kxkykz.",
    )


def _grows_with_radius(position: np.ndarray) -> bool:
    """Whether the third column of `(n, 3)` follows the radius (Spearman's rank correlation)."""
    position = position[np.isfinite(position).all(axis=1)]

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(values, kind="stable"), kind="stable")

    radius = np.hypot(position[:, 0], position[:, 1])
    return bool(np.corrcoef(ranks(radius), ranks(position[:, 2]))[0, 1] > _MIN_GROWTH)


def _units(encoding: Encoding, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Factors from each unit to cycles per field of view, by axis (x, y); the usual ones first."""
    fov_m = matrix * _pixel(encoding) / 1000
    share = fov_m / [encoding.encoded.fov_mm[i] / 1000 for i in (0, 1)]
    return {
        "normalized": matrix.astype(np.float64),
        "radians": matrix / (2 * np.pi),
        "per_fov": np.ones(2),
        "per_encoded_fov": share,
        "per_m": fov_m,
        "rad_per_m": fov_m / (2 * np.pi),
    }


def _pixel(encoding: Encoding) -> np.ndarray:
    """Sides of a pixel, mm, `(x, y)`."""
    return np.array([encoding.encoded.fov_mm[i] / encoding.encoded.matrix[i] for i in (0, 1)])


def _is_by_largest(k: np.ndarray, ratio: np.ndarray) -> bool:
    """Whether both axes of k `(n, 2)` were divided by one number, the largest: seen where pixels are not square.

    Positions then end short of the edge along the axis of larger pixels, by the `ratio` of sides.
    """
    reach = np.quantile(np.abs(k[np.isfinite(k).all(axis=1)]), 0.99, axis=0)
    return bool(ratio.max() > _SQUARE and reach.min() > 0 and np.ptp(reach * ratio) < (_SQUARE - 1) * reach.max())


def _unit(k: np.ndarray, units: dict[str, np.ndarray], matrix: np.ndarray, key: str) -> str:
    """The one unit in which the trajectory fills a fair share of the matrix.

    The 99 % quantile is what counts, a few wild positions decide nothing. Units that need the field of view are asked
    only where no other fits; of several of them the one whose positions end at the edge of k-space.
    """
    k = np.abs(k[np.isfinite(k).all(axis=1)])
    reach = {}
    for unit, factor in units.items():
        furthest = (k * factor / (matrix / 2)).max(axis=1, initial=0.0)
        reach[unit] = float(np.quantile(furthest, 0.99)) if len(furthest) else 0.0
    fitting = [unit for unit, share in reach.items() if _LEAST_REACH <= share <= _MOST_REACH]
    usual = [unit for unit in fitting if unit in _USUAL_UNITS]
    if len(usual) == 1:
        return usual[0]
    if not usual:
        at_edge = [unit for unit in fitting if _AT_EDGE <= reach[unit] <= 2 - _AT_EDGE]
        if len(at_edge) == 1 or len(fitting) == 1:
            return (at_edge or fitting)[0]
    shares = ", ".join(f"{unit} {share:.3g}" for unit, share in reach.items())
    raise DataError(
        322,
        f"{key}: the unit of the trajectory is ambiguous; share of the {matrix[0]} x {matrix[1]} matrix it "
        f"reaches: {shares}.",
        "Set trajectory.unit to normalized (0.5 at the edge, or normalized_by_largest), "
        "radians (pi), per_fov (N/2), per_encoded_fov "
        "(encodedSpace N/2), per_m (1/m) or rad_per_m; or correct the header's field of view.",
    )
