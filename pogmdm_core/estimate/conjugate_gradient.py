"""Conjugate gradients for Hermitian positive definite systems, batched."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pogmdm_core.measurement.linear import inner


def conjugate_gradient(
    apply: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    start: torch.Tensor | None,
    n_steps: int,
    tolerance: float = 0.0,
    n_axes: int = 2,
    precondition: Callable[[torch.Tensor], torch.Tensor] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> torch.Tensor:
    """Solve apply(x) = right.

    Parameters
    ----------
    apply
        Hermitian positive definite linear map.
    right, start
        Right side and first guess (None: zero), complex; the last `n_axes` axes form one system, axes before are a
        batch.
    n_steps
        Steps at most.
    tolerance
        Stop when every system's residual is below this times its initial residual; 0 makes all steps.
    precondition
        Hermitian positive definite approximation of the inverse of `apply`, or None.
    should_stop
        Asked before every step; what is reached by then is returned.

    Returns
    -------
        The approximate solution, shape of `right`.
    """
    x = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - apply(x)
    energy = inner(residual, residual, n_axes)
    goal = tolerance**2 * energy
    tiny = torch.finfo(energy.dtype).tiny
    direction, product = torch.zeros_like(residual), torch.ones_like(energy)
    for _ in range(n_steps):
        if tolerance and bool((energy <= goal.clamp_min(tiny)).all()):
            break  # asked only where it is wanted: a graphics card would have to wait for the answer
        if should_stop is not None and should_stop():
            break
        shaped = residual if precondition is None else precondition(residual)
        previous, product = product, energy if precondition is None else inner(residual, shaped, n_axes)
        direction = shaped + (product / previous.clamp_min(tiny)) * direction
        applied = apply(direction)
        step = product / inner(direction, applied, n_axes).clamp_min(tiny)
        x = x + step * direction
        residual = residual - step * applied
        energy = inner(residual, residual, n_axes)
    return x
