"""Lengths whose Fourier transforms are fast."""

from __future__ import annotations

_PADDED_FROM, _MOST_FACTOR = 64, 13


def good_length(n: int, step: int = 1) -> int:
    """Smallest multiple of `step` that is >= n and has no prime factor above 5: Fourier transforms of it are fast."""
    n = -(-n // step) * step
    while _largest_factor(n) > 5:  # noqa: PLR2004 - see above
        n += step
    return n


def padded_length(n: int) -> int:
    """Length >= n to transform an image of n pixels on where its own would take several times as long, else n.

    230 = 2 * 5 * 23 takes 2.5 times as long as 240; up to 13 factors cost little, and short lengths nothing.
    """
    return good_length(n, step=8) if is_slow(n) else n


def is_slow(n: int) -> bool:
    """Whether transforms of this length take several times as long as those of its neighbours."""
    return n >= _PADDED_FROM and _largest_factor(n) > _MOST_FACTOR


def _largest_factor(n: int) -> int:
    largest, factor = 1, 2
    while n > 1:
        while n % factor == 0:
            largest, n = factor, n // factor
        factor += 1
    return largest
