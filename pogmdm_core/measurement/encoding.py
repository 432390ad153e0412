"""The bilinear measurement model z_c = F(csm_c x) + noise, its misfit and both partial gradients.

f(x, csm) = 1/2 sum_c || F(csm_c x) - z_c ||^2
grad_x f = sum_c conj(csm_c) (N(csm_c x) - b_c)            (eq. 10 of the paper with the sign of -log p)
grad_csm_c f = conj(x) (N(csm_c x) - b_c)                  (eq. 12, sign and conjugate corrected)

with N = F^H F and b = F^H z. Only N and b are needed per iteration, so the cost does not depend on
the number of samples. Gradients follow torch's convention (d/dRe + i d/dIm).
"""

from __future__ import annotations

from functools import cached_property

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.cartesian import CartesianFourier
from pogmdm_core.measurement.density import gridded_coil_images
from pogmdm_core.measurement.fourier import Fourier
from pogmdm_core.measurement.linear import LinearOperator, Shape
from pogmdm_core.measurement.noncartesian import NonCartesianFourier

_NEAR_BYTES = 2**21


def fourier_operator(frame: KSpaceFrame) -> Fourier:
    """Choose the Fourier operator that belongs to a frame."""
    if frame.mask is not None:
        return CartesianFourier(frame.mask)
    return NonCartesianFourier(frame.positions, frame.shape)


class ImageOperator(LinearOperator):
    """The model for fixed coils: image `(..., y, x)` to samples of all coils `(..., coil, ...)`."""

    def __init__(self, fourier: Fourier, csm: torch.Tensor) -> None:
        self.fourier, self.csm = fourier, csm

    @property
    def domain(self) -> Shape:
        """Image matrix."""
        return self.fourier.domain

    @property
    def range(self) -> Shape:
        """Coils, and samples of each."""
        return (self.csm.shape[-3], *self.fourier.range)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """F(csm_c x)."""
        return self.fourier.forward(self.csm * x.unsqueeze(-3))

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Sum over coils of conj(csm_c) F^H y_c."""
        return self.combine(self.fourier.adjoint(y))

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over coils of conj(csm_c) N(csm_c x), a few coils at a time."""
        csm, conjugate = self.csm, self._conjugate
        total = torch.zeros_like(x * csm[..., 0, :, :])
        for part in coils_together(csm.shape[-3], x):
            seen = self.fourier.normal(csm[..., part, :, :] * x.unsqueeze(-3))
            for image, weight in zip(seen.unbind(-3), conjugate[..., part, :, :].unbind(-3), strict=True):
                total.addcmul_(image, weight)
        return total

    def dominant(self, n_coils: int) -> ImageOperator:
        """Return an operator whose `normal` is nearly this one's for a share of the cost: to guess solutions with.

        Its coils are the `n_coils` combinations of these `(coil, y, x)` that hold the most, scaled to the whole.
        """
        if n_coils >= len(self.csm):
            return self
        flat = self.csm.flatten(1)
        energies, combinations = torch.linalg.eigh(flat @ flat.conj().T)
        share = energies[-n_coils:].sum() / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        found = (combinations[:, -n_coils:].conj().T @ flat) / share.sqrt()
        return ImageOperator(self.fourier, found.reshape(n_coils, *self.csm.shape[1:]))

    @cached_property
    def _conjugate(self) -> torch.Tensor:
        """conj(csm), kept: multiplying by a conjugate view takes twice as long."""  # noqa: D403 - a formula
        return self.csm.conj().resolve_conj()

    def combine(self, coil_images: torch.Tensor) -> torch.Tensor:
        """Sum over coils of conj(csm_c) times coil images `(..., coil, y, x)`: with b, A^H z."""
        return (self.csm.conj() * coil_images).sum(-3)


class CoilOperator(LinearOperator):
    """The model for a fixed image: coils `(..., coil, y, x)` to samples of all coils."""

    def __init__(self, fourier: Fourier, image: torch.Tensor, n_coils: int) -> None:
        self.fourier, self.image = fourier, image.unsqueeze(-3)
        self._n_coils = n_coils

    @property
    def domain(self) -> Shape:
        """Coils on the image matrix."""
        return (self._n_coils, *self.fourier.domain)

    @property
    def range(self) -> Shape:
        """Coils, and samples of each."""
        return (self._n_coils, *self.fourier.range)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """F(csm_c image)."""
        return self.fourier.forward(x * self.image)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """conj(image) F^H y_c."""  # noqa: D403 - a formula
        return self.image.conj() * self.fourier.adjoint(y)

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """conj(image) N(csm_c image)."""  # noqa: D403 - a formula
        return self.image.conj() * self.fourier.normal(x * self.image)


