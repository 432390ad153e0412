"""Whether a noise level can be true: held against the quietest k-space, and against how well image and coils fit.

Noise scans of another gain, dwell time or filter, simulations scaled without their noise scan, chains that say they
whitened and did not: a wrong level shows in nothing but the image. Believed too loud, it flattens the image, and the
prediction error of held-out samples, less that noise, is no error at all. So a level is an assertion, and two upper
bounds of the noise are at hand before anything is built on it. Both hold signal or misfit beside the noise: they can
refute a level that is too loud, hardly one that is too quiet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.noise import estimate_frame_noise

# Beyond what an estimate from a thousand values is off by.
TOO_LOUD = 1.2
# The image's unknowns take part of the noise with them, and so do those of the coils: on recorded scans 0.04 to 0.1 of
# the samples. Where what is left is less than a fifth (one coil, or as many coils as the acceleration), a fit says
# nothing.
_COIL_SHARE, _LEAST_FREE = 0.1, 0.2
# Outer k-space over the claimed level: high SNR reaches some ten, a scan that was scaled without its noise scan
# hundreds.
_FAR_TOO_QUIET = 50.0
_AGREE = 1.25  # ratio of two bounds that both are the noise
MODEL_ERROR = 3.0  # a residual above this times the noise is taken for a model error


@dataclass(frozen=True)
class NoiseLevel:
    """Noise per real/imaginary part of a k-space sample, and what became of the claim.

    Attributes
    ----------
    std
        The level to go by, units of the k-space.
    quietest
        Level of the quietest outer k-space (`estimate_frame_noise`), same units.
    is_measured
        Whether it is the claimed level, which nothing contradicts; else an upper bound from the data.
    warnings
        ``NOISE_TOO_LOUD``, ``NOISE_SCALE_MISMATCH`` or ``NOISE_TOO_QUIET``.
    """

    std: float
    quietest: float
    is_measured: bool
    warnings: tuple[str, ...] = ()


def against_kspace(frame: KSpaceFrame) -> NoiseLevel:
    """Hold ``frame.noise_std`` against the quietest outer k-space; where there is none, or it cannot be, take that."""
    quietest, claimed = max(estimate_frame_noise(frame), frame.noise_floor), frame.noise_std
    if not claimed:
        return NoiseLevel(quietest, quietest, False)
    claimed = max(claimed, frame.noise_floor)  # noise readouts of so low a gain that most are 0
    if claimed > TOO_LOUD * quietest > 0:
        return NoiseLevel(quietest, quietest, False, ("NOISE_TOO_LOUD",))
    if quietest > _FAR_TOO_QUIET * claimed:
        return NoiseLevel(quietest, quietest, False, ("NOISE_SCALE_MISMATCH",))
    return NoiseLevel(claimed, quietest, True)


def against_fit(level: NoiseLevel, residual: float, n_pixels: int, n_measured: int, floor: float = 0.0) -> NoiseLevel:
    """Hold a level against the residual of image and coils that were fitted as far as their residual fell.

    Parameters
    ----------
    level
        From `against_kspace`.
    residual
        Root mean square of the fit's residual per real/imaginary part, units of the k-space.
    n_pixels, n_measured
        Complex unknowns of the image, and complex samples of all coils.
    floor
        What the noise is at least.

    Returns
    -------
        The level, or the bound that the residual sets: residual / sqrt(share of the samples that no unknown takes).
    """
    free = free_share(n_pixels, n_measured)
    if not free:
        return level
    bound = max(residual / free**0.5, floor)
    if not level.is_measured:
        return replace(level, std=min(level.std, bound))
    if level.std > TOO_LOUD * bound:
        return replace(level, std=bound, is_measured=False, warnings=(*level.warnings, "NOISE_TOO_LOUD"))
    # A wrong model leaves its residual where the signal is. One at the level of the quietest k-space is noise.
    agree = 1 / _AGREE < bound / level.quietest < _AGREE if level.quietest else False
    if agree and min(residual, level.quietest) > TOO_LOUD * level.std:
        std = min(level.quietest, bound)
        return replace(level, std=std, is_measured=False, warnings=(*level.warnings, "NOISE_TOO_QUIET"))
    return level


def free_share(n_pixels: int, n_measured: int) -> float:
    """Share of the samples that the unknowns of image and coils do not take; 0 where a fit says nothing of noise."""
    free = 1 - n_pixels / n_measured - _COIL_SHARE
    return free if free >= _LEAST_FREE else 0.0
