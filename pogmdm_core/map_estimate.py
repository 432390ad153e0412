"""Maximum a-posteriori image for fixed coils.

Minimises 1/(2 eta^2) sum_c ||F(csm_c x) - z_c||^2 + E(x, level) with Nesterov's accelerated
gradient method, adaptive restart and a stopping rule. eta is the noise per real/imaginary part.

Source: Nesterov 1983; O'Donoghue & Candes 2015, doi:10.1007/s10208-013-9150-3 (restart).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pogmdm_core.operators.encoding import EncodingModel
from pogmdm_core.operators.linear import inner
from pogmdm_core.prior.model import Prior


@dataclass(frozen=True)
class MapEstimate:
    """MAP image `(y, x)` complex64, iterations done, and the last relative change."""

    image: torch.Tensor
    n_steps: int
    change: float


def level_for(noise_level: float) -> float:
    """Lowest prior level worth using at a noise level: 1.3 times it, within [0.015, 0.05]."""
    return min(max(1.3 * noise_level, 0.015), 0.05)


def map_estimate(
    model: EncodingModel,
    prior: Prior,
    csm: torch.Tensor,
    start: torch.Tensor,
    noise_level: float,
    level: float,
    n_steps: int = 200,
    tolerance: float = 1e-4,
    report: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> MapEstimate:
    """Compute the MAP image.

    Parameters
    ----------
    model
        Data in units where the image is about 1.
    csm
        Coils `(coil, y, x)`, unit root-sum-of-squares.
    start
        First image, complex `(y, x)`.
    noise_level
        eta, > 0, units of the image scale.
    level
        Noise level at which the prior is taken.
    n_steps, tolerance
        Stop after `n_steps` or when the image changes by less than `tolerance` (relative) per step.
    report, should_stop
        Called with (step, n_steps); asked between steps.
    """
    weight = 1 / noise_level**2
    step_size = 1 / (weight * model.fourier.norm + prior.lipschitz_bound(level, model.fourier.shape))
    operator = model.for_image(csm)
    data = operator.combine(model.adjoint_data)
    x = y = start
    momentum, change, step = 1.0, float("inf"), 0
    for step in range(1, n_steps + 1):
        gradient = weight * (operator.normal(y) - data) - prior.score(y, level)
        new = y - step_size * gradient
        if float(inner(y - new, new - x, 2)) > 0:
            momentum = 1.0
        next_momentum = 0.5 * (1 + (1 + 4 * momentum**2) ** 0.5)
        y = new + ((momentum - 1) / next_momentum) * (new - x)
        change = float(torch.linalg.vector_norm(new - x) / torch.linalg.vector_norm(new).clamp_min(1e-30))
        x, momentum = new, next_momentum
        if report is not None:
            report(step, n_steps)
        if change < tolerance or (should_stop is not None and should_stop()):
            break
    return MapEstimate(x, step, change)
