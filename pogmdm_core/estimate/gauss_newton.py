"""Gauss-Newton steps for image and coils at once, from undersampled data alone.

Iteratively regularised Gauss-Newton (IRGNM) on (x, c) with the coils in a weighted Fourier basis,
c = W chat, W = F^-1 (1 + a |k|^2)^(-b/2), that makes them smooth.
Each step solves (DF^H DF + alpha) d = DF^H (z - F(x, c)) - alpha (x, chat) by conjugate gradients;
alpha halves from step to step. The start is x = 1, c = 0; pulling towards zero rather than towards
the start converges in fewer steps and, on objects with large smooth areas, to much better coils.

Source: Uecker, Hohage, Block & Frahm 2008, doi:10.1002/mrm.21691.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.measurement.encoding import EncodingModel, coils_together

_SMOOTH_A, _SMOOTH_B = 220.0, 32.0
_LEAST_WEIGHT = 1e-5  # of a coefficient that is kept
_DATA_NORM = 100.0
_CG_TOLERANCE = 0.1


def gauss_newton(
    model: EncodingModel,
    cg_steps: int = 60,
    full_shape: tuple[int, int] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Image and coils after each Gauss-Newton step, complex64 `(y, x)` and `(coil, y, x)`, without end.

    `full_shape` is the matrix whose pixels say what is smooth (None: the model's). When `should_stop` says so,
    within a step too, for a step of a large scan takes seconds, the step ends as it is.
    """
    b, fourier = model.adjoint_data, model.fourier
    scale = _DATA_NORM / float(torch.linalg.vector_norm(b))
    b = b * scale
    smooth = SmoothCoils(fourier.shape, full_shape or fourier.shape, b.device)
    n_pixels = b[0].numel()

    def parts(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return d[:n_pixels].view(b.shape[1:]), d[n_pixels:].view(len(b), *smooth.shape)

    n_unknowns = n_pixels + len(b) * smooth.shape[0] * smooth.shape[1]
    state = b.new_zeros(n_unknowns)
    state[:n_pixels] = 1.0
    alpha = 1.0
    while True:
        x, chat = parts(state)
        c = smooth.forward(chat)

        def derivative_adjoint(
            seen_of: Callable[[slice], torch.Tensor], x: torch.Tensor = x, c: torch.Tensor = c
        ) -> torch.Tensor:
            """Adjoint of the derivative at (x, c) of coil images that `seen_of` makes, a few coils at a time."""
            found = b.new_zeros(n_unknowns)
            dx, dchat = parts(found)
            for part in coils_together(len(c), x):
                y = seen_of(part)
                for image, coil in zip(y, c[part], strict=True):
                    dx.addcmul_(image, coil.conj())
                dchat[part] = smooth.adjoint(y.mul_(x.conj()))
            return found

        def normal(d: torch.Tensor, x: torch.Tensor = x, c: torch.Tensor = c, alpha: float = alpha) -> torch.Tensor:
            dx, dchat = parts(d)

            def seen(part: slice) -> torch.Tensor:
                return fourier.normal(smooth.forward(dchat[part]).mul_(x).addcmul_(c[part], dx))

            return derivative_adjoint(seen, x, c).add_(d, alpha=alpha)

        def misfit(part: slice, x: torch.Tensor = x, c: torch.Tensor = c) -> torch.Tensor:
            return b[part] - fourier.normal(x * c[part])

        right = derivative_adjoint(misfit) - alpha * state
        update = conjugate_gradient(normal, right, None, cg_steps, _CG_TOLERANCE, n_axes=1, should_stop=should_stop)
        state = state + update
        alpha /= 2
        x, chat = parts(state)
        yield x / scale, smooth.forward(chat)


class SmoothCoils:
    """Coils from few Fourier coefficients: c = F^-1 W chat, W = (1 + a |k|^2)^(-b/2).

    W falls so fast that all but the innermost coefficients count for nothing; only they are kept.

    Parameters
    ----------
    image_shape
        Matrix of the coils `(ny, nx)`.
    full_shape
        Matrix of the same field of view in whose cycles per pixel k is measured.
    device
        Where to work.

    Attributes
    ----------
    shape
        Coefficients of one coil that are kept, `(my, mx)`.
    """

    def __init__(self, image_shape: tuple[int, int], full_shape: tuple[int, int], device: torch.device) -> None:
        self._image_shape = image_shape
        k_most = math.sqrt((_LEAST_WEIGHT ** (-2 / _SMOOTH_B) - 1) / _SMOOTH_A)
        k = [
            torch.fft.fftfreq(n, d=full / n, dtype=torch.float64)
            for n, full in zip(image_shape, full_shape, strict=True)
        ]
        kept = [torch.nonzero(along.abs() <= k_most).squeeze(1) for along in k]
        self.shape = len(kept[0]), len(kept[1])
        ky, kx = (along[at] for along, at in zip(k, kept, strict=True))
        weight = (1 + _SMOOTH_A * (ky[:, None] ** 2 + kx[None, :] ** 2)) ** (-_SMOOTH_B / 2)
        self._rows, self._columns = (at.to(device) for at in kept)
        self._weight = weight.to(device, torch.float32)

    def forward(self, chat: torch.Tensor) -> torch.Tensor:
        """Coefficients `(coil, my, mx)` to coils `(coil, y, x)`."""
        ny, nx = self._image_shape
        narrow = chat.new_zeros(len(chat), ny, self.shape[1])
        narrow[:, self._rows] = chat * self._weight
        wide = chat.new_zeros(len(chat), ny, nx)
        wide[..., self._columns] = torch.fft.ifft(narrow, dim=-2, norm="ortho")
        coils: torch.Tensor = torch.fft.ifft(wide, dim=-1, norm="ortho")
        return coils

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Coil images `(coil, y, x)` to coefficients `(coil, my, mx)`."""
        narrow = torch.fft.fft(y, dim=-1, norm="ortho")[..., self._columns]
        found: torch.Tensor = torch.fft.fft(narrow, dim=-2, norm="ortho")[:, self._rows] * self._weight
        return found
