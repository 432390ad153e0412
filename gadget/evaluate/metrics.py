"""How good an image is, and how honest its standard deviation.

Inside the object, after one least-squares scale, against a reference corrected for its noise floor: full-field
metrics against a plain root sum of squares mostly measure the Rician floor of air. They come second, for
comparison with papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_WINDOW = 7


@dataclass(frozen=True)
class Reference:
    """What images are held against, all `(y, x)`.

    Attributes
    ----------
    image
        Magnitude, corrected for its noise floor where it has one, float.
    mask
        True inside the object.
    plain
        Root sum of squares as it is, for the full field of view.
    """

    image: np.ndarray
    mask: np.ndarray
    plain: np.ndarray


def least_squares_scale(image: np.ndarray, reference: np.ndarray) -> float:
    """Return a of min ||a image - reference||; 0 for a zero image."""
    energy = float((image.astype(np.float64) ** 2).sum())
    return float((image.astype(np.float64) * reference).sum()) / energy if energy > 0 else 0.0


def psnr(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB inside `mask`; the peak is the reference's maximum there."""
    error = (image - reference)[mask].astype(np.float64)
    return float(10 * np.log10(float(reference[mask].max()) ** 2 / np.mean(error**2)))


def image_metrics(image: np.ndarray, reference: Reference) -> dict[str, float]:
    """Return `psnr`, `ssim`, `nmse` inside the object and `psnr_full`, `ssim_full`, `nmse_full` of the field of view.

    SSIM uses the 7x7 uniform window with sample covariance, its map averaged over the mask (Wang et al. 2004,
    doi:10.1109/TIP.2003.819861). NMSE is ||error||^2 / ||reference||^2.
    """
    mask = reference.mask
    scaled = least_squares_scale(image[mask], reference.image[mask]) * image
    whole = least_squares_scale(image, reference.plain) * image
    everywhere = np.ones_like(mask)
    ssim_map, _ = _ssim(scaled, reference.image, float(reference.image[mask].max()))
    _, ssim_full = _ssim(whole, reference.plain, float(reference.plain.max()))
    return {
        "psnr": psnr(scaled, reference.image, mask),
        "ssim": float(ssim_map[mask].mean()),
        "nmse": _nmse(scaled, reference.image, mask),
        "psnr_full": psnr(whole, reference.plain, everywhere),
        "ssim_full": ssim_full,
        "nmse_full": _nmse(whole, reference.plain, everywhere),
    }


def scaled_psnr(image: np.ndarray, reference: Reference) -> float:
    """PSNR inside the object after the least-squares scale: what oracles maximise."""
    mask = reference.mask
    return psnr(least_squares_scale(image[mask], reference.image[mask]) * image, reference.image, mask)


def uncertainty_metrics(
    image: np.ndarray, std: np.ndarray, reference: Reference, factors: Mapping[float, float]
) -> dict[str, float]:
    """Compare a standard deviation with the true error inside the object.

    Parameters
    ----------
    image, std
        `(y, x)`, same units.
    reference
        Its `image` should not be noisy itself, else its noise counts as error.
    factors
        Half-width of the intervals in units of `std`, by their probability.

    Returns
    -------
        `sd_over_rmse`; `coverage_50`, ... (share of pixels inside each interval); `rank_pixel` and `rank_7x7`
        (Spearman correlation of std and |error|, per pixel and of root mean squares over 7x7 windows); `crps`
        (continuous ranked probability score of the normal distribution, over the reference's peak).
    """
    from scipy.ndimage import uniform_filter
    from scipy.stats import spearmanr

    mask = reference.mask
    scale = least_squares_scale(image[mask], reference.image[mask])
    error = (scale * image - reference.image).astype(np.float64)
    spread = (scale * std).astype(np.float64)
    local = [np.sqrt(np.clip(uniform_filter(v**2, _WINDOW), 0, None))[mask] for v in (spread, error)]
    found = {"sd_over_rmse": float(np.sqrt(np.mean(spread[mask] ** 2) / np.mean(error[mask] ** 2)))}
    for probability, factor in sorted(factors.items()):
        found[f"coverage_{round(100 * probability)}"] = float(np.mean(np.abs(error)[mask] <= factor * spread[mask]))
    found["rank_pixel"] = float(spearmanr(spread[mask], np.abs(error)[mask])[0])
    found["rank_7x7"] = float(spearmanr(*local)[0])
    found["crps"] = float(gaussian_crps(error[mask], spread[mask]).mean() / reference.image[mask].max())
    return found


def gaussian_crps(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of N(0, std^2) at `error` (Gneiting & Raftery 2007, eq. 21)."""
    from scipy.special import erf

    # without any spread the score is |error|
    z = np.divide(error, std, out=np.copysign(np.inf, error), where=np.asarray(std) > 0)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.asarray(error * erf(z / math.sqrt(2)) + std * (2 * density - 1 / math.sqrt(math.pi)))


def null_space_residual(csm: np.ndarray, coil_images: np.ndarray) -> np.ndarray:
    """Root sum of squares over coils of c <c, y> - y: what fully sampled coil images have outside the maps' span.

    Parameters
    ----------
    csm
        Estimated maps `(coil, y, x)`; normalised here to unit root sum of squares.
    coil_images
        Fully sampled y, `(coil, y, x)`.
    """
    norm = np.linalg.norm(csm, axis=0)
    unit = csm / np.where(norm > 0, norm, 1)
    return np.linalg.norm(unit * (unit.conj() * coil_images).sum(0) - coil_images, axis=0)


def _nmse(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    error = (image - reference)[mask].astype(np.float64)
    return float((error**2).sum() / (reference[mask].astype(np.float64) ** 2).sum())


def _ssim(image: np.ndarray, reference: np.ndarray, data_range: float) -> tuple[np.ndarray, float]:
    from skimage.metrics import structural_similarity

    mean, values = structural_similarity(image, reference, data_range=data_range, full=True, win_size=_WINDOW)
    return values, float(mean)
