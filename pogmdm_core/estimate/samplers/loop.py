"""The loop that draws posterior samples: from noise level to noise level, whatever the sampler."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from pogmdm_core.estimate.map_estimate import level_for
from pogmdm_core.estimate.samplers.base import Diverged, SampleNoise, Sampler, SamplerState, Task
from pogmdm_core.estimate.samplers.coil_update import update_coils
from pogmdm_core.estimate.samplers.schedule import geometric_levels
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.base import Prior
from pogmdm_core.registry import SAMPLERS
from pogmdm_core.settings import CoilSettings, SamplerSettings

_DIVERGED = 1e3  # image magnitude, units of the image scale, that no sample may reach

Report = Callable[[int, int], None]


def make_sampler(name: str) -> Sampler:
    """Make the sampler of a name in `SAMPLERS`."""
    module, _, kind = SAMPLERS[name].partition(":")
    sampler: Sampler = getattr(importlib.import_module(module), kind)()
    return sampler


def last_level(settings: SamplerSettings, noise_level: float) -> float:
    """Lowest noise level that samples visit: as set, else from the noise."""
    return settings.end_level or level_for(noise_level)


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
    levels = geometric_levels(settings.start_level, last_level(settings, noise_level), settings.n_steps)
    task = Task(model, prior, SampleNoise(settings.seed, samples, start.device), noise_level, settings)
    state = SamplerState(start + levels[0] * task.noise.draw(model.fourier.shape), csm.unsqueeze(0))
    sampler = make_sampler(settings.method)
    for step in range(settings.n_steps):
        sampler.step(state, task, levels[step], levels[step + 1])
        if coils.update_every and (step + 1) % coils.update_every == 0:
            update_coils(state, model, coils.smoothness, coils.boundary)
        if not bool((torch.view_as_real(state.x).abs().amax() < _DIVERGED).all()):
            raise Diverged(step)
        if report is not None:
            report(step + 1, settings.n_steps)
        if should_stop is not None and should_stop():
            return None
    state.x = sampler.finish(state, task, levels[-1])
    return state
