"""The paper's experts: one-dimensional Gaussian mixtures on a fixed grid of means.

psi_k(u, level) = sum_l w_kl N(u; mu_l, s_k),  s_k = sigma_0^2 + xi_k^2 level^2        (corrected eq. 2)

with L = 125 means mu_l on [-eta, eta], symmetric simplex weights w_k, sigma_0 the spacing of the
means and xi_k the width by which white noise of std 1 arrives at filter k. The product model takes
each expert to the power a_k(level) (1 in the paper); learned exponents undo the redundancy of an
overcomplete bank.

Source: Zach et al., arXiv 2310.12653; Nagler, Zach & Pock, arXiv 2501.08662, eq. 2.
"""

from __future__ import annotations

import copy
import math

import torch

from pogmdm_core.prior.base import Experts
from pogmdm_core.prior.tables import ScoreTable, build_table, look_up

_TAIL = 8.0  # half-range of the tables beyond the outermost mean, in expert standard deviations
_REACH = 1.5  # filter responses of images of scale 1 stay within this
_WEIGHT_FLOOR = 1e-14
_START_EXPONENT = 0.25  # about 1 / redundancy of the bank
_TRAIN_NODES = 400  # per half-range of the differentiable tables


class GridMixtureExperts(Experts):
    """Symmetric Gaussian mixtures with 125 fixed means.

    Parameters
    ----------
    n_filters
        Number of experts.
    n_means
        L, odd.
    half_range
        eta: means lie on [-eta, eta], units of the image scale.
    """

    kind = "grid_mixture"

    def __init__(self, n_filters: int, n_means: int = 125, half_range: float = 0.5) -> None:
        super().__init__()
        if n_means % 2 == 0 or n_means < 3:
            raise ValueError(f"n_means must be odd and at least 3, got {n_means}")
        self.n_filters, self.n_means, self.half_range = n_filters, n_means, half_range
        self.half_logits = torch.nn.Parameter(_start_logits(n_filters, n_means))
        # log a_k(level) = exponent_k + exponent_slope_k * log(level / 0.1)
        self.exponent = torch.nn.Parameter(torch.full((n_filters,), math.log(_START_EXPONENT)))
        self.exponent_slope = torch.nn.Parameter(torch.zeros(n_filters))
        self.register_buffer("width", torch.ones(n_filters))
        self.register_buffer("sigma_0", torch.tensor(2 * half_range / (n_means - 1)))
        self.sigma_0: torch.Tensor

    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild these experts."""
        return {"kind": self.kind, "n_means": self.n_means, "half_range": self.half_range}

    def mixture_parameters(self) -> list[torch.nn.Parameter]:
        """Mixture weights, for the optimiser's group of that name."""
        return [self.half_logits]

    def scalar_parameters(self) -> list[torch.nn.Parameter]:
        """Exponents, for the optimiser's group of scalars."""
        return [self.exponent, self.exponent_slope]

    def weights(self) -> torch.Tensor:
        """All mixture weights, `(n_filters, L)`: on the symmetric simplex by construction (softmax)."""
        half = self.half_logits
        return torch.softmax(torch.cat([half.flip(1)[:, :-1], half], dim=1), dim=1)

    def means(self) -> torch.Tensor:
        """mu_l, `(L,)`."""
        return torch.linspace(
            -self.half_range,
            self.half_range,
            self.n_means,
            dtype=self.half_logits.dtype,
            device=self.half_logits.device,
        )

    def variance(self, level: torch.Tensor | float) -> torch.Tensor:
        """s_k at a noise level (or a batch of levels in front), `(..., n_filters)`."""
        level = torch.as_tensor(level, dtype=self.width.dtype, device=self.width.device)
        return self.sigma_0**2 + (self.width * level[..., None]) ** 2

    def exponents(self, level: torch.Tensor | float) -> torch.Tensor:
        """a_k at a noise level (or a batch of levels in front), `(..., n_filters)`."""
        level = torch.as_tensor(level, dtype=self.exponent.dtype, device=self.exponent.device)
        return torch.exp(self.exponent + self.exponent_slope * torch.log(level.clamp_min(1e-3) / 0.1)[..., None])

    def log_psi(self, u: torch.Tensor, level: float) -> torch.Tensor:
        """Logarithm of psi_k(u), direct log-sum-exp; `u` real `(n_filters, ...)`."""
        s = self.variance(level)
        shape = (-1,) + (1,) * (u.ndim - 1)
        log_weights = self.weights().clamp_min(_WEIGHT_FLOOR).log()
        total = None
        for mean, log_weight in zip(self.means(), log_weights.T, strict=True):
            term = log_weight.reshape(shape) - (u - mean) ** 2 / (2 * s.reshape(shape))
            total = term if total is None else torch.logaddexp(total, term)
        assert total is not None  # noqa: S101 - n_means >= 3
        found: torch.Tensor = total - 0.5 * torch.log(2 * math.pi * s).reshape(shape)
        return found

    def score(self, u: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Direct d/du log psi_k and its derivative; `u` real `(n_filters, n)`, any precision.

        Uses the posterior mean m and variance V of the component means:
        phi = -(u - m)/s, d phi/du = -1/s + V/s^2 (`method.md` 1.1).
        """
        s = self.variance(level)[:, None, None]
        mu = self.means()
        distance = (u[..., None] - mu) ** 2
        kernel = torch.exp((distance.amin(-1, keepdim=True) - distance) / (2 * s))
        weights = self.weights().clamp_min(_WEIGHT_FLOOR)
        moments = kernel @ torch.stack([weights, weights * mu, weights * mu**2], dim=-1)
        m = moments[..., 1] / moments[..., 0]
        v = moments[..., 2] / moments[..., 0] - m**2
        s = s[..., 0]
        return -(u - m) / s, -1 / s + v / s**2

    @torch.no_grad()
    def table(self, level: float, tolerance: float = 1e-5) -> ScoreTable:
        """Table of a_k(level) * d/du log psi_k(u, level), error-checked against `score`."""
        exact = copy.deepcopy(self).double()
        power = exact.exponents(level)[:, None]

        def evaluate(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pieces = [exact.score(part, level) for part in torch.split(u, 256, dim=1)]
            value = torch.cat([p[0] for p in pieces], dim=1)
            slope = torch.cat([p[1] for p in pieces], dim=1)
            return power * value, power * slope

        width = exact.variance(level).sqrt()
        return build_table(evaluate, (self.half_range + _TAIL * width).clamp_min(_REACH), width, tolerance)

    def curvature_bound(self, level: float) -> torch.Tensor:
        """Upper bound of the curvature of -a_k log psi_k: a_k / s_k, `(n_filters,)`."""
        return self.exponents(level) / self.variance(level)

    def training_score(self, u: torch.Tensor, levels: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """Differentiable score of a batch through linear tables.

        Parameters
        ----------
        u
            Filter responses, real `(batch, n_filters, n)`.
        levels
            Noise level of each batch element, `(batch,)`.
        widths
            xi_k, `(n_filters,)`, taken as constants.

        Returns
        -------
            a_k phi_k(u), `(batch, n_filters, n)`; gradients reach `u`, the weights and the exponents.
            Per pixel it costs one look-up instead of 125 exponentials.
        """
        s = self.sigma_0**2 + (widths.detach() * levels[:, None]) ** 2
        bound = (self.half_range + 4 * s.sqrt()).clamp_min(1.0)
        step = bound / (_TRAIN_NODES - 1)
        grid = step[..., None] * torch.arange(_TRAIN_NODES, dtype=u.dtype, device=u.device)
        mu = self.means()
        distance = (grid[..., None] - mu) ** 2
        kernel = torch.exp((distance.amin(-1, keepdim=True) - distance) / (2 * s[..., None, None]))
        weights = self.weights()
        mass = torch.einsum("bkgl,kl->bkg", kernel, weights) + 1e-30
        moment = torch.einsum("bkgl,kl->bkg", kernel, weights * mu)
        power = self.exponents(levels)[..., None]
        # m - u is tabulated; at u = 0 it is 0 by symmetry
        table = power * (moment / mass - grid) / s[..., None]
        return look_up(u.abs() / step[..., None], table) * torch.sign(u.detach())


def _start_logits(n_filters: int, n_means: int) -> torch.Tensor:
    """Heavy-tailed start (Student-t like), means 0 to eta, `(n_filters, (L + 1) / 2)`."""
    u = torch.linspace(0, 1, (n_means + 1) // 2)
    return -torch.log1p((u / 0.05) ** 2).repeat(n_filters, 1)
