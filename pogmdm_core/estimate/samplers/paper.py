"""The paper's Algorithm 1, signs corrected: predictor, data step, corrector(s), each followed by a data step.

Notation (paper -> here): lambda -> `data_step_size`, mu -> the coils' `smoothness` (`coil_update`), r ->
`_CORRECTOR_RATIO`.

Source: Nagler, Zach & Pock, arXiv 2501.08662, Algorithm 1.
"""

from __future__ import annotations

import torch

from pogmdm_core.estimate.samplers.base import Sampler, SamplerState, Task

_CORRECTOR_RATIO = 0.16  # signal-to-noise ratio r of the Langevin corrector
_MAX_CORRECTOR_STEP = 0.5  # times level^2: keeps the step finite where the score vanishes


class Paper(Sampler):
    """See the module."""

    def step(self, state: SamplerState, task: Task, level: float, next_level: float) -> None:
        """One level of Algorithm 1: predictor, data step, corrector(s), each followed by a data step."""
        model, prior, noise, settings = task.model, task.prior, task.noise, task.settings
        shape = model.fourier.shape
        drop = level**2 - next_level**2
        annealed = next_level**2 / (next_level**2 + task.noise_level**2)
        data_step_size = (annealed if settings.likelihood == "annealed" else 1.0) / model.fourier.norm

        def descend() -> None:
            state.x = state.x - data_step_size * model.grad_image(state.x, state.csm)

        state.x = state.x + drop * prior.score(state.x, level) + drop**0.5 * noise.draw(shape)
        descend()
        for _ in range(settings.corrector):
            score, fresh = prior.score(state.x, next_level), noise.draw(shape)
            step = _corrector_step(score, fresh, next_level)
            state.x = state.x + _by_part(step, score) + _by_part((2 * step).sqrt(), fresh)
            descend()

    def finish(self, state: SamplerState, task: Task, level: float) -> torch.Tensor:
        """Take the last noise off."""
        return task.prior.denoise(state.x, level)


def _corrector_step(score: torch.Tensor, fresh: torch.Tensor, level: float) -> torch.Tensor:
    """Langevin step 2 (r ||xi|| / ||score||)^2 per sample and part, `(sample, 1, 1, 2)`."""
    norm_noise = torch.view_as_real(fresh).square().sum(dim=(1, 2), keepdim=True)
    norm_score = torch.view_as_real(score).square().sum(dim=(1, 2), keepdim=True)
    step = 2 * _CORRECTOR_RATIO**2 * norm_noise / norm_score.clamp_min(1e-30)
    return step.clamp_max(_MAX_CORRECTOR_STEP * level**2)


def _by_part(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Scale real and imaginary parts by factors of their own."""
    return torch.view_as_complex((factor * torch.view_as_real(x)).contiguous())
