"""Score functions of experts as tables: exact where it matters, fast everywhere.

The score of an expert of a group of filters is phi(u) = g(|u|^2) u, with u the group's responses at one pixel (a vector
of one or more numbers) and g a smooth function per noise level. g is tabulated as cubics over

    w = 1 + |u|^2 / unit^2,

each octave of w divided into equal pieces: fine where the score bends and coarse far out, and which piece a number
belongs to can be read off the bits of w, for a float is an exponent (the octave) and a mantissa (the place in it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pogmdm_core.errors import ComputeError
from pogmdm_core.prior.compiled import multiply_by_factor

Evaluate = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_FIRST_PIECES = 8  # per octave: enough for scale mixtures
_MOST_PIECES = 8192
_N_PROBES = 256
_BEYOND = 8.0  # tables go on as far beyond the range where their error is measured
_MANTISSA_BITS = {torch.float32: 23, torch.float64: 52}
_SAME_SIZE = {torch.float32: torch.int32, torch.float64: torch.int64}
_THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class ScoreTable:
    """Factors g of `n_groups` experts, piece by piece.

    Attributes
    ----------
    coefficients
        `(n_groups, 4, n_pieces + 1)`: constant to cubic in the place within the piece, in [0, 1). The last piece is a
        constant: beyond the range phi is linear.
    per_unit
        1 / unit^2, `(n_groups,)`.
    pieces_per_octave
        A power of two.
    """

    coefficients: torch.Tensor
    per_unit: torch.Tensor
    pieces_per_octave: int

    def __call__(self, u: torch.Tensor, groups: slice = slice(None)) -> torch.Tensor:
        """Evaluate the score of some groups (default all).

        `u` and the result are real, `(n_groups, n_members, n)`, or `(n_groups, n)` for groups of one.
        """
        out = u.clone(memory_format=torch.contiguous_format)
        self.multiply_(out.unsqueeze(1) if u.ndim == 2 else out, groups)
        return out

    def multiply_(self, u: torch.Tensor, groups: slice = slice(None)) -> torch.Tensor:
        """Replace contiguous responses `(n_groups, n_members, n)` by their scores, and return them: for iterations."""
        coefficients, per_unit = self.coefficients[groups], self.per_unit[groups]
        is_float = u.dtype == coefficients.dtype == torch.float32
        compiled = multiply_by_factor() if is_float and u.device.type == "cpu" else None
        if compiled is not None:
            compiled(u, coefficients, per_unit, self._shift(torch.float32))
            return u
        square = u.square().sum(1) if u.shape[1] > 1 else u[:, 0].square()
        return u.mul_(self._factor(square, coefficients, per_unit).unsqueeze(1))

    def _factor(self, square: torch.Tensor, coefficients: torch.Tensor, per_unit: torch.Tensor) -> torch.Tensor:
        """Factors g of squared norms `(n_groups, n)`; that of NaN is arbitrary, its product with u is NaN."""
        dtype, last = square.dtype, coefficients.shape[2] - 1
        shift = self._shift(dtype)
        w = 1 + square * per_unit.to(dtype)[:, None]
        bits = w.view(_SAME_SIZE[dtype]) - torch.ones(1, dtype=dtype, device=w.device).view(_SAME_SIZE[dtype])
        place = (bits & ((1 << shift) - 1)).to(dtype) * 2.0**-shift
        piece = (bits >> shift).clamp_(0, last).long()
        constant, linear, quadratic, cubic = (part.to(dtype).gather(1, piece) for part in coefficients.unbind(1))
        return ((cubic * place + quadratic) * place + linear) * place + constant

    def _shift(self, dtype: torch.dtype) -> int:
        """How many low bits of w tell the place within a piece."""
        return _MANTISSA_BITS[dtype] - (self.pieces_per_octave.bit_length() - 1)

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        return self.coefficients.numel() * self.coefficients.element_size()

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ScoreTable:
        """Return the same table on a device, in the precision it is to be evaluated in."""
        coefficients, per_unit = (part.to(device, dtype).contiguous() for part in (self.coefficients, self.per_unit))
        return ScoreTable(coefficients, per_unit, self.pieces_per_octave)


def build_table(
    evaluate: Evaluate,
    bound: torch.Tensor,
    unit: torch.Tensor,
    tolerance: float = 1e-5,
    pieces_per_octave: int = _FIRST_PIECES,
) -> ScoreTable:
    """Tabulate a score, doubling the number of pieces until the error measured between the nodes is small.

    Parameters
    ----------
    evaluate
        Maps |u| >= 0, float64 `(n_groups, n)`, to (score, d score / du), both float64; the score is odd.
    bound
        Range U of |u| per group, float64 `(n_groups,)`: as far as filter responses reach.
    unit
        Below which |u| counts as small, float64 `(n_groups,)`: about the width of the score's bend at 0.
    tolerance
        Largest error within U, relative to each group's largest |score| there.
    pieces_per_octave
        To begin with, a power of two.

    Raises
    ------
    ComputeError
        E520 when 8192 pieces per octave do not reach the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(bound), _N_PROBES, dtype=torch.float64, generator=generator).to(bound.device)
    # near 0, where most responses are, and everywhere
    near = unit[:, None] * torch.expm1(uniform * torch.log1p(bound / unit)[:, None])
    probe = torch.cat([near, uniform * bound[:, None]], dim=1)
    exact, _ = evaluate(probe)
    while True:
        table = _tabulate(evaluate, bound, unit, pieces_per_octave)
        error = float(((table(probe) - exact).abs().amax(1) / exact.abs().amax(1)).max())
        if error <= tolerance:
            return table
        if 2 * pieces_per_octave > _MOST_PIECES:
            break
        pieces_per_octave *= 2
    raise ComputeError(
        520,
        f"the expert table reaches a relative error of {error:.1e} with {pieces_per_octave} pieces per octave, "
        f"limit {tolerance:.0e}.",
        "The weights are too spiky for this noise level; start at a higher one.",
    )


def _tabulate(evaluate: Evaluate, bound: torch.Tensor, unit: torch.Tensor, pieces_per_octave: int) -> ScoreTable:
    """Cubics through four equidistant points of every piece."""
    n_octaves = math.ceil(math.log2(1 + (_BEYOND * float((bound / unit).max())) ** 2))
    within = 1 + torch.arange(pieces_per_octave, dtype=torch.float64) / pieces_per_octave
    octaves = 2.0 ** torch.arange(n_octaves + 1, dtype=torch.float64)
    left = torch.cat([(octaves[:-1, None] * within).flatten(), octaves[-1:]]).to(bound.device)
    place = torch.tensor(_THIRDS, dtype=torch.float64, device=bound.device)
    inner = left[:-1, None] + left.diff()[:, None] * place[:-1]
    w = torch.cat([inner.flatten(), left[-1:]])
    u = unit[:, None] * (w - 1).sqrt()
    value, slope = evaluate(u)
    factor = torch.where(u > 0, value / torch.where(u > 0, u, torch.ones_like(u)), slope)
    points = factor.unfold(1, len(_THIRDS), len(_THIRDS) - 1)  # neighbouring pieces share a point: g is continuous
    powers = place[:, None] ** torch.arange(len(_THIRDS), device=place.device)
    inside = points @ torch.linalg.inv(powers).T
    beyond = torch.zeros_like(inside[:, :1])
    beyond[..., 0] = factor[:, -1:]
    coefficients = torch.cat([inside, beyond], dim=1).transpose(1, 2).contiguous()
    return ScoreTable(coefficients, unit**-2.0, pieces_per_octave)


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
