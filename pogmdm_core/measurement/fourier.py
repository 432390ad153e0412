"""Fourier sampling of images: what the scanner measures of one coil image.

All transforms are centred and unitary: DC of an `(ny, nx)` grid is at `(ny // 2, nx // 2)`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from pogmdm_core.measurement.linear import LinearOperator, Shape

_AXES = (-2, -1)


def centred_fft(image: torch.Tensor, axes: tuple[int, ...] = _AXES) -> torch.Tensor:
    """Unitary centred Fourier transform over `axes`."""
    corner = torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho")
    kspace: torch.Tensor = torch.fft.fftshift(corner, axes)
    return kspace


def centred_ifft(kspace: torch.Tensor, axes: tuple[int, ...] = _AXES) -> torch.Tensor:
    """Inverse of `centred_fft`."""
    corner = torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho")
    image: torch.Tensor = torch.fft.fftshift(corner, axes)
    return image


class Fourier(LinearOperator):
    """Samples of images' Fourier transforms: the grid's (`.cartesian`), others (`.noncartesian`), or your own.

    Attributes
    ----------
    shape
        Image matrix `(ny, nx)`: the domain.
    sample_shape
        Shape of one coil's samples: the range.
    n_samples
        Samples of one coil that were measured.
    backend
        How it is computed, in words.
    precondition_bounds
        Whether `precondition` is the inverse of an upper bound.
    """

    shape: tuple[int, int]
    sample_shape: Shape
    n_samples: int
    backend: str
    precondition_bounds: bool

    @property
    def domain(self) -> Shape:
        """See `LinearOperator`."""
        return self.shape

    @property
    def range(self) -> Shape:
        """See `LinearOperator`."""
        return self.sample_shape

    @property
    @abstractmethod
    def norm(self) -> float:
        """Upper bound of the norm of the normal operator."""

    @abstractmethod
    def precondition(self, x: torch.Tensor, weight: float, damping: float) -> torch.Tensor:
        """Approximate inverse of ``weight A^H A + damping`` for coils of unit root-sum-of-squares."""
