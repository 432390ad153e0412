"""Annealed Langevin, preconditioned: the honest posterior under the model when run long.

Source: Blumenthal et al., arXiv 2512.05791 (preconditioned Langevin).
"""

from __future__ import annotations

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.estimate.samplers.base import Sampler, SamplerState, Task
from pogmdm_core.settings import SamplerSettings


class Langevin(Sampler):
    """Its states are samples of the posterior themselves."""

    def step(self, state: SamplerState, task: Task, level: float, next_level: float) -> None:
        """One unadjusted Langevin step on the posterior at the next level, preconditioned by P.

        P = (A^H A / eta^2 + I / level^2)^-1 bounds the inverse curvature of the log posterior. Noise of
        covariance P comes from the same linear system as the step: its right side gets noise of
        covariance P^-1.
        """
        del level  # the step is taken on the posterior at the next one
        model, noise = task.model, task.noise
        operator, shape = model.for_image(state.csm), model.fourier.shape
        weight, damping = task.noise_level**-2, next_level**-2
        gradient = task.prior.score(state.x, next_level) - weight * (
            operator.normal(state.x) - operator.combine(model.adjoint_data)
        )
        in_data = operator.adjoint(noise.draw((model.adjoint_data.shape[0], *model.fourier.sample_shape)))
        fresh = weight**0.5 * in_data + damping**0.5 * noise.draw(shape)
        step = task.settings.langevin_step
        right = step * gradient + (2 * step) ** 0.5 * fresh

        def inverse(u: torch.Tensor) -> torch.Tensor:
            return weight * operator.normal(u) + damping * u

        def precondition(r: torch.Tensor) -> torch.Tensor:
            return model.fourier.precondition(r, weight, damping)

        start = precondition(right)
        state.x = state.x + conjugate_gradient(inverse, right, start, task.settings.cg_steps, precondition=precondition)

    def gentler(self, settings: SamplerSettings, end_level: float) -> SamplerSettings:  # noqa: ARG002 - half the step
        """Half the step."""
        return settings.model_copy(update={"langevin_step": settings.langevin_step / 2})
