"""Coils that move while samples are drawn: one proximal gradient step now and then (eqs. 11 and 12 of the paper)."""

from __future__ import annotations

from pogmdm_core.estimate.samplers.base import SamplerState
from pogmdm_core.estimate.smoothness import prox_smoothness
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares


def update_coils(state: SamplerState, model: EncodingModel, smoothness: float, boundary: str) -> None:
    """One proximal gradient step on the coils, then back to unit root-sum-of-squares.

    Step 1/L with L = ||N|| max |x|^2; the smoothness weight mu enters the proximal map as mu/L. The
    renormalisation multiplies the image by what it takes from the coils: data are unchanged.
    """
    peak = state.x.abs().amax(dim=(-2, -1)).square().clamp_min(1e-12) * model.fourier.norm
    peak = peak[:, None, None, None]
    moved = state.csm - model.grad_csm(state.x, state.csm) / peak
    csm = prox_smoothness(moved, smoothness / peak, boundary)
    rss = root_sum_of_squares(csm)
    state.csm = csm / rss.clamp_min(1e-6).unsqueeze(-3)
    state.x = state.x * rss
