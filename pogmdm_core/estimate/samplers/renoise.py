"""Re-noising: denoise, make the estimate consistent with the data, add fresh noise of the next level.

Fast and accurate in the mean, but no exact posterior sampler: it passes conditional means on, so its spread is smaller
than the posterior's. `langevin` is the honest one.

Source: Chung, Sim & Ye, arXiv 2112.05146 (start from a noised estimate); Chung, Lee & Ye, arXiv 2303.05754 (conjugate
gradients on the denoised estimate).
"""

from __future__ import annotations

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.estimate.samplers.base import Sampler, SamplerState, Task
from pogmdm_core.measurement.encoding import EncodingModel


class Renoise(Sampler):
    """See the module."""

    def step(self, state: SamplerState, task: Task, level: float, next_level: float) -> None:
        """See `Sampler.step`."""
        state.x = _clean(state, task, level) + next_level * task.noise.draw(task.model.fourier.shape)

    def finish(self, state: SamplerState, task: Task, level: float) -> torch.Tensor:
        """Take the last noise off."""
        return _clean(state, task, level)


def _clean(state: SamplerState, task: Task, level: float) -> torch.Tensor:
    """Denoise at a level, then make consistent with the data."""
    denoised = task.prior.denoise(state.x, level)
    return data_step(denoised, state.csm, task.model, level, task.noise_level, task.settings.cg_steps)


def data_step(
    x: torch.Tensor, csm: torch.Tensor, model: EncodingModel, level: float, noise_level: float, n_steps: int
) -> torch.Tensor:
    """Combine an image known to `level` with the data known to `noise_level`.

    argmin_u ||A u - z||^2 / (2 noise_level^2) + ||u - x||^2 / (2 level^2) by conjugate gradients from x.
    """
    operator = model.for_image(csm)
    weight = (level / noise_level) ** 2
    right = weight * operator.combine(model.adjoint_data) + x
    return conjugate_gradient(
        lambda u: weight * operator.normal(u) + u,
        right,
        x,
        n_steps,
        precondition=lambda r: model.fourier.precondition(r, weight, 1.0),
    )
