"""One-dimensional score functions as tables of cubics: exact where it matters, fast everywhere.

An expert's score is a function of one variable per noise level. It is tabulated as cubic Hermite
pieces on a grid that is uniform in u or in sign(u) log(1 + |u| / unit), and continued linearly outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pogmdm_core.errors import ComputeError

Evaluate = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_MAX_INTERVALS = 65536
_N_PROBES = 256


@dataclass(frozen=True)
class ScoreTable:
    """Cubic pieces of `n_filters` odd functions of one variable.

    Attributes
    ----------
    coefficients
        `(4, n_filters * (n_intervals + 2))`: constant to cubic in t in [0, 1); the first
        and the last piece of every filter are the linear continuations.
    bound
        `(n_filters,)` half-range of the grid (in u, or in the logarithm).
    n_intervals
        Intervals per filter.
    unit
        None for a grid uniform in u, else `(n_filters,)`: uniform in sign(u) log(1 + |u| / unit).
    """

    coefficients: torch.Tensor
    bound: torch.Tensor
    n_intervals: int
    unit: torch.Tensor | None = None

    def __call__(self, u: torch.Tensor, filters: slice = slice(None)) -> torch.Tensor:
        """Evaluate the score of some filters (default all); `u` and the result are real `(n_filters, n)`."""
        bound = self.bound[filters].to(u.dtype)
        first = filters.start or 0
        stride = self.n_intervals + 2
        # position 1 is u = -U: piece 0 continues to the left, piece n_intervals + 1 to the right
        if self.unit is not None:
            u = torch.log1p(u.abs() / self.unit[filters].to(u.dtype)[:, None]).copysign_(u)
        t = u * (0.5 * self.n_intervals / bound)[:, None]
        t += 1 + self.n_intervals / 2
        piece = t.floor().clamp_(0, self.n_intervals + 1)
        t -= piece
        # NaN becomes an arbitrary integer: keep it inside the table, t stays NaN and so does the value
        index = piece.to(torch.int32).clamp_(0, self.n_intervals + 1)
        index += torch.arange(first, first + len(bound), device=u.device, dtype=torch.int32)[:, None] * stride
        flat_index, flat_t = index.reshape(-1), t.reshape(-1)
        value = self.coefficients[3].index_select(0, flat_index)
        for order in (2, 1, 0):
            value.mul_(flat_t).add_(self.coefficients[order].index_select(0, flat_index))
        return value.reshape(u.shape)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ScoreTable:
        """Return the same table on a device, in the precision it is to be evaluated in."""
        unit = None if self.unit is None else self.unit.to(device, dtype)
        return ScoreTable(self.coefficients.to(device, dtype), self.bound.to(device, dtype), self.n_intervals, unit)


def build_table(
    evaluate: Evaluate,
    bound: torch.Tensor,
    tolerance: float = 1e-5,
    n_intervals: int = 256,
    unit: torch.Tensor | None = None,
) -> ScoreTable:
    """Tabulate a score, doubling the grid until the error measured between the nodes is small.

    Parameters
    ----------
    evaluate
        Maps u, float64 `(n_filters, n)`, to (score, d score / du), both float64; the score is odd.
    bound
        Half-range U per filter, float64 `(n_filters,)`: as far as filter responses reach.
    tolerance
        Largest error within U, relative to each filter's largest |score| there.
    n_intervals
        Intervals to begin with, even.
    unit
        See `ScoreTable`.

    Raises
    ------
    ComputeError
        E520 when 65536 intervals do not reach the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(bound), _N_PROBES, dtype=torch.float64, generator=generator).to(bound.device)
    half_range = bound if unit is None else torch.log1p(bound / unit)
    probe = _to_response((2 * uniform - 1) * half_range[:, None], unit)
    exact, _ = evaluate(probe)
    while n_intervals <= _MAX_INTERVALS:
        table = _tabulate(evaluate, half_range, n_intervals, unit)
        error = (table(probe) - exact).abs().amax(1) / exact.abs().amax(1)
        if float(error.max()) <= tolerance:
            return table
        n_intervals *= 2
    raise ComputeError(
        520,
        f"the expert table reaches a relative error of {float(error.max()):.1e} with {_MAX_INTERVALS} "
        f"intervals, limit {tolerance:.0e}.",
        "The weights are too spiky for this noise level; start at a higher one.",
    )


def _to_response(t: torch.Tensor, unit: torch.Tensor | None) -> torch.Tensor:
    """Grid coordinate to filter response u."""
    return t if unit is None else torch.sign(t) * unit[:, None] * torch.expm1(t.abs())


def _tabulate(evaluate: Evaluate, half_range: torch.Tensor, n_intervals: int, unit: torch.Tensor | None) -> ScoreTable:
    nodes = torch.linspace(0, 1, n_intervals // 2 + 1, dtype=torch.float64, device=half_range.device)
    t = nodes[None, :] * half_range[:, None]
    value, slope = evaluate(_to_response(t, unit))
    if unit is not None:
        slope = slope * unit[:, None] * torch.exp(t)
    value = torch.cat([-value[:, 1:].flip(1), value], dim=1)  # the functions are odd
    slope = torch.cat([slope[:, 1:].flip(1), slope], dim=1)
    slope_t = slope * (2 * half_range / n_intervals)[:, None]
    left, right = value[:, :-1], value[:, 1:]
    slope_left, slope_right = slope_t[:, :-1], slope_t[:, 1:]
    inner = torch.stack(
        [
            left,
            slope_left,
            3 * (right - left) - 2 * slope_left - slope_right,
            2 * (left - right) + slope_left + slope_right,
        ]
    )
    zero = torch.zeros_like(left[:, :1])
    # the left continuation is measured from t = 1, where it meets the first node
    before = torch.stack([left[:, :1] - slope_left[:, :1], slope_left[:, :1], zero, zero])
    after = torch.stack([right[:, -1:], slope_right[:, -1:], zero, zero])
    coefficients = torch.cat([before, inner, after], dim=2).reshape(4, -1)
    return ScoreTable(coefficients, half_range, n_intervals, unit)


def look_up(position: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Linear interpolation, linearly continued; differentiable in both arguments.

    Parameters
    ----------
    position
        >= 0, units of nodes, `(batch, n_filters, n)`.
    table
        `(batch, n_filters, n_nodes)`.
    """
    batch, n_filters, n_nodes = table.shape
    piece = position.detach().floor().clamp_(max=n_nodes - 2)
    fraction = position - piece
    row = torch.arange(batch * n_filters, device=table.device).reshape(batch, n_filters, 1) * n_nodes
    index = (piece.long() + row).reshape(-1)
    flat = table.reshape(-1)
    low, high = flat.index_select(0, index), flat.index_select(0, index + 1)
    return (low + (high - low) * fraction.reshape(-1)).reshape(position.shape)