class EncodingModel:
    """Data and operator of one frame.

    Parameters
    ----------
    frame
        Whitened frame. Data are divided by `scale`.
    scale
        Intensity that shall be 1 in the image.

    Attributes
    ----------
    fourier
        F; `fourier.norm` bounds the norm of N.
    adjoint_data
        b = F^H z, complex64 `(coil, y, x)`: for Cartesian frames the zero-filled coil images.
    n_measured
        Complex samples over all coils.
    frame, scale
        As given.
    coil_images
        Coil images without any prior, complex64 `(coil, y, x)`: b, with density compensation off the grid.
    """

    def __init__(self, frame: KSpaceFrame, scale: float = 1.0) -> None:
        self.fourier = fourier_operator(frame)
        self.frame, self.scale = frame, scale
        self._data = frame.kspace / scale
        self.adjoint_data = self.fourier.adjoint(self._data)
        self.n_measured = self.fourier.n_samples * frame.n_coils

    def without(self, group: torch.Tensor) -> EncodingModel:
        """Return the model of the same frame without some samples, bool, `(ky, kx)` or `(n,)`, True where left out."""
        return EncodingModel(self.frame.subset(~group.to(self._data.device)), self.scale)

    @cached_property
    def coil_images(self) -> torch.Tensor:
        """See the class."""
        return gridded_coil_images(self.frame, self.fourier) / self.scale

    def for_image(self, csm: torch.Tensor) -> ImageOperator:
        """Linear operator of the image with coils `(..., coil, y, x)` held fixed."""
        return ImageOperator(self.fourier, csm)

    def for_csm(self, image: torch.Tensor) -> CoilOperator:
        """Linear operator of the coils with the image `(..., y, x)` held fixed."""
        return CoilOperator(self.fourier, image, self.frame.n_coils)

    def residual(self, x: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
        """N(csm_c x) - b_c, `(..., coil, y, x)`."""
        return self.fourier.normal(csm * x.unsqueeze(-3)) - self.adjoint_data

    def grad_image(self, x: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
        """Gradient of the misfit with respect to the image, `(..., y, x)`."""
        return self.for_image(csm).combine(self.residual(x, csm))

    def grad_csm(self, x: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
        """Gradient of the misfit with respect to the coils, `(..., coil, y, x)`."""
        return x.conj().unsqueeze(-3) * self.residual(x, csm)

    def residual_squares(self, x: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
        """|F(csm x) - z|^2 of every sample per real/imaginary part, mean over coils, float64 `(n,)`, one image."""
        difference = self.for_image(csm).forward(x) - self._data
        squares = (difference.real.double() ** 2 + difference.imag.double() ** 2).mean(0) / 2
        return squares if self.frame.mask is None else squares[self.frame.mask]

    def residual_std(self, x: torch.Tensor, csm: torch.Tensor) -> float:
        """Root mean square of F(csm x) - z per real/imaginary part, for one image `(y, x)`."""
        found: float = float(self.residual_squares(x, csm).mean()) ** 0.5
        return found


def coils_together(n_coils: int, image: torch.Tensor) -> list[slice]:
    """Coils to be handled at once for images like `image` `(..., y, x)`: on a CPU so few that they stay near it.

    Passes over all coils at a time take up to three times as long there, for they wait for the memory.
    """
    n_bytes = image.numel() * image.element_size()
    together = max(1, _NEAR_BYTES // n_bytes) if image.device.type == "cpu" else n_coils
    return [slice(first, min(first + together, n_coils)) for first in range(0, n_coils, together)]


def root_sum_of_squares(coil_images: torch.Tensor) -> torch.Tensor:
    """Root of the sum of squared magnitudes over the coil axis: `(..., coil, y, x)` to `(..., y, x)`."""
    found: torch.Tensor = torch.linalg.vector_norm(coil_images, dim=-3)
    return found
