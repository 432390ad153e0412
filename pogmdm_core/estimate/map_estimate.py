"""Maximum a-posteriori image for fixed coils.

Minimises 1/(2 eta^2) sum_c ||F(csm_c x) - z_c||^2 + E(x, level), eta the noise per real/imaginary part, in two
stages:

1. Continuation: over-relaxed proximal gradient steps while the prior's level falls to the one wanted. At a high level
   the prior sees coarse errors (aliasing) and its steps are large; each combines the denoised image with the data.
2. L-BFGS at the level wanted. Its first guess of the inverse Hessian is (A^H A / eta^2 + lambda L)^-1, applied by a
   few conjugate gradient steps with the coils' three dominant combinations in A, with L the prior's curvature bound and
   lambda the share of it that most pixels have.

Together they need a tenth of the scores of an accelerated gradient method, for the same minimum.

Source: Liu & Nocedal 1989, doi:10.1007/BF01589116 (L-BFGS); Zhang et al. 2021, arXiv 2008.13751 (falling levels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.estimate.samplers.schedule import geometric_levels
from pogmdm_core.measurement.encoding import EncodingModel, ImageOperator
from pogmdm_core.measurement.linear import inner

FIRST_LEVEL = 0.2  # where the continuation begins
_LEVELS, _RELAXATION, _DATA_STEPS = 8, 1.6, 4
_MEMORY, _GUESS_STEPS, _GUESS_COILS = 8, 2, 3
_TYPICAL_CURVATURE = 0.3  # lambda
_OVERSHOT = 0.9  # slope behind a step over that before it
_CORRECTIONS = 3
_CALM = 2  # steps in a row that must change little


class SmoothPrior(Protocol):
    """What the estimate asks of a prior: the learned one, or total variation."""

    def score(self, x: torch.Tensor, noise_level: float, /) -> torch.Tensor:
        """Minus the gradient of the energy."""

    def lipschitz_bound(self, noise_level: float, shape: tuple[int, int], /) -> float:
        """Bound of the energy's curvature."""


@dataclass(frozen=True)
class MapEstimate:
    """MAP image `(y, x)` complex64, iterations done, and the last relative change."""

    image: torch.Tensor
    n_steps: int
    change: float


def level_for(noise_level: float) -> float:
    """Lowest prior level worth using at a noise level: 1.3 times it, within [0.015, 0.05]."""
    return min(max(1.3 * noise_level, 0.015), 0.05)


