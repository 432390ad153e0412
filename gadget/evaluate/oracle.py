"""The best parameter on a grid, chosen on the truth: what comparators get and a user never has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_EXTENSIONS = 8


class Best(NamedTuple):
    """Image, its parameter, how many were tried, and whether the best is still at the edge of the grid."""

    image: np.ndarray
    parameter: float
    n_tried: int
    at_edge: bool


def best_on_grid(
    solve: Callable[[float], np.ndarray], grid: Sequence[float], score: Callable[[np.ndarray], float]
) -> Best:
    """Solve on an equidistant logarithmic grid and keep the best.

    Parameters
    ----------
    solve
        Parameter to image. Called in descending order, so that it may start from its last result.
    grid
        Ascending. While the best is its first or last entry, it is extended by the same ratio, at most 8 times.
    score
        Higher is better; an image that is not finite never wins.
    """
    ratio = grid[1] / grid[0]
    tried: dict[float, tuple[float, np.ndarray]] = {}

    def attempt(parameter: float) -> None:
        image = solve(parameter)
        tried[parameter] = (score(image) if np.isfinite(image).all() and image.any() else -np.inf, image)

    for parameter in reversed(grid):
        attempt(parameter)
    edge = True
    for _ in range(_EXTENSIONS + 1):
        best = max(tried, key=lambda parameter: tried[parameter][0])
        edge = best in (min(tried), max(tried))
        if not edge or len(tried) - len(grid) >= _EXTENSIONS:
            break
        attempt(best / ratio if best == min(tried) else best * ratio)
    return Best(tried[best][1], best, len(tried), edge)
