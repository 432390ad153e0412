"""The MAP image, judged on k-space that was left out: how wrong it is, and how much prior it needs.

How far the data should be trusted against the prior differs from object to object, and no measured noise
level tells: the prior fits one better than another. Held-out samples do tell. So the image is made with each
of a few weights of the prior, and the one whose reconstructions predict the left-out samples best is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pogmdm_core.frame import SamplerStatus
from pogmdm_core.map_estimate import level_for, map_estimate
from pogmdm_core.operators.encoding import EncodingModel
from pogmdm_core.prior.model import Prior
from pogmdm_core.run import Run
from pogmdm_core.settings import SamplerSettings, Settings
from pogmdm_core.uncertainty.folds import split
from pogmdm_core.uncertainty.held_out import HeldOut, held_out
from pogmdm_core.warm_start import WarmStart

PRIOR_WEIGHTS = (1.0, 0.5)  # 0.5 gains 0.2 to 0.6 dB on two brains, and loses 1.5 dB on a phantom


@dataclass(frozen=True)
class JudgedMap:
    """A MAP image `(y, x)` complex64, the weight of the prior it was made with, and what its folds say, if any."""

    image: torch.Tensor
    weight: float
    held: HeldOut | None


def judged_map(
    model: EncodingModel,
    prior: Prior,
    start: WarmStart,
    noise_level: float,
    noise_std: float,
    settings: Settings,
    run: Run,
) -> JudgedMap | None:
    """Compute the MAP image, with the weight of the prior that predicts held-out k-space best.

    Parameters
    ----------
    model
        The scan.
    prior, settings
        As in `reconstruct`.
    start
        First image, and the coils.
    noise_level, noise_std
        Noise of the likelihood, and of the receivers, per real/imaginary part, units of `model`'s data.
    run
        What accompanies it.

    Returns
    -------
        None when it is switched off, time was up before it, or it diverged (the status says so).
    """
    sampler = settings.sampler
    judge = settings.uncertainty.method in ("calibrated", "folds")
    folds = split(model.frame, settings.uncertainty.n_folds, sampler.seed) if judge else []
    if sampler.prior_weight is not None:
        weights: tuple[float, ...] = (sampler.prior_weight,)
    else:
        weights = PRIOR_WEIGHTS if folds else PRIOR_WEIGHTS[:1]
    best, image = None, start.image
    for number, weight in enumerate(weights):
        if sampler.map_steps == 0 or run.status is SamplerStatus.CANCELLED:
            break
        share = (number, len(weights))
        estimate = partial(_estimate, prior, start.csm, noise_level, weight, sampler, run)
        with run.timed("MAP"):
            image = estimate(_reporter("MAP", share, 0, 1, sampler, run), model, image)
        if not bool(torch.isfinite(torch.view_as_real(image)).all()):
            run.end(SamplerStatus.DIVERGED, f"the MAP estimate diverged within {sampler.map_steps} steps")
            break
        held = None
        if folds:
            with run.timed("folds"):
                reporters = (_reporter("folds", share, i, len(folds), sampler, run) for i in range(len(folds)))
                held = _hold_out(model, start.csm, image, noise_std, folds, estimate, reporters, run)
        if best is None or _predicts_better(held, best.held):
            best = JudgedMap(image, weight, held)
    return best


_Report = Callable[[int, int], None] | None


def _reporter(
    stage: str, share: tuple[int, int], part: int, n_parts: int, sampler: SamplerSettings, run: Run
) -> _Report:
    """Progress of part `part` of a stage that is gone through once per weight: (number, how many) in `share`."""
    number, n_weights = share
    steps = sampler.map_steps
    return run.reporter(stage, (number * n_parts + part) * steps, n_weights * n_parts * steps)


def _hold_out(
    model: EncodingModel,
    csm: torch.Tensor,
    image: torch.Tensor,
    noise_std: float,
    folds: Sequence[torch.Tensor],
    estimate: Callable[[_Report, EncodingModel, torch.Tensor], torch.Tensor],
    reporters: Iterator[_Report],
    run: Run,
) -> HeldOut | None:
    """Folds of the scan, each reconstructed by the MAP estimate and its stopping rule, from the image of all data."""

    def without(part: EncodingModel) -> torch.Tensor:
        return estimate(next(reporters), part, image)

    return held_out(model, csm, image, noise_std, folds, without, run.should_stop)


def _predicts_better(held: HeldOut | None, other: HeldOut | None) -> bool:
    """Whether the same folds were finished, and were predicted better."""
    return held is not None and other is not None and held.n_folds == other.n_folds and held.misfit < other.misfit


def _estimate(
    prior: Prior,
    csm: torch.Tensor,
    noise_level: float,
    weight: float,
    sampler: SamplerSettings,
    run: Run,
    report: _Report,
    model: EncodingModel,
    image: torch.Tensor,
) -> torch.Tensor:
    # half the prior against the data is the whole prior against data of half the noise variance
    noise, level = noise_level * weight**0.5, sampler.map_level or level_for(noise_level)
    steps, tolerance = sampler.map_steps, sampler.map_tolerance
    return map_estimate(model, prior, csm, image, noise, level, steps, tolerance, report, run.should_stop).image
