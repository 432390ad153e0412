"""Retrospective undersampling: from full coil images to a frame, with the acceleration that was really reached.

Lines and Gaussian points are taken on the grid; spokes and spirals are sampled off the grid, as a scanner would,
with one sample per grid step along a readout (denser readouts of an image that holds noise would bring no new
noise). Line masks follow the rule of the paper's authors: central lines always, every other line with the
probability that gives 1/4 of all lines on average, so the true acceleration varies with the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pogmdm_core import KSpaceFrame
from pogmdm_core.errors import ConfigError
from pogmdm_core.measurement import trajectories
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.measurement.noncartesian import NonCartesianFourier
from pogmdm_core.measurement.trajectories import Trajectory

_FIRST_SEED = 42
_INTERLEAVES = 16
_SPIRAL_POWER = 1.5
ALIASES = {"radial": "radial6", "spiral": "spiral5"}
NAMES = ("cartesian4", "cartesian4_acs4", "cartesian4h", "radial6", "radial11", "spiral5", "gaussian8")


def resolve(name: str) -> str:
    """Return the full name of a pattern; ConfigError E140 for an unknown one."""
    full = ALIASES.get(name, name)
    if full not in NAMES:
        raise ConfigError(140, f"there is no pattern {name[:40]!r}.", f"Patterns: {', '.join((*NAMES, *ALIASES))}.")
    return full


def undersample(coil_images: torch.Tensor, name: str, seed: int, noise_std: float | None) -> KSpaceFrame:
    """Sample coil images `(coil, y, x)`, complex64, with a pattern.

    Parameters
    ----------
    name
        One of `NAMES` or `ALIASES`.
    seed
        Of the random patterns; spokes and spirals do not depend on it.
    noise_std
        Of the samples, per real/imaginary part.
    """
    name = resolve(name)
    shape = (int(coil_images.shape[-2]), int(coil_images.shape[-1]))
    if name.startswith(("radial", "spiral")):
        k, shot = trajectory(name, shape)
        samples = NonCartesianFourier(k, shape).forward(coil_images)
        return KSpaceFrame.noncartesian(samples, k, shape, None, noise_std, shot)
    return KSpaceFrame.cartesian(centred_fft(coil_images), mask(name, shape, seed), noise_std)


def mask(name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Mask of a pattern on the grid, bool `(ky, kx)`; `cartesian4h` leaves out columns, the others rows."""
    if name == "gaussian8":
        return trajectories.gaussian2d(shape, 8, torch.Generator().manual_seed(_FIRST_SEED + seed))
    share = 0.04 if name.endswith("acs4") else 0.08
    if name == "cartesian4h":
        return lines(shape[1], 4, share, seed)[None, :].repeat(shape[0], 1)
    return lines(shape[0], 4, share, seed)[:, None].repeat(1, shape[1])


def lines(n: int, acceleration: float, centre: float, seed: int) -> torch.Tensor:
    """Which of `n` lines are measured, bool `(n,)`: the central share and random ones."""
    n_centre = round(n * centre)
    probability = (n / acceleration - n_centre) / (n - n_centre)
    kept = np.random.default_rng(_FIRST_SEED + seed).random(n) < probability
    first = (n - n_centre + 1) // 2
    kept[first : first + n_centre] = True
    return torch.from_numpy(kept)


def trajectory(name: str, shape: tuple[int, int]) -> Trajectory:
    """Fewest spokes, or turns of 16 interleaves, that reach a pattern's acceleration."""
    wanted = float(name.removeprefix("radial").removeprefix("spiral"))

    def spokes(n: int) -> Trajectory:
        return trajectories.radial(n, shape, n_read=max(shape))

    def turns(n: int) -> Trajectory:
        per_interleave = n / _INTERLEAVES
        n_read = int(np.ceil(np.pi * per_interleave * max(shape)))
        return trajectories.spiral(_INTERLEAVES, shape, per_interleave, n_read, _SPIRAL_POWER)

    make = spokes if name.startswith("radial") else turns
    return make(_first(lambda n: _acceleration(make(n), shape) <= wanted, 1, 4 * max(shape)))


def _acceleration(found: Trajectory, shape: tuple[int, int]) -> float:
    nothing = torch.zeros(1, found.k.shape[1], dtype=torch.complex64)
    return KSpaceFrame.noncartesian(nothing, found.k, shape).acceleration


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Smallest integer in [low, high] for which a monotone condition holds (bisection)."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
