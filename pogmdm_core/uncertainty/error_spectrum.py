"""From the prediction error of held-out samples to the error of what was never acquired.

Points and shots: the mean squared error of a band of k-space (by radius) holds for the whole band.
Lines: the missing ones lie in gaps wider than those that leaving a line out makes, and the error grows
with the width; it is modelled as exp(a) f^b d^c, f the frequency, d the distance to the nearest line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.uncertainty.leave_out import (
    CENTRE,
    axis_of_lines,
    grid_positions,
    has_scarce_calibration,
    line_positions,
    positions,
)

N_BANDS = 10
_FREQUENCY = 0.1  # cycles/pixel, where f counts as 1
# The exponents are pulled gently towards what scans show; few held-out lines determine them badly.
_USUAL = (0.0, -2.0, 1.0)
_PULL = (0.0, 0.02, 0.02)
_NEWTON_STEPS, _CLAMP = 50, 30.0
# A missing line counts as tested when a held-out one had 2/3 of its distance at a like frequency.
_LIKE_DISTANCE, _LIKE_FREQUENCY = 2 / 3, 0.5
_LEAST_SHARE = 0.01  # of the noise: it is known to half a per cent at best, so no less is known of an error beside it


@dataclass(frozen=True)
class ErrorSpectrum:
    """Squared error per k-space cell, all coils together, noise taken off.

    Attributes
    ----------
    cells
        float64 `(ky, kx)`: at cells that were not acquired what is expected there; at acquired ones what
        would be expected had they not been.
    acquired
        Cells that hold a sample, bool `(ky, kx)`.
    untested
        Share of the missing cells' error that lies where no held-out sample speaks for it, in [0, 1]; 1 when the
        coils may be wrong, too (`has_scarce_calibration`).
    """

    cells: torch.Tensor
    acquired: torch.Tensor
    untested: float

    def rms(self, noise: float, n_pixels: int) -> float:
        """Root mean square error of the magnitude over `n_pixels` pixels that hold all the error.

        An acquired sample combines the prediction (squared error P) with a measurement (`noise`, the
        squared error of the coil combination): P noise / (P + noise) remains. Half the energy of the
        complex error is in the magnitude.
        """
        missing = self.cells[~self.acquired].sum()
        known = self.cells[self.acquired]
        remaining = (known * noise / (known + noise).clamp_min(torch.finfo(torch.float64).tiny)).sum()
        return math.sqrt(float(missing + remaining) / (2 * n_pixels))


def fit(
    frame: KSpaceFrame, groups: Sequence[torch.Tensor], errors: Sequence[torch.Tensor], noise: float
) -> ErrorSpectrum:
    """Fit the error spectrum of a scan.

    Parameters
    ----------
    frame
        The scan.
    groups
        From `split`, at least one.
    errors
        Squared residuals of the left-out samples, summed over coils, float64, one array `(n_left_out,)` per group.
    noise
        What noise alone contributes to a squared residual (all coils).
    """
    axis = None if frame.mask is None else axis_of_lines(frame.mask.cpu())
    if axis is None:
        return _fit_bands(frame, groups, errors, noise)
    return _fit_lines(frame, axis, groups, errors, noise)


def _fit_bands(
    frame: KSpaceFrame, groups: Sequence[torch.Tensor], errors: Sequence[torch.Tensor], noise: float
) -> ErrorSpectrum:
    band = _band(*positions(frame))
    where = torch.cat([band[group] for group in groups])
    count = torch.bincount(where, minlength=N_BANDS).double()
    energy = torch.zeros(N_BANDS, dtype=torch.float64).index_add_(0, where, torch.cat(list(errors)))
    seen = torch.nonzero(count).squeeze(1)
    per_sample = (energy / count.clamp_min(1) - noise).clamp_min(_LEAST_SHARE * noise)
    nearest = (torch.arange(N_BANDS)[:, None] - seen[None, :]).abs().argmin(1)
    per_sample = per_sample[seen[nearest]]
    acquired = frame.sampled_cells.cpu()
    grid_band = _band(*grid_positions(frame.shape))
    cells = per_sample[grid_band]
    untested = ~acquired & (count == 0)[grid_band] & (torch.hypot(*grid_positions(frame.shape)) < 0.5)
    return ErrorSpectrum(cells, acquired, _share(cells, untested, ~acquired))


def _band(ky: torch.Tensor, kx: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(ky, kx) * (2 * N_BANDS)).long().clamp(0, N_BANDS - 1)


def _fit_lines(
    frame: KSpaceFrame, axis: int, groups: Sequence[torch.Tensor], errors: Sequence[torch.Tensor], noise: float
) -> ErrorSpectrum:
    mask = frame.sampled_cells.cpu()
    lines = mask.any(1 - axis)
    frequency = line_positions(frame.shape[axis]).abs().clamp_min(CENTRE)
    held, distance, mean = [], [], []
    for group, error in zip(groups, errors, strict=True):
        out = torch.nonzero(group.any(1 - axis)).squeeze(1)
        held.append(out)
        distance.append(_distance(lines & ~group.any(1 - axis))[out])
        # `error` is ordered as group[group] is: along rows
        image = torch.zeros(mask.shape, dtype=torch.float64)
        image[group] = error
        mean.append((image.sum(1 - axis) / group.sum(1 - axis).clamp_min(1))[out])
    f, d, y = frequency[torch.cat(held)], torch.cat(distance), torch.cat(mean)
    level, coefficients = _regress(f, d, y, noise)
    gaps = _distance(lines)
    per_line = level * torch.exp(_design(frequency, gaps.clamp_min(1)) @ coefficients)
    like = (d[None, :] >= _LIKE_DISTANCE * gaps[:, None]) & (
        (f[None, :] / frequency[:, None]).log().abs() < _LIKE_FREQUENCY
    )
    untested = _share(per_line, ~lines & ~like.any(1), ~lines)
    if has_scarce_calibration(frame):
        untested = 1.0
    return ErrorSpectrum(per_line.unsqueeze(1 - axis).expand(mask.shape), mask, untested)


def _distance(lines: torch.Tensor) -> torch.Tensor:
    """Distance of every line to the nearest True one, float64 `(n,)`."""
    index = torch.arange(len(lines))
    return (index[:, None] - index[lines][None, :]).abs().amin(1).double()


def _design(frequency: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(distance)
    return torch.stack([one, (frequency.double() / _FREQUENCY).log(), distance.log()], dim=1)


def _regress(
    frequency: torch.Tensor, distance: torch.Tensor, y: torch.Tensor, noise: float
) -> tuple[float, torch.Tensor]:
    """Fit mean(y) = level exp(design @ coefficients) + noise, y gamma distributed about its mean.

    Fisher scoring with step halving (McCullagh & Nelder 1989, Generalized Linear Models, 2.5 and 8).

    Returns
    -------
        level (what the coefficients are relative to) and the three coefficients, float64.
    """
    level = max(float(y.mean()) - noise, _LEAST_SHARE * noise, torch.finfo(torch.float32).tiny)
    design = _design(frequency, distance)
    usual, pull = (torch.tensor(v, dtype=torch.float64) for v in (_USUAL, _PULL))

    pull = 2 * torch.diag(pull)

    def loss(coefficients: torch.Tensor) -> float:
        mean = level * torch.exp((design @ coefficients).clamp(-_CLAMP, _CLAMP)) + noise
        away = coefficients - usual
        return float((mean.log() + y / mean).mean() + 0.5 * away @ pull @ away)

    coefficients = usual
    for _ in range(_NEWTON_STEPS):
        signal = level * torch.exp((design @ coefficients).clamp(-_CLAMP, _CLAMP))
        share = signal / (signal + noise)
        slope = share * (1 - y / (signal + noise))
        gradient = design.T @ slope / len(y) + pull @ (coefficients - usual)
        information = (design * share[:, None] ** 2).T @ design / len(y) + pull
        step = torch.linalg.solve(information + 1e-9 * torch.eye(3, dtype=torch.float64), gradient)
        before, size = loss(coefficients), 1.0
        while size > 1e-3 and loss(coefficients - size * step) > before:
            size /= 2
        coefficients = coefficients - size * step
        if float((size * step).abs().max()) < 1e-6:
            break
    return level, coefficients


def _share(values: torch.Tensor, part: torch.Tensor, whole: torch.Tensor) -> float:
    total = float(values[whole].sum())
    return float(values[part].sum()) / total if total > 0 else 0.0
