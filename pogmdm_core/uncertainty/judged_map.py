"""The MAP image, judged on k-space that was left out: how wrong it is, and how much prior it needs.

How far the data should be trusted against the prior differs from object to object, and no measured noise
level tells: the prior fits one better than another. Held-out samples do tell. So the image is made with each
of a few weights of the prior, and the one whose reconstructions predict the left-out samples best is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pogmdm_core.estimate.joint_start import JointStart
from pogmdm_core.estimate.map_estimate import MapEstimate, level_for, map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.base import Prior
from pogmdm_core.run import Run, SamplerStatus
from pogmdm_core.settings import HELD_OUT_METHODS, MapSettings, Settings
from pogmdm_core.uncertainty.held_out import HeldOut, held_out
from pogmdm_core.uncertainty.leave_out import split

PRIOR_WEIGHTS = (1.0, 0.5)  # 0.5 gains 0.2 to 0.6 dB on two brains, and loses 1.5 dB on a phantom


@dataclass(frozen=True)
class JudgedMap:
    """A MAP image `(y, x)` complex64, the prior's weight it was made with, and what held-out samples say, if any."""

    image: torch.Tensor
    weight: float
    held: HeldOut | None


def judged_map(
    model: EncodingModel,
    prior: Prior,
    start: JointStart,
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
    is_judged = settings.uncertainty.method in HELD_OUT_METHODS
    groups = split(model.frame, settings.uncertainty.n_folds, settings.sampler.seed) if is_judged else []
    if settings.map.prior_weight is not None:
        weights: tuple[float, ...] = (settings.map.prior_weight,)
    else:
        weights = PRIOR_WEIGHTS if groups else PRIOR_WEIGHTS[:1]
    judge = _Judge(model, prior, start.csm, noise_level, noise_std, groups, settings.map, run, len(weights))
    best, image = None, start.image
    for number, weight in enumerate(weights):
        if settings.map.steps == 0 or run.status is SamplerStatus.CANCELLED:
            break
        found = judge.attempt(number, weight, image)
        if found is None:
            break
        image = found.image
        if best is None or _predicts_better(found.held, best.held):
            best = found
    return best


@dataclass(frozen=True)
class _Judge:
    """What is the same for all `n_attempts` weights of the prior; `groups` of samples are left out in turn."""

    model: EncodingModel
    prior: Prior
    csm: torch.Tensor
    noise_level: float
    noise_std: float
    groups: Sequence[torch.Tensor]
    settings: MapSettings
    run: Run
    n_attempts: int

    def attempt(self, number: int, weight: float, first: torch.Tensor) -> JudgedMap | None:
        """MAP image from `first`, then from that image what it is without each group; `number` of this attempt."""
        run = self.run
        with run.timed("MAP"):
            found = self._estimate(self.model, weight, first, "MAP", (number, self.n_attempts))
        if not bool(torch.isfinite(torch.view_as_real(found.image)).all()):
            run.end(SamplerStatus.DIVERGED, f"the MAP estimate diverged within {found.n_steps} steps")
            return None
        if not self.groups:
            return JudgedMap(found.image, weight, None)
        n_groups = len(self.groups)
        numbers = iter(range(number * n_groups, (number + 1) * n_groups))

        def without(rest: EncodingModel) -> torch.Tensor:
            share = next(numbers), self.n_attempts * n_groups
            return self._estimate(rest, weight, found.image, "held-out k-space", share).image

        with run.timed("held-out k-space"):
            held = held_out(self.model, self.csm, found.image, self.noise_std, self.groups, without, run.should_stop)
        return JudgedMap(found.image, weight, held)

    def _estimate(
        self, model: EncodingModel, weight: float, first: torch.Tensor, stage: str, share: tuple[int, int]
    ) -> MapEstimate:
        """MAP image of a model from `first`; `share`: number of this estimate in its stage, and of how many."""
        steps, tolerance = self.settings.steps, self.settings.tolerance
        # half the prior against the data is the whole prior against data of half the noise variance
        noise, level = self.noise_level * weight**0.5, self.settings.level or level_for(self.noise_level)
        report = self.run.reporter(stage, share[0] * steps, share[1] * steps)
        return map_estimate(
            model, self.prior, self.csm, first, noise, level, steps, tolerance, report, self.run.should_stop
        )


def _predicts_better(held: HeldOut | None, other: HeldOut | None) -> bool:
    """Whether the same groups were predicted, and better."""
    return held is not None and other is not None and held.n_groups == other.n_groups and held.misfit < other.misfit
