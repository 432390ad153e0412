"""How the simulated scan samples k-space: one function per trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pogmdm_core.measurement import trajectories

OVERSAMPLING = 2
ACS_SHARE = 0.08
_SPIRAL_SHOTS = 16


@dataclass(frozen=True)
class ScanPlan:
    """What to simulate.

    Attributes
    ----------
    trajectory
        One of `TRAJECTORIES`.
    shape
        Image matrix `(ny, nx)`; the field of view is 240 mm in both directions.
    n_coils, n_slices
        Receive channels and slices.
    acceleration
        Grid lines per acquired line (k-space centre included), larger matrix side per spoke, turns missing
        between those of a spiral, grid points per point; 1 is fully sampled (radial: up to pi/2).
    noise
        Standard deviation of the noise in each real and imaginary part of one channel's image pixel,
        root mean square over channels, in units of the maximum of the noise-free root-sum-of-squares
        image (about 1), if k-space were fully sampled. 0 writes no noise and no noise scan.
    seed
        Chooses small structures, coil ring, sampled lines and noise.
    shots
        Spokes, interleaves or readouts off the grid; None: as the acceleration says. Where it is given,
        radial scans ignore the acceleration.
    """

    trajectory: str = "cartesian"
    shape: tuple[int, int] = (256, 256)
    n_coils: int = 8
    acceleration: float = 4.0
    noise: float = 0.01
    n_slices: int = 1
    seed: int = 0
    shots: int | None = None


@dataclass(frozen=True)
class Sampling:
    """Samples of one slice, readout after readout, all of one length.

    Attributes
    ----------
    k
        float64 `(2, readout * sample)`, rows kx and ky, cycles per field of view.
    steps
        kspace_encode_step_1 of each readout.
    is_calibration
        Whether a readout belongs to the fully sampled centre of a Cartesian scan, bool `(readout,)`.
    oversampling
        Samples per grid step along the readout: the shorter the dwell time, the stronger the noise.
    """

    k: torch.Tensor
    steps: np.ndarray
    is_calibration: np.ndarray
    oversampling: int

    @property
    def n_read(self) -> int:
        """Samples per readout."""
        return self.k.shape[1] // len(self.steps)


def sampled_lines(ny: int, acceleration: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the acquired phase-encoding lines: the k-space centre, and a random share of the rest.

    Returns
    -------
        Indices of all acquired lines, ascending, and whether each belongs to the fully sampled centre
        (8 % of the lines, for coil calibration). The density falls towards the edge of k-space.
    """
    if acceleration == 1:
        return np.arange(ny), np.zeros(ny, dtype=bool)
    n_centre = max(4, round(ACS_SHARE * ny))
    first = ny // 2 - n_centre // 2
    is_centre = np.zeros(ny, dtype=bool)
    is_centre[first : first + n_centre] = True
    n_more = max(1, round(ny / acceleration) - n_centre)
    outer = np.flatnonzero(~is_centre)
    weight = 1 - 0.7 * np.abs(outer - ny // 2) / (ny / 2)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(outer, size=n_more, replace=False, p=weight / weight.sum())
    lines = np.sort(np.concatenate([np.flatnonzero(is_centre), chosen]))
    return lines, is_centre[lines]


def _cartesian(plan: ScanPlan) -> Sampling:
    ny, nx = plan.shape
    n_read = OVERSAMPLING * nx
    lines, is_centre = sampled_lines(ny, plan.acceleration, plan.seed)
    kx = (torch.arange(n_read, dtype=torch.float64) - n_read // 2) / OVERSAMPLING
    ky = torch.as_tensor(lines, dtype=torch.float64) - ny // 2
    return Sampling(torch.stack([kx.repeat(len(lines)), ky.repeat_interleave(n_read)]), lines, is_centre, OVERSAMPLING)


def _radial(plan: ScanPlan) -> Sampling:
    n_spokes = plan.shots or max(1, round(max(plan.shape) / plan.acceleration))
    return _off_grid(trajectories.radial(n_spokes, plan.shape).k, n_spokes, OVERSAMPLING)


def _spiral(plan: ScanPlan) -> Sampling:
    n_interleaves = plan.shots or _SPIRAL_SHOTS
    n_turns = max(plan.shape) / (2 * plan.acceleration * n_interleaves)
    return _off_grid(trajectories.spiral(n_interleaves, plan.shape, n_turns).k, n_interleaves, OVERSAMPLING)


def _gaussian2d(plan: ScanPlan) -> Sampling:
    """Points dealt out to readouts of one length; the last few that do not fill one are left out."""
    ny, nx = plan.shape
    generator = torch.Generator().manual_seed(plan.seed)
    mask = trajectories.gaussian2d(plan.shape, plan.acceleration, generator)
    points = mask.nonzero()[torch.randperm(int(mask.sum()), generator=generator)]
    n_shots = min(plan.shots or max(1, round(ny / plan.acceleration)), len(points))
    points = points[: len(points) // n_shots * n_shots]
    k = torch.stack([points[:, 1] - nx // 2, points[:, 0] - ny // 2]).to(torch.float64)
    return _off_grid(k, n_shots, 1)


def _off_grid(k: torch.Tensor, n_shots: int, oversampling: int) -> Sampling:
    return Sampling(k, np.arange(n_shots), np.zeros(n_shots, dtype=bool), oversampling)


# A further trajectory is one more function here.
TRAJECTORIES: dict[str, Callable[[ScanPlan], Sampling]] = {
    "cartesian": _cartesian,
    "radial": _radial,
    "spiral": _spiral,
    "gaussian2d": _gaussian2d,
}
