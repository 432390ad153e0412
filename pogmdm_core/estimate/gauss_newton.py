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
from functools import partial

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.measurement.encoding import EncodingModel, coils_together
from pogmdm_core.measurement.fourier import Fourier

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
    # unknowns in one vector: the image's pixels, then the coefficients of the coils
    state = b.new_zeros(smooth.n_unknowns(len(b)))
    image, _ = smooth.split(state)
    image.fill_(1.0)
    alpha = 1.0
    while True:
        x, chat = smooth.split(state)
        at = _Derivative(fourier, smooth, x, smooth.forward(chat))
        right = at.adjoint(partial(at.misfit, b)) - alpha * state
        update = conjugate_gradient(
            partial(at.normal, damping=alpha),
            right,
            None,
            cg_steps,
            _CG_TOLERANCE,
            n_axes=1,
            should_stop=should_stop,
        )
        state = state + update
        alpha /= 2
        x, chat = smooth.split(state)
        yield x / scale, smooth.forward(chat)


class _Derivative:
    """DF, the derivative of F(x, c) by image and coefficients, at an image `(y, x)` and coils `(coil, y, x)`.

    What belongs to coil images is handled a few coils at once.
    """

    def __init__(self, fourier: Fourier, smooth: SmoothCoils, x: torch.Tensor, c: torch.Tensor) -> None:
        self._fourier, self._smooth, self._x, self._c = fourier, smooth, x, c
        # kept, for every conjugate-gradient step multiplies by them
        self._x_conjugate, self._c_conjugate = x.conj().resolve_conj(), c.conj().resolve_conj()

    def adjoint(self, seen: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """Adjoint without F^H, of the coil images `(some, y, x)` that `seen` makes: one vector of unknowns."""
        found = self._x.new_zeros(self._smooth.n_unknowns(len(self._c)))
        dx, dchat = self._smooth.split(found)
        for part in coils_together(len(self._c), self._x):
            y = seen(part)
            for image, coil in zip(y, self._c_conjugate[part], strict=True):
                dx.addcmul_(image, coil)
            dchat[part] = self._smooth.adjoint(y.mul_(self._x_conjugate))
        return found

    def misfit(self, b: torch.Tensor, part: slice) -> torch.Tensor:
        """F^H (z - F(x, c)) of some coils, with b = F^H z of all."""
        return b[part] - self._fourier.normal(self._x * self._c[part])

    def normal(self, d: torch.Tensor, damping: float) -> torch.Tensor:
        """(DF^H DF + damping) d."""
        dx, dchat = self._smooth.split(d)

        def seen(part: slice) -> torch.Tensor:
            return self._fourier.normal(self._smooth.forward(dchat[part]).mul_(self._x).addcmul_(self._c[part], dx))

        return self.adjoint(seen).add_(d, alpha=damping)


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

    def n_unknowns(self, n_coils: int) -> int:
        """Pixels of an image and coefficients of its coils."""
        return math.prod(self._image_shape) + n_coils * math.prod(self.shape)

    def split(self, unknowns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of a vector of unknowns: image `(y, x)` and coefficients `(coil, my, mx)`."""
        n_pixels = math.prod(self._image_shape)
        return unknowns[:n_pixels].view(self._image_shape), unknowns[n_pixels:].view(-1, *self.shape)

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
