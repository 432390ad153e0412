"""The standard-deviation map: a scale times a pattern.

The scale is the predicted root mean square error inside the object: of held-out k-space, or the
spread of the samples times the factor by which such samples are too narrow, or the geometric mean of
both, whose errors are independent. The pattern says how it is distributed over the image: how far
the magnitude moves when data are left out, and how far samples of the prior move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import avg_pool2d

from pogmdm_core.uncertainty.held_out import HeldOut

DISAGREE = 1.5  # ratio of the two scales beyond which the scale is called uncertain
MOST_UNTESTED = 0.25
# The jackknife's share of the error: never more than 1 on lines and spokes, a third on random points.
_JACKKNIFE = 0.8
_EVEN_SHARE = 0.2  # constant added to a pattern of left-out groups alone: four of them agree somewhere by chance
_OBJECT_LEVEL = 0.06


@dataclass(frozen=True)
class Uncertainty:
    """A standard-deviation map and how it came about.

    Attributes
    ----------
    std
        float32 `(y, x)`, units of the image it belongs to; None when nothing is known: no map, rather than
        one of zeros.
    method
        ``"calibrated"``, ``"folds"``, ``"samples"`` or ``"off"``: what was really used.
    scales
        Root mean square error inside the object, units of `std`, as ``folds`` and ``samples`` say; and
        ``untested``, the share of the error that no held-out sample speaks for.
    warnings
        ``SCALE_UNCERTAIN``, ``STD_LOWER_BOUND``.
    """

    std: torch.Tensor | None
    method: str
    scales: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def times(self, scale: float) -> Uncertainty:
        """Return the same in other units."""
        scales = {k: v if k == "untested" else v * scale for k, v in self.scales.items()}
        return replace(self, std=None if self.std is None else self.std * scale, scales=scales)


def object_mask(magnitude: torch.Tensor) -> torch.Tensor:
    """Where there is signal: the 5x5 mean above 6 % of its 99 % quantile, bool `(y, x)`."""
    return above_air(avg_pool2d(magnitude[None, None], 5, stride=1, padding=2, count_include_pad=False)[0, 0])


def above_air(smooth: torch.Tensor) -> torch.Tensor:
    """Where a smoothed magnitude is above 6 % of its 99 % quantile, bool `(y, x)`."""
    flat = smooth.flatten()
    high = flat.kthvalue(max(1, round(0.99 * flat.numel()))).values
    return smooth > _OBJECT_LEVEL * high


def combine(
    magnitude: torch.Tensor,
    held: HeldOut | None,
    samples: Sequence[torch.Tensor],
    sample_factor: float,
    held_out_factor: float = 1.0,
) -> Uncertainty:
    """Make the map.

    Parameters
    ----------
    magnitude
        The image whose error is wanted, float32 `(y, x)`, on the CPU.
    held
        What held-out samples say, or None.
    samples
        Magnitudes of posterior samples, each `(y, x)`, units of `magnitude`; fewer than two say nothing.
    sample_factor
        Factor by which samples are too narrow, > 0.
    held_out_factor
        Factor by which left-out samples are predicted worse than those never acquired, > 0.
    """
    inside = object_mask(magnitude)
    if not bool(inside.any()):
        return Uncertainty(None, "off")
    patterns: list[torch.Tensor] = []
    scales: dict[str, float] = {}
    warnings: list[str] = []
    least = 0.0
    if held is not None:
        least = _JACKKNIFE * _jackknife(held, inside) / held_out_factor
        scales["folds"] = max(held.spectrum.rms(2 * held.noise_std**2, int(inside.sum())) / held_out_factor, least)
        scales["untested"] = held.spectrum.untested
        patterns.append(_normalised(_smooth(held.spread), inside))
        if held.spectrum.untested > MOST_UNTESTED:
            warnings.append("STD_LOWER_BOUND")
    if len(samples) >= 2:
        variance = torch.stack(list(samples)).var(0)
        scales["samples"] = sample_factor * float(variance[inside].mean().sqrt())
        patterns.append(_normalised(_smooth(variance), inside))
    found = [scales[name] for name in ("folds", "samples") if scales.get(name, 0) > 0]
    if not found:
        return Uncertainty(None, "off")
    if len(patterns) == 1 and held is not None:
        patterns.append(torch.full_like(patterns[0], _EVEN_SHARE**2))
    if len(found) == 2 and max(found) > DISAGREE * min(found):
        warnings.append("SCALE_UNCERTAIN")
    scale = max(math.exp(sum(map(math.log, found)) / len(found)), least)
    pattern = _normalised(torch.stack(patterns).sum(0), inside).sqrt()
    method = "calibrated" if len(found) == 2 else "folds" if held is not None else "samples"
    return Uncertainty((scale * pattern).float(), method, scales, tuple(warnings))


def _jackknife(held: HeldOut, inside: torch.Tensor) -> float:
    """Root mean square error inside the object as the movement of the image tells it, whatever the noise is taken for.

    The delete-a-group jackknife: with one of J parts of the data left out, an estimate moves by 1/(J - 1) of its
    variance (Shao & Wu 1989, doi:10.1214/aos/1176347263).
    """
    return math.sqrt((held.n_planned - 1) * float(held.spread[inside].mean()))


def _smooth(variance: torch.Tensor) -> torch.Tensor:
    """3x3 mean of a variance estimated from a few images."""
    return avg_pool2d(variance[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]


def _normalised(variance: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Scale to a mean of 1 inside the object."""
    return variance / variance[inside].mean().clamp_min(torch.finfo(variance.dtype).tiny)
