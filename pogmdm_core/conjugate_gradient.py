"""Conjugate gradients for Hermitian positive definite systems, batched."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pogmdm_core.operators.linear import inner


def conjugate_gradient(
    apply: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    start: torch.Tensor,
    n_steps: int,
    tolerance: float = 0.0,
    n_axes: int = 2,
) -> torch.Tensor:
    """Solve apply(x) = right.

    Parameters
    ----------
    apply
        Hermitian positive definite linear map.
    right, start
        Right side and first guess, complex; the last `n_axes` axes form one system, axes before are a batch.
    n_steps
        Steps at most.
    tolerance
        Stop when every system's residual is below this times its initial residual.

    Returns
    -------
        The approximate solution, shape of `right`.
    """
    x = start
    residual = right - apply(x)
    direction = residual
    energy = inner(residual, residual, n_axes)
    goal = tolerance**2 * energy
    tiny = torch.finfo(energy.dtype).tiny
    for _ in range(n_steps):
        if bool((energy <= goal.clamp_min(tiny)).all()):
            break
        image = apply(direction)
        step = energy / inner(direction, image, n_axes).clamp_min(tiny)
        x = x + step * direction
        residual = residual - step * image
        previous, energy = energy, inner(residual, residual, n_axes)
        direction = residual + (energy / previous.clamp_min(tiny)) * direction
    return x
