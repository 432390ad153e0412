"""How far the model is off: what image and coils leave unexplained near the centre of k-space.

A wrong position, gain or phase of a readout errs in proportion to the signal. Near the centre, where the signal is, it
leaves a residual that whole k-space, most of which is noise, hides: phases off by 0.1 radian from line to line raise it
by 6 % overall, and twofold there.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.uncertainty.leave_out import positions

# Cycles/pixel. Still nearer to DC, coils as smooth as ours leave a residual in scans without fault.
_BANDS = (0.02, 0.04, 0.07, 0.1)
_ENOUGH_VALUES = 200  # a mean square of so many complex values is known to 7 %
FITS = 1.25  # residual over noise; scans without fault stay below 1.2


def model_error(frame: KSpaceFrame, residual_squares: torch.Tensor, noise_std: float) -> float:
    """Residual over noise, both root mean squares, in the band near the centre of k-space where it is largest.

    Parameters
    ----------
    frame
        The scan.
    residual_squares
        `EncodingModel.residual_squares` of image and coils that are to explain it, `(n,)`.
    noise_std
        Per real/imaginary part of a sample, > 0, same units.

    Returns
    -------
        0.7 to 1.2 for a fit to the noise; 0 where too few samples lie there.
    """
    radius, squares = torch.hypot(*positions(frame)), residual_squares.cpu()
    if frame.mask is not None:
        radius = radius[frame.mask.cpu()]
    bands = (squares[(low <= radius) & (radius < high)] for low, high in pairwise(_BANDS))
    means = [float(band.mean()) for band in bands if len(band) * frame.n_coils >= _ENOUGH_VALUES]
    return math.sqrt(max(means, default=0.0)) / noise_std


def widening(model_error: float) -> float:
    """By how much a standard deviation that knows nothing of the model's error is to be multiplied.

    The error lies between what held-out samples say, which share the fault and hide part of it, and that times the
    residual over the noise: the geometric mean of both. With readouts of which gain, phase or position is off, the
    standard deviation was .17 to 1.1 times the true error on three scans, and is .7 to 1.3 times it so.
    """
    return math.sqrt(max(1.0, model_error / FITS))
