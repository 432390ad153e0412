"""Gaussian-scale-mixture experts in units of each filter's noise response.

psi_k(u, level) = sum_j w_kj N(u; 0, xi_k^2 (r_j^2 + level^2)),   r_j geometric, w_k on the simplex

taken to the power alpha_k = xi_k^2 a_k(level). With v = u / (xi_k level) the score is

alpha_k d/du log psi_k = -(a_k xi_k / level) v g_k(v),   g_k = sum_j rho_j level^2 / (r_j^2 + level^2) in (0, 1),

rho the posterior weights of the scales. g > 0 makes every potential increase with |u|: the energy
is bounded below whatever the weights. With weights that are the same at all levels (one knot) the
mixture follows the heat equation in the level, as the paper's experts do; weights learned per level give
that up and denoise better. At every level the score is the gradient of one energy.

Source: Wainwright & Simoncelli 2000 (Gaussian scale mixtures); the exponents are this project's.
"""

from __future__ import annotations

import copy
import math

import torch

from pogmdm_core.prior.base import Experts
from pogmdm_core.prior.tables import ScoreTable, build_table, look_up

_REACH = 8.0  # |u| up to which tables are exact, units of the image scale
_KNOT_RANGE = (0.005, 1.0)  # noise levels of the first and the last knot
_N_EXPONENT_KNOTS = 6
_TRAIN_NODES = 256


