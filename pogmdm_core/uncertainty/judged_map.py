"""The MAP image, judged on k-space that was left out: how wrong it is, and how much prior it needs.

How far the data should be trusted against the prior differs from object to object, and no measured noise
level tells: the prior fits one better than another. Held-out samples do tell. So the image is made with each
of a few weights of the prior, and the one whose reconstructions predict the left-out samples best is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pogmdm_core.estimate.joint_start import JointStart, joint_start
from pogmdm_core.estimate.map_estimate import FIRST_LEVEL, MapEstimate, level_for, map_estimate
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.folding import as_scanned, between_lines
from pogmdm_core.prior.base import Prior
from pogmdm_core.run import Run, SamplerStatus, StopHook
from pogmdm_core.settings import HELD_OUT_METHODS, Settings
from pogmdm_core.side_by_side import side_by_side
from pogmdm_core.uncertainty.held_out import Estimate, HeldOut, held_out
from pogmdm_core.uncertainty.leave_out import has_scarce_calibration, split

# An estimate without some samples ends when a step is so small beside its way from the MAP image. What is used of it,
# its prediction error and how far it moved, is then some per cent off; the factors of the settings know. Which of two
# weights predicts better takes a finer look.
_MOVE_TOLERANCE, _CHOICE_TOLERANCE = 0.06, 0.03
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
    settled: Callable[[JudgedMap], object] | None = None,
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
    settled
        Called as soon as the image is known, with what is known by then: where its weight needs no choice before
        anything is held out.

    Returns
    -------
        None when it is switched off, time was up before it, or it diverged (the status says so).
    """
    is_judged = settings.uncertainty.method in HELD_OUT_METHODS
    groups = split(as_scanned(model.frame), settings.uncertainty.n_folds, settings.sampler.seed) if is_judged else []
    if settings.map.prior_weight is not None:
        weights: tuple[float, ...] = (settings.map.prior_weight,)
    else:
        weights = PRIOR_WEIGHTS if groups else PRIOR_WEIGHTS[:1]
    judge = _Judge(model, prior, start, noise_level, noise_std, groups, settings, run, len(weights))
    settled = settled or (lambda _: None)
    best = None
    for number, weight in enumerate(weights):
        if settings.map.steps == 0 or run.status is SamplerStatus.CANCELLED:
            break
        found = judge.attempt(number, weight)
        if found is None:
            break
        if len(weights) == 1:
            settled(found)
        found = judge.judged(number, found)
        if best is None or _predicts_better(found.held, best.held):
            best = found
    if best is not None and len(weights) > 1:
        settled(best)
    return best


def coils_are_judged(frame: KSpaceFrame, settings: Settings) -> bool:
    """Whether what is held out is predicted with coils of its own: where little was sampled that tells them."""
    return settings.coils.init == "nlinv" and has_scarce_calibration(frame)


