"""The MAP image, judged on k-space that was left out: how wrong it is, and how much prior it needs.

How far the data should be trusted against the prior differs from object to object, and no measured noise
level tells: the prior fits one better than another. Held-out samples do tell. So the image is made with each
of a few weights of the prior, and the one whose reconstructions predict the left-out samples best is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pogmdm_core.estimate.joint_start import WarmStart
from pogmdm_core.estimate.map_estimate import MapEstimate, level_for, map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.model import Prior
from pogmdm_core.run import Run, SamplerStatus
from pogmdm_core.settings import SamplerSettings, Settings
from pogmdm_core.uncertainty.held_out import HeldOut, held_out
from pogmdm_core.uncertainty.leave_out import split

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
        found = _attempt(model, prior, start.csm, image, noise_level, noise_std, weight, share, folds, sampler, run)
        if found is None:
            break
        image = found.image
        if best is None or _predicts_better(found.held, best.held):
            best = found
    return best


def _attempt(
    model: EncodingModel,
    prior: Prior,
    csm: torch.Tensor,
    first: torch.Tensor,
    noise_level: float,
    noise_std: float,
    weight: float,
    share: tuple[int, int],
    folds: Sequence[torch.Tensor],
    sampler: SamplerSettings,
    run: Run,
) -> JudgedMap | None:
    """MAP image from `first`, and its folds from that image; `share`: number of this attempt, and of how many."""
    steps, tolerance = sampler.map_steps, sampler.map_tolerance
    # half the prior against the data is the whole prior against data of half the noise variance
    noise, level = noise_level * weight**0.5, sampler.map_level or level_for(noise_level)

    def estimate(part: EncodingModel, first: torch.Tensor, stage: str, number: int, n_parts: int) -> MapEstimate:
        before, total = (share[0] * n_parts + number) * steps, share[1] * n_parts * steps
        report = run.reporter(stage, before, total)
        return map_estimate(part, prior, csm, first, noise, level, steps, tolerance, report, run.should_stop)

    with run.timed("MAP"):
        found = estimate(model, first, "MAP", 0, 1)
    if not bool(torch.isfinite(torch.view_as_real(found.image)).all()):
        run.end(SamplerStatus.DIVERGED, f"the MAP estimate diverged within {found.n_steps} steps")
        return None
    if not folds:
        return JudgedMap(found.image, weight, None)
    numbers = iter(range(len(folds)))

    def without(part: EncodingModel) -> torch.Tensor:
        return estimate(part, found.image, "folds", next(numbers), len(folds)).image

    with run.timed("folds"):
        held = held_out(model, csm, found.image, noise_std, folds, without, run.should_stop)
    return JudgedMap(found.image, weight, held)


def _predicts_better(held: HeldOut | None, other: HeldOut | None) -> bool:
    """Whether the same folds were finished, and were predicted better."""
    return held is not None and other is not None and held.n_folds == other.n_folds and held.misfit < other.misfit
