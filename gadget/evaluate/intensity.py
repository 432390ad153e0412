"""A monotone-ish intensity correction as the paper's authors apply it: a cubic spline, but fitted on other scans.

They pool all pixels of one method and the references, fit a least-squares cubic B-spline with 5 interior knots at
the sextiles, and apply it before measuring; it corrects the noise-floor bias of the reference. Here it is fitted
per method on the other scans of the run only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gadget.evaluate.metrics import Reference, least_squares_scale, psnr

_KNOTS = (np.arange(5) + 1) / 6
_PEAK = 0.99  # quantile of the reference inside the object that is taken as intensity 1


def spline_psnr(image: np.ndarray, reference: Reference, others: Sequence[tuple[np.ndarray, Reference]]) -> float:
    """PSNR inside the object after a spline fitted on other cases; NaN where there are none."""
    if not others:
        return float("nan")
    from scipy.interpolate import splev, splrep

    pooled = [_normalised(*other) for other in others]
    x = np.concatenate([pair[0] for pair in pooled])
    y = np.concatenate([pair[1] for pair in pooled])
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    x, first = np.unique(x, return_index=True)
    spline = splrep(x, y[first], t=np.quantile(x, _KNOTS), k=3)
    own, peak = _normalised(image, reference)[0], _peak(reference)
    corrected = np.zeros_like(reference.image)
    corrected[reference.mask] = peak * np.clip(splev(np.clip(own, x[0], x[-1]), spline), 0, None)
    return psnr(corrected, reference.image, reference.mask)


def _peak(reference: Reference) -> float:
    return float(np.quantile(reference.image[reference.mask], _PEAK))


def _normalised(image: np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Pixels inside the object of image (after its least-squares scale) and reference, peak 1."""
    mask, peak = reference.mask, _peak(reference)
    scale = least_squares_scale(image[mask], reference.image[mask])
    return (scale * image[mask] / peak).astype(np.float64), (reference.image[mask] / peak).astype(np.float64)
