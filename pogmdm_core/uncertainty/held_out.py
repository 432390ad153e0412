"""How wrong is the image? Leave acquired k-space out, predict it, and look.

Nearly all of the error of a good reconstruction lies where k-space was not acquired, and there only the
prior speaks: no sampler of that prior can tell how far it is off. Samples that were acquired, but left
out of a reconstruction, can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.folding import amplitude, as_scanned, between_lines, shown
from pogmdm_core.uncertainty.error_spectrum import ErrorSpectrum, fit
from pogmdm_core.uncertainty.leave_out import positions

_PARTS, _ENOUGH_VALUES = 10, 200  # a mean square of so many complex values is known to 7 %
_WRONG = 1.1  # ratio of the noise to what the best predicted samples leave room for: less is no evidence


@dataclass(frozen=True)
class Estimate:
    """An image `(y, x)`, complex, and its coils `(coil, y, x)`, unit root-sum-of-squares."""

    image: torch.Tensor
    csm: torch.Tensor


@dataclass(frozen=True)
class HeldOut:
    """What the samples of one scan that were left out, group by group, say.

    Attributes
    ----------
    spread
        Mean over groups of the squared change of the magnitude, float32 `(y, x)`, on the CPU.
    spectrum
        Where in k-space the error is.
    misfit
        Root mean square error of the predicted samples per real/imaginary part, noise included, units of the image.
    noise_std
        Noise that was taken off: the receivers', or on the grid what the best predicted samples leave room for, if that
        is less.
    n_groups, n_planned
        Groups that were finished, and into how many the samples were divided.
    """

    spread: torch.Tensor
    spectrum: ErrorSpectrum
    misfit: float
    noise_std: float
    n_groups: int
    n_planned: int


def held_out(
    model: EncodingModel,
    found: Estimate,
    noise_std: float,
    groups: Sequence[torch.Tensor],
    rests: Iterable[Estimate],
    should_stop: Callable[[], bool] | None = None,
) -> HeldOut | None:
    """Reconstruct without each group, and measure how well it is predicted.

    Parameters
    ----------
    model
        The scan with all its samples.
    found
        Reconstruction from everything.
    noise_std
        Noise per real/imaginary part of a k-space sample, units of the model's data.
    groups
        From `split`, of the frame as it was scanned: what is told is of that, and of what is shown of images.
    rests
        The reconstruction without each group in turn.
    should_stop
        Asked after each group, which is dropped when it says so: it may not be finished.

    Returns
    -------
        None when no group was finished.
    """
    axis, frame = model.frame.doubled_axis, as_scanned(model.frame)
    image, noise_std = shown(found.image, found.csm, axis), noise_std * amplitude(axis)
    squared, brightest = torch.zeros_like(image), image.max()
    errors: list[torch.Tensor] = []
    for group, rest in zip(groups, rests, strict=False):  # a generator would be asked for one more
        chosen = group.to(image.device)
        if should_stop is not None and should_stop():
            break
        predicted = model.for_image(rest.csm).forward(rest.image)[:, between_lines(chosen, axis)]
        errors.append(_squared_error(amplitude(axis) * predicted, frame.kspace[:, chosen] / model.scale).cpu())
        # coils of their own may leave an image without bounds: it says "unknown", and no more than that
        squared += (shown(rest.image, rest.csm, axis).clamp_max(brightest) - image) ** 2
    if not errors:
        return None
    done, left_out = groups[: len(errors)], torch.cat(errors)
    noise = 2 * noise_std**2 * frame.n_coils
    # off the grid shots cross and overlap, and what was gridded before shares its noise between neighbours there
    least = _least_error(frame, done, errors) if frame.is_cartesian else math.inf
    if noise > _WRONG**2 * least:
        noise = least
    misfit, noise_std = ((error / (2 * frame.n_coils)) ** 0.5 for error in (float(left_out.mean()), noise))
    spectrum = fit(frame, done, errors, noise)
    return HeldOut((squared / len(errors)).cpu(), spectrum, misfit, noise_std, len(errors), len(groups))


def _squared_error(predicted: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Squared error of samples `(coil, n)`, all coils together, float64 `(n,)`.

    All of them together count for no more than twice what was measured, which is the error of a prediction that has
    nothing to do with it.
    """
    found = (predicted - measured).abs().square().sum(0).double()
    most = 2 * measured.abs().square().sum(dtype=torch.float64)
    return found * (most / found.sum().clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1)


def _least_error(frame: KSpaceFrame, groups: Sequence[torch.Tensor], errors: Sequence[torch.Tensor]) -> float:
    """Mean squared residual of the best predicted tenth, by radius: no prediction is better than the noise.

    The noise of a sample that was left out is in no prediction of it, so that both add up. Twice its own standard
    error is added, for the best of ten is so by chance, too. Samples that are exactly zero were not measured, whatever
    the frame says.
    """
    radius, measured = torch.hypot(*positions(frame)), (frame.kspace != 0).any(0).cpu()
    kept = torch.cat([measured[group] for group in groups])
    left_out = torch.cat(list(errors))[kept]
    if not len(left_out):
        return 0.0
    outwards = left_out[torch.argsort(torch.cat([radius[group] for group in groups])[kept], stable=True)]
    n_parts = min(_PARTS, max(1, len(outwards) * frame.n_coils // _ENOUGH_VALUES))
    parts = outwards.tensor_split(n_parts)
    found: float = min(float(part.mean()) * (1 + 2 / (len(part) * frame.n_coils) ** 0.5) for part in parts)
    return found
