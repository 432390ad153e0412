"""Fourier sampling on the grid."""

from __future__ import annotations

import math

import torch

from pogmdm_core.lengths import is_slow
from pogmdm_core.measurement.fourier import Fourier, centred_fft, centred_ifft

_MOST_LINES = 0.4  # of an axis


def line_axis(mask: torch.Tensor) -> int | None:
    """Axis along which lines were left out (0: ky, 1: kx), or None for a two-dimensional pattern."""
    if bool((mask == mask[:, :1]).all()):
        return 0
    if bool((mask == mask[:1, :]).all()):
        return 1
    return None


class CartesianFourier(Fourier):
    """Fourier transform followed by a sampling mask.

    Parameters
    ----------
    mask
        bool `(ky, kx)`, DC centred.

    Notes
    -----
    The normal operator is a periodic convolution. It commutes with shifts, so it needs no centring,
    and when the mask depends on one axis only, transforms along the other cancel exactly. Along an axis whose transform
    is slow a product with the waves of the few lines that were measured is twice as fast on a CPU.
    """

    norm = 1.0  # N is a projection
    backend = "cartesian"
    precondition_bounds = True

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.shape = (int(mask.shape[0]), int(mask.shape[1]))
        self.sample_shape = self.shape
        self.n_samples = int(mask.sum())
        axis = line_axis(mask)
        self._axis = None if axis is None else axis - 2  # images may have axes in front
        pattern = mask if axis is None else mask.narrow(1 - axis, 0, 1)
        self._pattern = torch.fft.ifftshift(pattern).to(torch.float32)
        self._waves = None if self._axis is None else _waves(self._pattern.flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `(..., y, x)` to k-space on the grid `(..., ky, kx)`, zero where not measured."""
        return centred_fft(x) * self.mask

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """K-space `(..., ky, kx)` to zero-filled images `(..., y, x)`."""
        return centred_ifft(y * self.mask)

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images, `(..., y, x)`."""
        found: torch.Tensor
        waves = self._waves
        if waves is not None and x.dtype == waves.dtype:
            found = waves.mH @ (waves @ x) if self._axis == -2 else x @ waves.T @ waves.conj()
        elif self._axis is not None:
            found = torch.fft.ifft(torch.fft.fft(x, dim=self._axis).mul_(self._pattern), dim=self._axis)
        else:
            found = torch.fft.ifft2(torch.fft.fft2(x).mul_(self._pattern))
        return found

    def precondition(self, x: torch.Tensor, weight: float, damping: float) -> torch.Tensor:
        """Approximate inverse of ``weight A^H A + damping`` for coils of unit root-sum-of-squares.

        N is a projection, so this is the inverse of an upper bound (`precondition_bounds`).
        """
        return x / (weight + damping)


def _waves(pattern: torch.Tensor) -> torch.Tensor | None:
    """Rows of the unitary Fourier matrix where `pattern` `(n,)`, DC first, is not 0; None: transforms are faster."""
    n, lines = len(pattern), torch.nonzero(pattern).flatten()
    if pattern.device.type != "cpu" or not is_slow(n) or len(lines) > _MOST_LINES * n:
        return None
    turns = ((lines[:, None] * torch.arange(n)) % n).double() / n
    return torch.polar(torch.full_like(turns, n**-0.5), -2 * math.pi * turns).to(torch.complex64)
