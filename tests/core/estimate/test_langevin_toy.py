"""The Langevin sampler against posteriors known in closed form or by quadrature: mean and variance to 3 %."""

from __future__ import annotations

import pytest
import torch

from pogmdm_core.estimate.samplers.loop import sample
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.settings import CoilSettings, SamplerSettings

SHAPE = (16, 12)
ETA = 0.2
LEVEL = 0.15
N_DRAWS = 160


class PixelMixture:
    """Independent pixels: real and imaginary parts drawn from a mixture of Gaussians, smoothed to a level."""

    def __init__(self, weights, means, std):
        self.weights, self.means, self.std = torch.tensor(weights), torch.tensor(means), std

    def log_density(self, u, level):
        variance = self.std**2 + level**2
        return torch.logsumexp(self.weights.log() - (u[..., None] - self.means) ** 2 / (2 * variance), -1)

    def score(self, x, level):
        u = torch.view_as_real(x)
        variance = self.std**2 + level**2
        parts = self.weights.log() - (u[..., None] - self.means) ** 2 / (2 * variance)
        mean = (torch.softmax(parts, -1) * self.means).sum(-1)
        return torch.view_as_complex((mean - u) / variance)


PRIORS = {
    "gaussian": PixelMixture([1.0], [0.2], 0.3),
    "two components": PixelMixture([0.35, 0.65], [-0.3, 0.3], 0.12),
}


@pytest.mark.parametrize("name", PRIORS)
def test_mean_and_variance_are_those_of_the_posterior(name):
    prior = PRIORS[name]
    generator = torch.Generator().manual_seed(5)
    data = 0.35 * torch.view_as_complex(torch.randn(*SHAPE, 2, generator=generator))
    frame = KSpaceFrame.cartesian(centred_fft(data)[None], torch.ones(SHAPE, dtype=torch.bool), ETA)
    settings = SamplerSettings(
        method="langevin",
        n_steps=300,
        start_level=LEVEL * 1.001,
        end_level=LEVEL,
        langevin_step=0.05,
        cg_steps=2,
    )
    csm = torch.ones(1, *SHAPE, dtype=torch.complex64)
    state = sample(EncodingModel(frame), prior, data, csm, ETA, range(N_DRAWS), settings, CoilSettings())
    draws = torch.view_as_real(state.x)

    u = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    log_posterior = prior.log_density(u, LEVEL) - (torch.view_as_real(data)[..., None] - u) ** 2 / (2 * ETA**2)
    weight = torch.softmax(log_posterior, -1)
    mean = (weight * u).sum(-1)
    variance = (weight * u**2).sum(-1) - mean**2

    # pooled over pixels, so that sampling noise stays below half a per cent
    assert float((draws.var(0) / variance).mean()) == pytest.approx(1, abs=0.03)
    residual = draws.mean(0) - mean
    assert float(residual.mean() / variance.mean().sqrt()) == pytest.approx(0, abs=0.03)
    # means follow the posterior's from pixel to pixel, and not the data's
    slope = float((mean * draws.mean(0)).sum() / mean.square().sum())
    assert slope == pytest.approx(1, abs=0.03)
    assert abs(float((mean * torch.view_as_real(data)).sum() / mean.square().sum()) - 1) > 0.1
