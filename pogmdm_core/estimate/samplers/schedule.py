"""Noise levels the samplers visit."""

from __future__ import annotations


def geometric_levels(start: float, end: float, n_steps: int) -> list[float]:
    """Descending levels from `start` to `end`, `n_steps + 1` of them, constant ratio.

    The paper's zeta_i = zeta_min (zeta_max / zeta_min)^(i / N), read from the top (i = N) down.
    """
    ratio = (end / start) ** (1 / n_steps)
    return [start * ratio**i for i in range(n_steps + 1)]
