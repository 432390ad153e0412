"""Charbonnier total variation of a complex image: the classical comparator of the learned prior.

E(x) = weight * sum_p sqrt(|Dx x|^2 + |Dy x|^2 + eps^2) with forward differences, the last difference of a row or
column zero (free boundary). It has the two methods `map_estimate` asks of a prior, so total variation is
solved by the same code, on the same encoding, as the learned prior.

Source: Rudin, Osher & Fatemi 1992, doi:10.1016/0167-2789(92)90242-F; Charbonnier et al. 1997,
doi:10.1109/83.551699; Zach, Kobler & Pock 2025 (arXiv:2501.08662) for its use as comparator.
"""

from __future__ import annotations

import torch

_DIFFERENCES_NORM = 8.0  # largest eigenvalue of D^T D in two dimensions


class TotalVariation:
    """Regulariser with one weight.

    Parameters
    ----------
    weight
        Factor of the energy, > 0; with a noise level of 1 the data term is 1/2 ||A x - z||^2.
    smoothing
        eps, > 0, in units of the image: below it differences are penalised quadratically.
    """

    def __init__(self, weight: float, smoothing: float = 1e-3) -> None:
        self.weight, self.smoothing = weight, smoothing

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        """E of images `(..., y, x)`, one number each."""
        return self.weight * self._magnitude(*_differences(x)).sum((-2, -1))

    def score(self, x: torch.Tensor, level: float) -> torch.Tensor:  # noqa: ARG002 - the energy has no noise level
        """Minus the gradient of E, `(..., y, x)`; `level` is ignored."""
        dy, dx = _differences(x)
        magnitude = self._magnitude(dy, dx)
        return -self.weight * _differences_adjoint(dy / magnitude, dx / magnitude)

    def lipschitz_bound(self, level: float, shape: tuple[int, int]) -> float:  # noqa: ARG002 - as above
        """Bound of the curvature of E."""
        return self.weight * _DIFFERENCES_NORM / self.smoothing

    def _magnitude(self, dy: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(dy.abs() ** 2 + dx.abs() ** 2 + self.smoothing**2)


def _differences(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dy, dx = torch.zeros_like(x), torch.zeros_like(x)
    dy[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    dx[..., :, :-1] = x[..., :, 1:] - x[..., :, :-1]
    return dy, dx


def _differences_adjoint(dy: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(dy)
    out[..., 1:, :] += dy[..., :-1, :]
    out[..., :-1, :] -= dy[..., :-1, :]
    out[..., :, 1:] += dx[..., :, :-1]
    out[..., :, :-1] -= dx[..., :, :-1]
    return out
