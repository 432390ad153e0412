"""Sampling patterns: where k-space is measured, in cycles per field of view.

Every trajectory is `(2, n)` float64, rows kx and ky (the column order of an ISMRMRD trajectory), within
+-N/2, with `shot`, int64 `(n,)`: the readout (spoke, interleave) each sample belongs to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pogmdm_core.errors import ConfigError


def golden_angle(order: int = 1) -> float:
    """Angle between successive spokes in radians, 111.25 degrees; 23.6 degrees, the tiny one, for order 7.

    Source: Winkelmann et al. 2007, doi:10.1109/TMI.2006.885337; Wundrak et al. 2015, doi:10.1002/mrm.25831.
    """
    return math.pi / ((1 + math.sqrt(5)) / 2 + order - 1)


class Trajectory(NamedTuple):
    """Positions `(2, n)` and the readout each one belongs to, `(n,)`."""

    k: torch.Tensor
    shot: torch.Tensor


def radial(
    n_spokes: int, shape: tuple[int, int], n_read: int | None = None, golden: bool = False, first: int = 0
) -> Trajectory:
    """Straight lines through the centre.

    Parameters
    ----------
    n_spokes
        Number of spokes.
    shape
        Image matrix `(ny, nx)`; spokes reach +-nx/2 and +-ny/2 (an ellipse when they differ).
    n_read
        Samples per spoke, equally spaced, one at the centre; None for twice the larger side (2x oversampled).
    golden
        Golden-angle increments in place of equal ones over 180 degrees.
    first
        Number of the first spoke: successive frames of a golden-angle series go on where the last ended.
    """
    _positive(n_spokes=n_spokes, n_y=shape[0], n_x=shape[1])
    n_read = 2 * max(shape) if n_read is None else n_read
    _positive(n_read=n_read)
    angle = (torch.arange(n_spokes, dtype=torch.float64) + first) * (golden_angle() if golden else math.pi / n_spokes)
    radius = (torch.arange(n_read, dtype=torch.float64) - n_read // 2) / n_read
    kx = shape[1] * angle.cos()[:, None] * radius
    ky = shape[0] * angle.sin()[:, None] * radius
    return _collect(kx, ky)


def spiral(
    n_interleaves: int, shape: tuple[int, int], n_turns: float, n_read: int | None = None, power: float = 1.0
) -> Trajectory:
    """Interleaved spirals from the centre out, radius = (share of the readout)^power.

    Parameters
    ----------
    n_interleaves
        Interleaves, rotated against each other by equal angles over 360 degrees.
    shape
        Image matrix `(ny, nx)`; the spirals end at the ellipse nx/2, ny/2.
    n_turns
        Turns of one interleave. ``n_interleaves * n_turns >= max(shape) / 2`` is fully sampled at power 1.
    n_read
        Samples per interleave; None for twice the length of the outermost turns in grid steps.
    power
        1 is Archimedean (even radial spacing); larger is denser at the centre.
    """
    _positive(n_interleaves=n_interleaves, n_turns=n_turns, power=power, n_y=shape[0], n_x=shape[1])
    n_read = math.ceil(2 * math.pi * n_turns * max(shape)) if n_read is None else n_read
    _positive(n_read=n_read)
    share = torch.arange(n_read, dtype=torch.float64) / n_read
    turn = 2 * math.pi * torch.arange(n_interleaves, dtype=torch.float64) / n_interleaves
    angle = turn[:, None] + 2 * math.pi * n_turns * share
    radius = share**power / 2
    return _collect(shape[1] * radius * angle.cos(), shape[0] * radius * angle.sin())


def gaussian2d(shape: tuple[int, int], acceleration: float, generator: torch.Generator) -> torch.Tensor:
    """Random points on the grid with Gaussian density around the centre, bool mask `(ky, kx)`.

    The density has variances ny, nx times min(ny, nx) / 64; points are drawn until
    one in `acceleration` is measured.

    Parameters
    ----------
    shape
        Image matrix `(ny, nx)`.
    acceleration
        Grid points per measured point, >= 1; beyond what the density reaches, E110.
    generator
        Source of the random numbers.
    """
    ny, nx = shape
    _positive(n_y=ny, n_x=nx, acceleration=acceleration)
    wanted = round(ny * nx / acceleration)
    if not 1 <= wanted <= ny * nx:
        raise ConfigError(110, f"acceleration {acceleration:g} of a {ny} x {nx} matrix is not possible.")
    mask = torch.zeros(shape, dtype=torch.bool)
    deviation = (torch.tensor([ny, nx], dtype=torch.float64) * min(shape) / 64).sqrt()
    missing = wanted
    for _ in range(10_000):
        drawn = torch.randn(missing, 2, dtype=torch.float64, generator=generator) * deviation
        index = drawn.round().long() + torch.tensor([ny // 2, nx // 2])
        inside = ((index >= 0) & (index < torch.tensor([ny, nx]))).all(dim=1)
        mask[index[inside, 0], index[inside, 1]] = True
        missing = wanted - int(mask.sum())
        if missing == 0:
            return mask
    raise ConfigError(110, f"a Gaussian density does not reach acceleration {acceleration:g} on {ny} x {nx} points.")


def _collect(kx: torch.Tensor, ky: torch.Tensor) -> Trajectory:
    """Stack `(shot, read)` coordinates."""
    shot = torch.arange(kx.shape[0])[:, None].expand(kx.shape)
    return Trajectory(torch.stack([kx.reshape(-1), ky.reshape(-1)]), shot.reshape(-1))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(110, f"a trajectory needs {name} > 0, got {value}.")
