"""All posterior samples of a reconstruction, batch by batch; those that diverge are drawn again, more gently."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from pogmdm_core.estimate.joint_start import JointStart
from pogmdm_core.estimate.samplers.base import Diverged
from pogmdm_core.estimate.samplers.loop import last_level, make_sampler, sample
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.base import Prior
from pogmdm_core.run import Run, SamplerStatus, StopHook
from pogmdm_core.settings import SamplerSettings, Settings
from pogmdm_core.side_by_side import side_by_side

_AUTO_BATCH_BYTES = 2**28
MAX_RESTARTS = 2

Draw = Callable[[range, SamplerSettings], "list[torch.Tensor] | None"]
Gentler = Callable[[SamplerSettings], SamplerSettings]


def draw_magnitudes(
    model: EncodingModel,
    prior: Prior,
    start: JointStart,
    noise_level: float,
    n_samples: int,
    settings: Settings,
    run: Run,
) -> list[torch.Tensor]:
    """Magnitudes `(y, x)` of all samples on the CPU, units of the image scale; fewer when stopped or diverged.

    Parameters
    ----------
    model, noise_level
        Data, and their noise per real/imaginary part, in units where the image is about 1.
    prior, settings
        As in `reconstruct`.
    start
        First image and coils.
    n_samples
        How many are wanted.
    run
        What accompanies it; its status says how it ended.
    """
    if not n_samples or run.status is SamplerStatus.CANCELLED:  # before the samples: not even a first step
        return []
    chosen, coils = settings.sampler, settings.coils
    sampler, end = make_sampler(chosen.method), last_level(chosen, noise_level)
    batch = chosen.batch or max(1, _AUTO_BATCH_BYTES // (16 * model.adjoint_data.numel()))
    if model.adjoint_data.device.type == "cpu":
        batch = min(batch, -(-n_samples // torch.get_num_threads()))
    batches = [range(first, min(first + batch, n_samples)) for first in range(0, n_samples, batch)]

    def draw_batch(number: int, should_stop: StopHook) -> list[torch.Tensor] | None:
        if run.status is SamplerStatus.CANCELLED:
            return None
        report = run.reporter("samples", number * chosen.n_steps, len(batches) * chosen.n_steps)

        def draw(numbers: range, settings: SamplerSettings) -> list[torch.Tensor] | None:
            state = sample(
                model,
                prior,
                start.image,
                start.csm,
                noise_level,
                numbers,
                settings,
                coils,
                report,
                should_stop,
            )
            return None if state is None else list(state.x.abs().cpu())

        return draw_with_restarts(draw, batches[number], chosen, lambda settings: sampler.gentler(settings, end))

    magnitudes: list[torch.Tensor] = []
    device = model.adjoint_data.device
    with contextlib.closing(side_by_side(draw_batch, len(batches), device, run.should_stop)) as drawn:
        try:
            for found in drawn:
                if found is None:
                    break
                magnitudes.extend(found)
        except Diverged as error:
            run.end(SamplerStatus.DIVERGED, f"the sampler diverged at step {error.step} of {chosen.n_steps}")
    return magnitudes


def draw_with_restarts(
    draw: Draw, numbers: range, settings: SamplerSettings, gentler: Gentler
) -> list[torch.Tensor] | None:
    """Draw a batch; on divergence its samples one by one, and the one that diverges twice more, more gently.

    Parameters
    ----------
    draw
        Draws the samples of the numbers given, with settings given; None when it was stopped.
    numbers
        Of the samples; they select the random numbers, so the others come out as in the batch.
    settings
        What the first attempt is made with.
    gentler
        Settings under which it diverges less easily (`Sampler.gentler`).

    Raises
    ------
    Diverged
        The first divergence, after all restarts diverged too.
    """
    try:
        return draw(numbers, settings)
    except Diverged as error:
        first = error
    if len(numbers) > 1:
        found: list[torch.Tensor] = []
        for number in numbers:
            one = draw_with_restarts(draw, range(number, number + 1), settings, gentler)
            if one is None:
                return None
            found += one
        return found
    for _ in range(MAX_RESTARTS):
        settings = gentler(settings)
        try:
            return draw(numbers, settings)
        except Diverged:
            continue
    raise first
