"""Posterior samplers: re-noising, preconditioned Langevin, and the paper's Algorithm 1, signs corrected.

Notation (paper -> here): x -> `x`, sigma_c -> `csm`, zeta_i -> `level`, xi -> fresh noise,
lambda -> `data_step`, mu -> `smoothness`, r -> `_CORRECTOR_RATIO`. All samples of a batch are
advanced together; each draws its noise from a generator of its own, so a sample does not depend on
its neighbours.

Source: Nagler, Zach & Pock, arXiv 2501.08662, Algorithm 1; Chung, Sim & Ye, arXiv 2112.05146
(start from a noised estimate); Chung, Lee & Ye, arXiv 2303.05754 (conjugate gradients on the
denoised estimate); Blumenthal et al., arXiv 2512.05791 (preconditioned Langevin).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.estimate.map_estimate import level_for
from pogmdm_core.estimate.samplers.schedule import geometric_levels
from pogmdm_core.estimate.smoothness import prox_smoothness
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.prior.model import Prior
from pogmdm_core.settings import CoilSettings, SamplerSettings

_CORRECTOR_RATIO = 0.16  # signal-to-noise ratio r of the Langevin corrector
_MAX_CORRECTOR_STEP = 0.5  # times level^2: keeps the step finite where the score vanishes
_DIVERGED = 1e3  # image magnitude, units of the image scale, that no sample may reach

Report = Callable[[int, int], None]


@dataclass
class SamplerState:
    """What the loop carries: images `(sample, y, x)` and coils `(sample or 1, coil, y, x)`."""

    x: torch.Tensor
    csm: torch.Tensor


class Diverged(Exception):  # noqa: N818 - a condition, turned into a status by `reconstruct`
    """Sampling left the finite range at a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"diverged at step {step}")


class SampleNoise:
    """Complex Gaussian noise, variance 1 per real and imaginary part, one generator per sample."""

    def __init__(self, seed: int, samples: range, device: torch.device) -> None:
        self._device = device
        self._generators = [
            # distinct for all (seed, sample) with sample < 2^20
            torch.Generator(device=device).manual_seed((seed << 20) + i)
            for i in samples
        ]

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise for every sample of the batch, complex64 `(sample, *shape)`."""
        parts = [torch.randn(*shape, 2, generator=g, device=self._device) for g in self._generators]
        return torch.view_as_complex(torch.stack(parts))


@dataclass(frozen=True)
class _Task:
    """What stays the same from step to step."""

    model: EncodingModel
    prior: Prior
    noise: SampleNoise
    noise_level: float
    settings: SamplerSettings


def sample(
    model: EncodingModel,
    prior: Prior,
    start: torch.Tensor,
    csm: torch.Tensor,
    noise_level: float,
    samples: range,
    settings: SamplerSettings,
    coils: CoilSettings,
    report: Report | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SamplerState | None:
    """Draw a batch of posterior samples.

    Parameters
    ----------
    model
        Data in units where the image is about 1.
    start
        Image that is noised to the first level, complex `(y, x)`.
    csm
        Coils `(coil, y, x)`, unit root-sum-of-squares.
    noise_level
        eta: noise per real/imaginary part, units of the image scale.
    samples
        Indices of the samples to draw (they select the random numbers).
    settings, coils
        See there.
    report, should_stop
        Called with (step, n_steps); asked between steps.

    Returns
    -------
        Final images and coils, or None when stopped.

    Raises
    ------
    Diverged
        An image is no longer finite or has left the range of images.
    """
    levels = geometric_levels(settings.start_level, settings.end_level or level_for(noise_level), settings.n_steps)
    task = _Task(model, prior, SampleNoise(settings.seed, samples, start.device), noise_level, settings)
    state = SamplerState(start + levels[0] * task.noise.draw(model.fourier.shape), csm.unsqueeze(0))
    advance = _STEPS[settings.method]
    for step in range(settings.n_steps):
        advance(state, task, levels[step], levels[step + 1])
        if coils.update_every and (step + 1) % coils.update_every == 0:
            update_coils(state, model, coils.smoothness, coils.boundary)
        if not bool((torch.view_as_real(state.x).abs().amax() < _DIVERGED).all()):
            raise Diverged(step)
        if report is not None:
            report(step + 1, settings.n_steps)
        if should_stop is not None and should_stop():
            return None
    if settings.method == "renoise":
        state.x = _clean(state, task, levels[-1])
    elif settings.method == "paper":
        state.x = prior.denoise(state.x, levels[-1])
    return state  # langevin's states are samples of the posterior themselves


def _renoise_step(state: SamplerState, task: _Task, level: float, next_level: float) -> None:
    """Denoise, make the estimate consistent with the data, add fresh noise of the next level.

    Fast and accurate in the mean, but no exact posterior sampler: it passes conditional means on, so
    its spread is smaller than the posterior's. `_langevin_step` is the honest one.
    """
    state.x = _clean(state, task, level) + next_level * task.noise.draw(task.model.fourier.shape)


def _clean(state: SamplerState, task: _Task, level: float) -> torch.Tensor:
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


def _langevin_step(state: SamplerState, task: _Task, level: float, next_level: float) -> None:
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


def _paper_step(state: SamplerState, task: _Task, level: float, next_level: float) -> None:
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


def _corrector_step(score: torch.Tensor, fresh: torch.Tensor, level: float) -> torch.Tensor:
    """Langevin step 2 (r ||xi|| / ||score||)^2 per sample and part, `(sample, 1, 1, 2)`."""
    norm_noise = torch.view_as_real(fresh).square().sum(dim=(1, 2), keepdim=True)
    norm_score = torch.view_as_real(score).square().sum(dim=(1, 2), keepdim=True)
    step = 2 * _CORRECTOR_RATIO**2 * norm_noise / norm_score.clamp_min(1e-30)
    return step.clamp_max(_MAX_CORRECTOR_STEP * level**2)


def _by_part(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Scale real and imaginary parts by factors of their own."""
    return torch.view_as_complex((factor * torch.view_as_real(x)).contiguous())


def update_coils(state: SamplerState, model: EncodingModel, smoothness: float, boundary: str) -> None:
    """One proximal gradient step on the coils, then back to unit root-sum-of-squares.

    Step 1/L with L = ||N|| max |x|^2; the smoothness weight mu enters the proximal map as mu/L. The
    renormalisation multiplies the image by what it takes from the coils: data are unchanged.
    """
    peak = state.x.abs().amax(dim=(-2, -1)).square().clamp_min(1e-12) * model.fourier.norm
    peak = peak[:, None, None, None]
    moved = state.csm - model.grad_csm(state.x, state.csm) / peak
    csm = prox_smoothness(moved, smoothness / peak, boundary)
    rss = root_sum_of_squares(csm)
    state.csm = csm / rss.clamp_min(1e-6).unsqueeze(-3)
    state.x = state.x * rss


_STEPS = {"renoise": _renoise_step, "langevin": _langevin_step, "paper": _paper_step}
