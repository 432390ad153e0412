"""Receiver noise: covariance, whitening, coil compression, and an estimate without a noise scan.

Source: Roemer 1990, doi:10.1002/mrm.1910160203; Hansen & Kellman 2015, doi:10.1002/jmri.24687.
"""

from __future__ import annotations

import torch

from pogmdm_core.errors import DataError
from pogmdm_core.frame import KSpaceFrame


def noise_covariance(noise: torch.Tensor) -> torch.Tensor:
    """Covariance of noise readouts, shrunk towards its diagonal when samples are few.

    Parameters
    ----------
    noise
        Noise samples, complex `(coil, n)`, n >= 2.

    Returns
    -------
        Hermitian `(coil, coil)`, complex128, E[n n^H]. The off-diagonal part is scaled by
        1 - min(1, n_coils / n), so that it is positive definite for live channels at any n.
    """
    if noise.ndim != 2 or noise.shape[1] < 2:
        raise DataError(310, f"noise must be (coil, n) with n >= 2, got {tuple(noise.shape)}.")
    noise = noise.to(torch.complex128)
    noise = noise - noise.mean(dim=1, keepdim=True)
    n_coils, n = noise.shape
    cov = noise @ noise.mH / (n - 1)
    keep = 1 - min(1.0, n_coils / n)
    diagonal = torch.diag(torch.diagonal(cov))
    return diagonal + keep * (cov - diagonal)


def whitening_matrix(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix that makes noise white: variance 1 per complex sample, 0.5 per real/imaginary part.

    Parameters
    ----------
    covariance
        Hermitian `(coil, coil)`.

    Returns
    -------
        W, complex128 `(live, coil)` with W cov W^H = I, and the index of the live channels, int64
        `(live,)`. Channels without noise (below 1e-6 of the median variance) are dead and dropped.

    Raises
    ------
    DataError
        E310 when every channel is dead or the covariance is not finite.
    """
    variance = torch.diagonal(covariance).real
    if not bool(torch.isfinite(variance).all()):
        raise DataError(310, "the noise covariance is not finite.", "Check the noise readouts.")
    positive = variance[variance > 0]
    if positive.numel() == 0:
        raise DataError(310, "every channel of the noise scan is dead (zero variance).")
    live = torch.nonzero(variance > 1e-6 * positive.median()).squeeze(1)
    cov = covariance.to(torch.complex128)[live][:, live]
    factor = torch.linalg.cholesky(cov)
    eye = torch.eye(len(live), dtype=torch.complex128, device=cov.device)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    whitener = torch.zeros(len(live), len(variance), dtype=torch.complex128, device=cov.device)
    whitener[:, live] = inverse
    return whitener, live


def compression_matrix(samples: torch.Tensor, n_virtual: int) -> tuple[torch.Tensor, float]:
    """Orthonormal combination of whitened channels that keeps most signal energy (SVD).

    Parameters
    ----------
    samples
        Whitened samples, complex `(coil, n)`.
    n_virtual
        Channels to keep, >= 1; more than there are keeps all.

    Returns
    -------
        `(n_virtual, coil)` complex128 with orthonormal rows (noise stays white), and the share of
        the energy kept, in [0, 1].
    """
    samples = samples.to(torch.complex128)
    values, vectors = torch.linalg.eigh(samples @ samples.mH)
    order = torch.argsort(values, descending=True)[:n_virtual]
    kept = float(values[order].sum() / values.sum().clamp_min(torch.finfo(torch.float64).tiny))
    return vectors[:, order].mH, kept


def estimate_noise_std(kspace: torch.Tensor, mask: torch.Tensor, share: float = 0.1) -> float:
    """Noise per real/imaginary part from the outermost measured samples, when no noise scan exists.

    Parameters
    ----------
    kspace
        `(coil, ky, kx)` complex, centred.
    mask
        `(ky, kx)` bool.
    share
        Share of the measured samples, the farthest from the centre, that is used, in (0, 1].

    Returns
    -------
        Median absolute deviation / 0.6745, robust to remaining signal; an upper estimate where
        objects have energy at the edge of k-space. 0 for all-zero data.
    """
    ny, nx = mask.shape
    ky = (torch.arange(ny, device=mask.device) - ny // 2).float() / ny
    kx = (torch.arange(nx, device=mask.device) - nx // 2).float() / nx
    return _outer_noise(kspace[:, mask], torch.hypot(ky[:, None], kx[None, :])[mask], share)


def estimate_frame_noise(frame: KSpaceFrame) -> float:
    """`estimate_noise_std` of a frame with any trajectory."""
    if frame.mask is not None:
        return estimate_noise_std(frame.kspace, frame.mask)
    kx, ky = frame.positions
    return _outer_noise(frame.kspace, torch.hypot(ky / frame.shape[0], kx / frame.shape[1]).float(), 0.1)


def _outer_noise(samples: torch.Tensor, radius: torch.Tensor, share: float) -> float:
    """Robust standard deviation of the samples `(coil, n)` farthest from the centre."""
    cut = torch.quantile(radius, 1 - share) if radius.numel() < 2**24 else radius.median()
    outer = torch.view_as_real(samples[:, radius >= cut])
    return float(outer.abs().median() / 0.6745)