class _Judge:
    """Makes the MAP image with one weight of the prior after the other, and from it what it is without each group.

    The first MAP image begins at the joint start, the next where the one before ended. What is left out is predicted
    from the MAP image of the same weight each time, through falling levels of the prior, which forget most of it.

    Where little was sampled that tells the coils (`coils_are_judged`), image and coils are estimated anew without
    each group, so that the error of the coils is seen, too.

    Parameters
    ----------
    groups
        Of samples that are left out in turn.
    n_attempts
        How many weights there will be.
    """

    def __init__(
        self,
        model: EncodingModel,
        prior: Prior,
        start: JointStart,
        noise_level: float,
        noise_std: float,
        groups: Sequence[torch.Tensor],
        settings: Settings,
        run: Run,
        n_attempts: int,
    ) -> None:
        self._model, self._prior, self._csm = model, prior, start.csm
        self._noise_level, self._noise_std = noise_level, noise_std
        self._groups, self._settings, self._run, self._n_attempts = groups, settings, run, n_attempts
        self._image, self._first_level = start.image, min(FIRST_LEVEL, prior.level_range[1])
        self._coils_err = coils_are_judged(model.frame, settings)
        self._model_without: dict[int, EncodingModel] = {}
        self._start_without: dict[int, Estimate] = {}

    def attempt(self, number: int, weight: float) -> JudgedMap | None:
        """MAP image with a weight; None when it diverged. `number` counts."""
        run = self._run
        with run.timed("MAP"):
            found = self._estimate(
                self._model,
                weight,
                Estimate(self._image, self._csm),
                "MAP",
                (number, self._n_attempts),
                self._settings.map.tolerance,
                self._first_level if number == 0 else None,
            )
        if not bool(torch.isfinite(torch.view_as_real(found.image)).all()):
            run.end(SamplerStatus.DIVERGED, f"the MAP estimate diverged within {found.n_steps} steps")
            return None
        self._image = found.image
        return JudgedMap(found.image, weight, None)

    def judged(self, number: int, found: JudgedMap) -> JudgedMap:
        """Add what held-out samples say of an attempt."""
        if not self._groups:
            return found
        run = self._run
        n_groups = len(self._groups)

        def without(group: int, should_stop: StopHook) -> Estimate:
            known = Estimate(found.image, self._csm)
            if run.status is SamplerStatus.CANCELLED:
                return known  # nobody will look at it
            model, begin = self._without(group, known, should_stop)
            rest = self._estimate(
                model,
                found.weight,
                begin,
                "held-out k-space",
                (number * n_groups + group, self._n_attempts * n_groups),
                _MOVE_TOLERANCE if self._n_attempts == 1 else _CHOICE_TOLERANCE,
                self._first_level,
                origin=begin.image,
                should_stop=should_stop,
            )
            return Estimate(rest.image, begin.csm)

        with (
            run.timed("held-out k-space"),
            contextlib.closing(side_by_side(without, n_groups, self._image.device, run.should_stop)) as rests,
        ):
            held = held_out(
                self._model, Estimate(found.image, self._csm), self._noise_std, self._groups, rests, run.should_stop
            )
        return replace(found, held=held)

    def _without(self, group: int, known: Estimate, should_stop: StopHook) -> tuple[EncodingModel, Estimate]:
        """The scan without a group of samples, and what its estimate begins with; kept, for both take long to make."""
        if group not in self._model_without:
            self._model_without[group] = self._model.without(
                between_lines(self._groups[group], self._model.frame.doubled_axis)
            )
        model = self._model_without[group]
        if not self._coils_err:
            return model, known
        if group not in self._start_without:
            run = Run(None, should_stop)
            start = joint_start(model, self._settings.coils, self._noise_std, run)
            diverged = run.status is SamplerStatus.DIVERGED
            self._start_without[group] = known if diverged else Estimate(start.image, start.csm)
        return model, self._start_without[group]

    def _estimate(
        self,
        model: EncodingModel,
        weight: float,
        begin: Estimate,
        stage: str,
        share: tuple[int, int],
        tolerance: float,
        first_level: float | None = None,
        origin: torch.Tensor | None = None,
        should_stop: StopHook | None = None,
    ) -> MapEstimate:
        """MAP image from `begin`, with its coils; `share`: number of this estimate in its stage, and of how many."""
        settings = self._settings.map
        steps = settings.steps
        # half the prior against the data is the whole prior against data of half the noise variance
        noise, level = self._noise_level * weight**0.5, settings.level or level_for(self._noise_level)
        report = self._run.reporter(stage, share[0] * steps, share[1] * steps)
        return map_estimate(
            model,
            self._prior,
            begin.csm,
            begin.image,
            noise,
            level,
            steps,
            tolerance,
            first_level,
            origin,
            report,
            should_stop or self._run.should_stop,
        )


def _predicts_better(held: HeldOut | None, other: HeldOut | None) -> bool:
    """Whether the same groups were predicted, and better."""
    return held is not None and other is not None and held.n_groups == other.n_groups and held.misfit < other.misfit