def map_estimate(
    model: EncodingModel,
    prior: SmoothPrior,
    csm: torch.Tensor,
    start: torch.Tensor,
    noise_level: float,
    level: float,
    n_steps: int = 200,
    tolerance: float = 1e-3,
    first_level: float | None = None,
    origin: torch.Tensor | None = None,
    report: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> MapEstimate:
    """Compute the MAP image.

    Parameters
    ----------
    model
        Data in units where the image is about 1.
    csm
        Coils `(coil, y, x)`, unit root-sum-of-squares.
    start
        First image, complex `(y, x)`.
    noise_level
        eta, > 0, units of the image scale.
    level
        Noise level at which the prior is taken.
    n_steps, tolerance
        Stop after `n_steps`, or when two steps in a row change the image by less than `tolerance` (relative).
    first_level
        Where the continuation begins; None, or one not above `level`: without it.
    origin
        Image `(y, x)`: changes are relative to the distance from it; None: to the image itself.
    report, should_stop
        Called with (step, n_steps); asked between steps.
    """
    problem = _Problem(model, csm, noise_level)
    x, step, change = start, 0, float("inf")
    for at in _levels(first_level, level)[:n_steps]:
        new = problem.proximal_step(x, prior.score(x, at), _RELAXATION / prior.lipschitz_bound(at, model.fourier.shape))
        x, step, change = new, step + 1, _relative(new - x, new, origin)
        if report is not None:
            report(step, n_steps)
        if should_stop is not None and should_stop():
            return MapEstimate(x, step, change)
    if step >= n_steps:
        return MapEstimate(x, step, change)
    curvature = _TYPICAL_CURVATURE * prior.lipschitz_bound(level, model.fourier.shape)
    memory = _Memory(lambda v: problem.solve(v, curvature))

    def gradient_at(image: torch.Tensor) -> torch.Tensor:
        return problem.gradient(image) - prior.score(image, level)

    gradient, n_calm = gradient_at(x), 0
    while step < n_steps:
        move = -memory.apply(gradient)
        new = x + move
        new_gradient = gradient_at(new)
        for _ in range(_CORRECTIONS):
            before, behind = torch.cat([inner(g, move, 2).flatten() for g in (gradient, new_gradient)]).tolist()
            if not behind > _OVERSHOT * abs(before):
                break
            move = before / (before - behind) * move  # where the slope is 0 if it changes evenly
            new = x + move
            new_gradient = gradient_at(new)
        memory.learn(move, new_gradient - gradient)
        x, gradient, step, change = new, new_gradient, step + 1, _relative(move, new, origin)
        n_calm = n_calm + 1 if change < tolerance else 0
        if report is not None:
            report(step, n_steps)
        if n_calm == _CALM or not math.isfinite(change) or (should_stop is not None and should_stop()):
            break
    return MapEstimate(x, step, change)


def _levels(first_level: float | None, level: float) -> list[float]:
    """Levels of the continuation, falling to `level`."""
    if first_level is None or first_level <= level:
        return []
    return geometric_levels(first_level, level, _LEVELS - 1)


def _relative(change: torch.Tensor, x: torch.Tensor, origin: torch.Tensor | None) -> float:
    whole = x if origin is None else x - origin
    return float(torch.linalg.vector_norm(change) / torch.linalg.vector_norm(whole).clamp_min(1e-30))


class _Problem:
    """The data's part, 1/(2 eta^2) ||A x - z||^2."""

    def __init__(self, model: EncodingModel, csm: torch.Tensor, noise_level: float) -> None:
        self._operator, self._fourier = model.for_image(csm), model.fourier
        self._dominant = self._operator.dominant(_GUESS_COILS)
        self._data = self._operator.combine(model.adjoint_data)
        self._weight = 1 / noise_level**2

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """A^H (A x - z) / eta^2."""
        return self._weight * (self._operator.normal(x) - self._data)

    def solve(self, right: torch.Tensor, damping: float) -> torch.Tensor:
        """About (A^H A / eta^2 + damping)^-1 of `right`."""
        return self._solve(self._dominant, right, None, damping, _GUESS_STEPS)

    def proximal_step(self, x: torch.Tensor, score: torch.Tensor, size: float) -> torch.Tensor:
        """Step of that size along the score, then combine with the data."""
        moved = x + size * score
        return self._solve(self._operator, self._weight * self._data + moved / size, moved, 1 / size, _DATA_STEPS)

    def _solve(
        self, operator: ImageOperator, right: torch.Tensor, start: torch.Tensor | None, damping: float, n_steps: int
    ) -> torch.Tensor:
        return conjugate_gradient(
            lambda u: self._weight * operator.normal(u) + damping * u,
            right,
            start,
            n_steps,
            precondition=lambda r: self._fourier.precondition(r, self._weight, damping),
        )


class _Memory:
    """What L-BFGS remembers: the last moves, and how they changed the gradient.

    Parameters
    ----------
    guess
        Approximate inverse of the Hessian without what is remembered, positive definite.
    """

    def __init__(self, guess: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._guess = guess
        self._pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def learn(self, move: torch.Tensor, change: torch.Tensor) -> None:
        """Remember a move; one along which the gradient did not grow says nothing of the minimum."""
        curvature = inner(move, change, 2)
        if float(curvature) > 0:
            self._pairs = [*self._pairs[1 - _MEMORY :], (move, change, curvature)]

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        """Inverse Hessian times `gradient` (two-loop recursion)."""
        shares = []
        for move, change, curvature in reversed(self._pairs):
            share = inner(move, gradient, 2) / curvature
            gradient = gradient - share * change
            shares.append(share)
        found = self._guess(gradient)
        for (move, change, curvature), share in zip(self._pairs, reversed(shares), strict=True):
            found = found + (share - inner(change, found, 2) / curvature) * move
        return found
