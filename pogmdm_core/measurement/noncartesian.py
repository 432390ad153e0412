"""Fourier sampling off the grid, and its normal operator as a convolution.

N = E^H E depends on differences of pixel positions only: it is Toeplitz, a convolution with
t[l] = sum_j exp(2 pi i k_j.l / N) / (ny nx). Embedded in a periodic convolution of twice the size it costs
two Fourier transforms, whatever the number of samples, and is exact to rounding.

Source: Fessler et al. 2005, doi:10.1109/TSP.2005.853152; Wajer & Pruessmann 2001 (ISMRM 767).
"""

from __future__ import annotations

from functools import cached_property

import torch

from pogmdm_core.lengths import good_length
from pogmdm_core.measurement.fourier import Fourier
from pogmdm_core.measurement.nufft import lag_nufft, make_nufft, triangle

_NORM_STEPS = 30
_GAP_DENSITY = 0.3  # stands in where no sample is: coils carry information there from the neighbourhood
_NORM_MARGIN = 1.05  # a power iteration approaches the norm from below


class NonCartesianFourier(Fourier):
    """Samples of an image's Fourier transform at arbitrary positions.

    Parameters
    ----------
    trajectory
        `(2, n)` float64, rows kx and ky, cycles per field of view, finite.
    shape
        Image matrix `(ny, nx)`.
    backend
        Of `forward` and `adjoint`; see `make_nufft`.

    Attributes
    ----------
    backend
        What was chosen, in words.
    sample_shape
        Shape of one coil's samples.
    """

    precondition_bounds = False

    def __init__(self, trajectory: torch.Tensor, shape: tuple[int, int], backend: str = "auto") -> None:
        self.trajectory, self.shape = trajectory, shape
        self.n_samples = int(trajectory.shape[1])
        self._nufft = make_nufft(trajectory, shape, backend)
        self.backend = f"toeplitz ({self._nufft.name})"
        self.sample_shape = (self.n_samples,)
        self._kernels: dict[torch.dtype, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `(..., y, x)` to samples `(..., n)`."""
        return self._nufft.forward(x.reshape(-1, *self.shape)).reshape(*x.shape[:-2], self.n_samples)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Samples `(..., n)` to images `(..., y, x)`."""
        return self._nufft.adjoint(y.reshape(-1, self.n_samples)).reshape(*y.shape[:-1], *self.shape)

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images, `(..., y, x)`, by the Toeplitz form."""
        kernel = self._kernel(x.dtype)
        if x.device.type != "cpu":
            return self._convolve(x, kernel)
        # one by one an image stays in the processor's cache: up to twice as fast as the batch
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for image, result in zip(x.reshape(-1, *self.shape), out.view(-1, *self.shape), strict=True):
            result.copy_(self._convolve(image, kernel))
        return out

    def _convolve(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        ny, nx = self.shape
        rows = torch.fft.fft(x, n=kernel.shape[1], dim=-1)
        wide = torch.fft.fft(rows, n=kernel.shape[0], dim=-2).mul_(kernel)
        rows = torch.fft.ifft(wide, dim=-2)[..., :ny, :]
        found: torch.Tensor = torch.fft.ifft(rows, dim=-1)[..., :nx]
        return found

    @cached_property
    def lags(self) -> torch.Tensor:
        """t, complex128 `(2 ny - 1, 2 nx - 1)`, lag 0 in the middle."""
        ny, nx = self.shape
        ones = torch.ones(1, self.n_samples, dtype=torch.complex128, device=self.trajectory.device)
        nufft = lag_nufft(self.trajectory, self.shape, self._nufft.name)
        found: torch.Tensor = nufft.adjoint(ones)[0] * (((2 * ny - 1) * (2 * nx - 1)) ** 0.5 / (ny * nx))
        return found

    def _kernel(self, dtype: torch.dtype) -> torch.Tensor:
        """Spectrum of the periodic convolution; real, because t[-l] = conj(t[l]) for every lag kept."""
        if dtype not in self._kernels:
            ny, nx = self.shape
            wide = self.lags.new_zeros(good_length(2 * ny - 1), good_length(2 * nx - 1))
            wide[: 2 * ny - 1, : 2 * nx - 1] = self.lags
            wide = wide.roll((1 - ny, 1 - nx), (0, 1))
            spectrum = torch.fft.fft2(wide).real.to(dtype)
            # complex, and columns contiguous, as the transforms along them leave what it multiplies: half the time
            self._kernels[dtype] = spectrum.T.contiguous().T
        return self._kernels[dtype]

    @cached_property
    def norm(self) -> float:
        """Bound of the norm of N by power iteration, with a margin."""
        generator = torch.Generator(self.lags.device).manual_seed(0)
        x = torch.randn(*self.shape, generator=generator, device=self.lags.device, dtype=torch.complex64)
        value = 0.0
        for _ in range(_NORM_STEPS):
            x = self.normal(x / torch.linalg.vector_norm(x))
            value = float(torch.linalg.vector_norm(x))
        return _NORM_MARGIN * value

    @cached_property
    def circulant(self) -> torch.Tensor:
        """Spectrum of the periodic convolution nearest to N, float32 `(ky, kx)`, DC first, >= 0.

        It is the density of samples around each grid point, seen through the field of view: what
        preconditions N. (T. Chan 1988, doi:10.1137/0909051.)
        """
        ny, nx = self.shape
        faded = self.lags * triangle(self.shape, self.lags.device)
        folded = self.lags.new_zeros(self.shape)
        for rows, at_y in ((slice(ny - 1, None), 0), (slice(0, ny - 1), 1)):
            for columns, at_x in ((slice(nx - 1, None), 0), (slice(0, nx - 1), 1)):
                folded[at_y:, at_x:] += faded[rows, columns]
        found: torch.Tensor = torch.fft.fft2(folded).real.clamp_min(0).to(torch.float32)
        return found

    def precondition(self, x: torch.Tensor, weight: float, damping: float) -> torch.Tensor:
        """Approximate inverse of ``weight A^H A + damping`` for coils of unit root-sum-of-squares.

        Divides by the density of samples, which varies a hundredfold between the centre and the edge of a
        radial scan: what makes gradient and conjugate-gradient steps slow without it.
        """
        found: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(x) / (weight * (self.circulant + _GAP_DENSITY) + damping))
        return found
