"""Density compensation: how much of k-space each sample stands for.

Weights w with C w = 1 at every sample, where C smooths with the transform of the field of view's
autocorrelation (a positive kernel, one grid step wide): the fixed point of w <- w / (C w). A fully
sampled grid has w = 1; a lonely sample stands for no more than its own cell.

The weights shape gridded images and the image scale. The likelihood has none: for white noise
every sample counts the same.

Source: Pipe & Menon 1999, doi:10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V.
"""

from __future__ import annotations

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.fourier import Fourier
from pogmdm_core.measurement.nufft import Nufft, lag_nufft, triangle

_STEPS = 15  # changes the image by less than 0.2 % from then on


def density_weights(trajectory: torch.Tensor, shape: tuple[int, int], n_steps: int = _STEPS) -> torch.Tensor:
    """Compute weights from the positions alone.

    Parameters
    ----------
    trajectory
        `(2, n)` float64, rows kx and ky, cycles per field of view, finite.
    shape
        Image matrix `(ny, nx)`.
    n_steps
        Fixed-point steps.

    Returns
    -------
        `(n,)` float64, > 0, in grid cells.
    """
    nufft = lag_nufft(trajectory, shape)
    weights = torch.ones(trajectory.shape[1], dtype=torch.float64, device=trajectory.device)
    for _ in range(n_steps):
        weights = weights / _smoothed(nufft, weights, shape)
    return weights


def frame_weights(frame: KSpaceFrame) -> torch.Tensor:
    """Weights of a non-Cartesian frame, float64 `(n,)`, in grid cells: the supplied ones, rescaled, or computed."""
    if frame.density is None:
        return density_weights(frame.positions, frame.shape)
    smoothed = _smoothed(lag_nufft(frame.positions, frame.shape), frame.density, frame.shape)
    # the factor that brings C w nearest to 1 where the weights are
    return frame.density * (frame.density @ smoothed) / (frame.density @ smoothed.square())


def gridded_coil_images(frame: KSpaceFrame, fourier: Fourier) -> torch.Tensor:
    """Density-compensated adjoint of the data, complex64 `(coil, y, x)`; zero-filled for Cartesian frames."""
    if frame.is_cartesian:
        return fourier.adjoint(frame.kspace)
    return fourier.adjoint(frame.kspace * frame_weights(frame).to(torch.float32))


def _smoothed(nufft: Nufft, weights: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """C w at the samples, `(n,)` float64."""
    lags = nufft.adjoint(weights.to(torch.complex64)[None])
    ny, nx = shape
    scale = (2 * ny - 1) * (2 * nx - 1) / (ny * nx)
    smoothed = nufft.forward(lags * triangle(shape, weights.device).to(torch.float32))[0].real.double() * scale
    # never below the sample's own share, which rounding could take away
    return torch.maximum(smoothed, 0.5 * weights)