class ScaleMixtureExperts(Experts):
    """Zero-mean Gaussian scale mixtures, one set of weights per filter.

    Parameters
    ----------
    n_filters
        Number of experts.
    n_scales
        Mixture components J.
    scale_range
        (smallest, largest) r_j, units of the image scale per unit of filter norm.
    n_knots
        Noise levels at which the weights are learned; between them their logits are linear in log level. 1 gives
        the same weights at all levels.
    """

    kind = "scale_mixture"

    def __init__(
        self,
        n_filters: int,
        n_scales: int = 14,
        scale_range: tuple[float, float] = (0.004, 8.0),
        n_knots: int = 1,
    ) -> None:
        super().__init__()
        self.n_filters, self.n_scales, self.scale_range, self.n_knots = n_filters, n_scales, scale_range, n_knots
        self.logits = torch.nn.Parameter(torch.linspace(1.5, -1.5, n_scales).repeat(n_filters, n_knots, 1))
        self.log_exponents = torch.nn.Parameter(torch.zeros(n_filters, _N_EXPONENT_KNOTS))
        self.register_buffer("width", torch.ones(n_filters))

    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild these experts."""
        return {
            "kind": self.kind,
            "n_scales": self.n_scales,
            "scale_range": list(self.scale_range),
            "n_knots": self.n_knots,
        }

    def mixture_parameters(self) -> list[torch.nn.Parameter]:
        """Mixture weights, for the optimiser's group of that name."""
        return [self.logits]

    def scalar_parameters(self) -> list[torch.nn.Parameter]:
        """Exponents, for the optimiser's group of scalars."""
        return [self.log_exponents]

    def log_weights(self, level: torch.Tensor | float) -> torch.Tensor:
        """Logarithm of the mixture weights at a noise level (or a batch in front), `(..., n_filters, J)`."""
        return torch.log_softmax(self._between_knots(self.logits.transpose(0, 1), level), dim=-1)

    def scales(self) -> torch.Tensor:
        """r_j, `(J,)`."""
        low, high = (math.log(r) for r in self.scale_range)
        return torch.linspace(low, high, self.n_scales, dtype=self.logits.dtype, device=self.logits.device).exp()

    def exponents(self, level: torch.Tensor | float) -> torch.Tensor:
        """alpha_k at a noise level (or a batch of levels in front), `(..., n_filters)`."""
        return self.width**2 * self._relative_exponents(level)

    def log_psi(self, u: torch.Tensor, level: float) -> torch.Tensor:
        """Logarithm of psi_k(u), direct; `u` real `(n_filters, ...)`."""
        shape = (-1,) + (1,) * (u.ndim - 1)
        variance = self.width[:, None] ** 2 * (self.scales() ** 2 + level**2)
        log_weights = self.log_weights(level) - 0.5 * torch.log(2 * math.pi * variance)
        terms = [
            log_weights[:, j].reshape(shape) - u**2 / (2 * variance[:, j].reshape(shape)) for j in range(self.n_scales)
        ]
        return torch.logsumexp(torch.stack(terms), dim=0)

    def score(self, u: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Direct d/du log psi_k and its derivative; `u` real `(n_filters, n)`, any precision."""
        variance = (self.width[:, None] ** 2 * (self.scales() ** 2 + level**2))[:, None, :]
        log_rho = self.log_weights(level)[:, None, :] - 0.5 * torch.log(variance)
        rho = torch.softmax(log_rho - u[..., None] ** 2 / (2 * variance), dim=-1)
        precision = (rho / variance).sum(-1)
        spread = (rho / variance**2).sum(-1) - precision**2
        return -u * precision, -precision + u**2 * spread

    @torch.no_grad()
    def table(self, level: float, tolerance: float = 1e-5) -> ScoreTable:
        """Table of alpha_k d/du log psi_k(u, level) in units of xi_k level."""
        exact = copy.deepcopy(self).double()
        power = exact.exponents(level)[:, None]

        def evaluate(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, slope = exact.score(u, level)
            return power * value, power * slope

        return build_table(evaluate, torch.full_like(exact.width, _REACH), exact.width * level, tolerance)

    def curvature_bound(self, level: float) -> torch.Tensor:
        """Upper bound of the curvature of -alpha_k log psi_k, attained at u = 0, `(n_filters,)`."""
        zero = torch.zeros(self.n_filters, 1, dtype=self.logits.dtype, device=self.logits.device)
        return -self.exponents(level) * self.score(zero, level)[1][:, 0]

    def training_score(self, u: torch.Tensor, levels: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """Differentiable score of a batch through linear tables of v g(v) over log(1 + |v|).

        Parameters
        ----------
        u
            Filter responses, real `(batch, n_filters, n)`.
        levels
            Noise level of each batch element, `(batch,)`.
        widths
            xi_k, `(n_filters,)`; gradients reach it.

        Returns
        -------
            alpha_k phi_k(u), `(batch, n_filters, n)`.
        """
        unit = widths * levels[:, None]
        t = torch.log1p(u.abs() / unit[..., None])
        step = math.log1p(_REACH / float(unit.detach().min())) / (_TRAIN_NODES - 1)
        v = torch.expm1(step * torch.arange(_TRAIN_NODES, dtype=u.dtype, device=u.device))
        ratio = levels[:, None] ** 2 / (self.scales() ** 2 + levels[:, None] ** 2)
        log_rho = self.log_weights(levels) + 0.5 * torch.log(ratio)[:, None, :]
        rho = torch.softmax(log_rho[:, :, None, :] - 0.5 * v[:, None] ** 2 * ratio[:, None, None, :], dim=-1)
        table = v * (rho * ratio[:, None, None, :]).sum(-1)
        value = look_up(t / step, table) * torch.sign(u.detach())
        amplitude = self._relative_exponents(levels) * widths / levels[:, None]
        return -amplitude[..., None] * value

    def _relative_exponents(self, level: torch.Tensor | float) -> torch.Tensor:
        """a_k, `(..., n_filters)`."""
        return torch.exp(self._between_knots(self.log_exponents.T, level))

    def _between_knots(self, knots: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Interpolate values at knots `(n_knots, ...)` linearly in log level, constant beyond the ends."""
        low, high = _KNOT_RANGE
        level = torch.as_tensor(level, dtype=knots.dtype, device=knots.device)
        if len(knots) == 1:
            return knots[0].expand(*level.shape, *knots.shape[1:])
        last = len(knots) - 1
        position = (torch.log(level / low) / math.log(high / low) * last).clamp(0, last)
        left = position.floor().clamp_max(last - 1)
        fraction = (position - left).reshape(*level.shape, *[1] * (knots.ndim - 1))
        index = left.long()
        return (1 - fraction) * knots[index] + fraction * knots[index + 1]
