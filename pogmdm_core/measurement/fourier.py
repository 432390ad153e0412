"""Fourier sampling of images: what the scanner measures of one coil image.

All transforms are centred and unitary: DC of an `(ny, nx)` grid is at `(ny // 2, nx // 2)`.
"""

from __future__ import annotations

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.linear import LinearOperator
from pogmdm_core.measurement.noncartesian import NonCartesianFourier

_AXES = (-2, -1)


def centred_fft(image: torch.Tensor, axes: tuple[int, ...] = _AXES) -> torch.Tensor:
    """Unitary centred Fourier transform over `axes`."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho"), axes)


def centred_ifft(kspace: torch.Tensor, axes: tuple[int, ...] = _AXES) -> torch.Tensor:
    """Inverse of `centred_fft`."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho"), axes)


def line_axis(mask: torch.Tensor) -> int | None:
    """Axis along which lines were left out (0: ky, 1: kx), or None for a two-dimensional pattern."""
    if bool((mask == mask[:, :1]).all()):
        return 0
    if bool((mask == mask[:1, :]).all()):
        return 1
    return None


class CartesianFourier(LinearOperator):
    """Fourier transform followed by a sampling mask.

    Parameters
    ----------
    mask
        bool `(ky, kx)`, DC centred.

    Notes
    -----
    The normal operator is a periodic convolution. It commutes with shifts, so it needs no centring,
    and when the mask depends on one axis only, transforms along the other cancel exactly.
    """

    norm = 1.0
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `(..., y, x)` to k-space on the grid `(..., ky, kx)`, zero where not measured."""
        return centred_fft(x) * self.mask

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """K-space `(..., ky, kx)` to zero-filled images `(..., y, x)`."""
        return centred_ifft(y * self.mask)

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images, `(..., y, x)`."""
        if self._axis is not None:
            return torch.fft.ifft(torch.fft.fft(x, dim=self._axis).mul_(self._pattern), dim=self._axis)
        return torch.fft.ifft2(torch.fft.fft2(x).mul_(self._pattern))

    def precondition(self, x: torch.Tensor, weight: float, damping: float) -> torch.Tensor:
        """Approximate inverse of ``weight A^H A + damping`` for coils of unit root-sum-of-squares.

        N is a projection, so this is the inverse of an upper bound (`precondition_bounds`).
        """
        return x / (weight + damping)


Fourier = CartesianFourier | NonCartesianFourier


def fourier_operator(frame: KSpaceFrame) -> Fourier:
    """Choose the Fourier operator that belongs to a frame."""
    if frame.mask is not None:
        return CartesianFourier(frame.mask)
    return NonCartesianFourier(frame.positions, frame.shape)
