"""Whole-number pixels, value = slope * pixel + intercept: one slope for all magnitudes of a scan.

The standard deviation, far smaller than the image, is multiplied by a power of two that its series names.

Twelve bits, 0 to 4095: what DICOM writers and Gadgetron's FloatToUShortGadget (which clamps to that range by
default) take without another scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LARGEST = 4095
_HEADROOM = 1.25  # the first image of a series sets the slope of all: later ones may be brighter


@dataclass(frozen=True)
class PixelScale:
    """Slope and intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def of_magnitude(cls, first: np.ndarray, window: float | None) -> PixelScale:
        """Scale for values >= 0: `window` becomes the largest pixel, by default 1.25 times the first image's peak."""
        top = window if window is not None else _HEADROOM * float(first.max())
        return cls(top / LARGEST) if top > 0 else cls()

    @classmethod
    def of_phase(cls) -> PixelScale:
        """Scale for radians in [-pi, pi]."""
        return cls(2 * np.pi / LARGEST, -np.pi)

    def finer(self, first: np.ndarray) -> tuple[PixelScale, int]:
        """Scale for values >= 0 far smaller than those of this one, whose pixels are a power of two as large.

        Returns
        -------
            The scale, and the power: ``pixel / power`` is on this scale. The relation of the two series then survives
            writers that drop the slope (Gadgetron's DICOM gadget does), if the power is told in words.
        """
        peak = _HEADROOM * float(first.max()) / self.slope
        power = 2 ** max(0, math.floor(math.log2(LARGEST / peak))) if peak > 0 else 1
        power = min(power, LARGEST + 1)
        return PixelScale(self.slope / power), power

    def pixels(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """Nearest pixels, uint16, and how many values did not fit and were clipped. Values must be finite."""
        scaled = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        clipped = int(((scaled < 0) | (scaled > LARGEST)).sum())
        return np.clip(scaled, 0, LARGEST).astype(np.uint16), clipped
