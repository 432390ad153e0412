"""Posterior samples that diverge are drawn again, more gently, before anybody gives up."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pogmdm_core.estimate.samplers.loop import Diverged
from pogmdm_core.settings import SamplerSettings

MAX_RESTARTS = 2

Draw = Callable[[range, SamplerSettings], "list[torch.Tensor] | None"]


def draw_with_restarts(
    draw: Draw, numbers: range, settings: SamplerSettings, end_level: float
) -> list[torch.Tensor] | None:
    """Draw a batch; on divergence its samples one by one, and the one that diverges twice more with half the step.

    Parameters
    ----------
    draw
        Draws the samples of the numbers given, with settings given; None when it was stopped.
    numbers
        Of the samples; they select the random numbers, so the others come out as in the batch.
    settings
        The step is ``langevin_step``; the other methods' is set by ``start_level``.
    end_level
        Last noise level of the schedule.

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
            one = draw_with_restarts(draw, range(number, number + 1), settings, end_level)
            if one is None:
                return None
            found += one
        return found
    for _ in range(MAX_RESTARTS):
        settings = _gentler(settings, end_level)
        try:
            return draw(numbers, settings)
        except Diverged:
            continue
    raise first


def _gentler(settings: SamplerSettings, end_level: float) -> SamplerSettings:
    if settings.method == "langevin":
        return settings.model_copy(update={"langevin_step": settings.langevin_step / 2})
    lowest = min(settings.start_level, 2 * end_level)
    return settings.model_copy(update={"start_level": max(settings.start_level / 2, lowest)})
