"""Samplers against closed forms: Gaussian priors make every one of them a linear recursion."""

from __future__ import annotations

import pytest
import torch

from pogmdm_core.estimate.samplers.base import Diverged, SampleNoise, Sampler, SamplerState
from pogmdm_core.estimate.samplers.coil_update import update_coils
from pogmdm_core.estimate.samplers.loop import sample
from pogmdm_core.estimate.samplers.renoise import data_step
from pogmdm_core.estimate.samplers.schedule import geometric_levels
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.prior.multiscale import MultiscaleBank
from pogmdm_core.prior.scale_mixture import ScaleMixtureExperts
from pogmdm_core.registry import SAMPLERS
from pogmdm_core.settings import CoilSettings, SamplerSettings

SHAPE = (10, 8)
ETA = 0.05
N_DRAWS = 640


@pytest.fixture(scope="module")
def gaussian_prior() -> ProductPrior:
    """All scales alike: a Gaussian with a known precision per frequency."""
    bank = MultiscaleBank(((1, 7, 6), (2, 7, 4)))  # few: what is tested does not depend on it
    prior = ProductPrior(bank, ScaleMixtureExperts(bank.n_filters, n_scales=2, scale_range=(0.1, 0.1)))
    prior.measure_widths()
    return prior.requires_grad_(False)


def precision_of(prior: ProductPrior, level: float) -> torch.Tensor:
    """Prior precision per frequency, `(ny, nx)`, DC at [0, 0]."""
    per_filter = prior.experts.exponents(level) / (prior.experts.width**2 * (0.1**2 + level**2))
    return (prior.bank.spectra(SHAPE).abs() ** 2 * per_filter[:, None, None]).sum(0).double()


@pytest.fixture(scope="module")
def scan() -> tuple[EncodingModel, torch.Tensor, torch.Tensor]:
    """Model, mask and data on the uncentred grid: one coil of ones, rows sampled in part."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[[1, 4, 5, 6, 8]] = True
    image = torch.zeros(SHAPE)
    image[3:8, 2:6] = 1
    noise = torch.view_as_complex(torch.randn(1, *SHAPE, 2, generator=generator)) * ETA
    kspace = (centred_fft(image.to(torch.complex64)) + noise[0])[None]
    model = EncodingModel(KSpaceFrame.cartesian(kspace, mask, ETA))
    data = torch.fft.fft2(model.adjoint_data[0], norm="ortho").to(torch.complex128)
    return model, torch.fft.ifftshift(mask), data


def draw(model, prior, **settings) -> torch.Tensor:
    """Draws as spectra, complex128 `(draw, ny, nx)`."""
    values = SamplerSettings(n_samples=1, **settings)
    csm = torch.ones(1, *SHAPE, dtype=torch.complex64)
    start = torch.zeros(SHAPE, dtype=torch.complex64)
    state = sample(model, prior, start, csm, ETA, range(N_DRAWS), values, CoilSettings())
    assert state is not None
    return torch.fft.fft2(state.x, norm="ortho").to(torch.complex128)


def check_law(spectra: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, sigmas: float = 4.0) -> None:
    """Sample mean and variance (per real/imaginary part) of every frequency within 4 standard errors."""
    n = len(spectra)
    z_mean = torch.view_as_real(spectra.mean(0) - mean).abs() / (variance[..., None] / n).sqrt()
    found = torch.view_as_real(spectra).var(dim=0)
    z_variance = (found / variance[..., None] - 1).abs() / (2 / (n - 1)) ** 0.5
    for z in (z_mean, z_variance):
        assert z.max() < sigmas


def test_langevin_draws_from_the_gaussian_posterior(gaussian_prior, scan):
    model, mask, data = scan
    level = 0.1
    step = 0.05  # inflates variances by at most step / 2
    spectra = draw(
        model,
        gaussian_prior,
        method="langevin",
        n_steps=220,
        start_level=level * 1.001,
        end_level=level,
        langevin_step=step,
        cg_steps=3,
    )
    precision = precision_of(gaussian_prior, level) + mask / ETA**2
    mean = (data / ETA**2) / precision
    # directions that neither data nor prior know well have not forgotten the start yet
    known = precision > 0.4 * level**-2
    assert known.double().mean() > 0.6
    check_law(spectra[:, known], mean[known], 1 / precision[known])


def test_renoise_follows_its_exact_law(gaussian_prior, scan):
    model, mask, data = scan
    n_steps, start, end = 6, 0.3, 0.03
    spectra = draw(
        model, gaussian_prior, method="renoise", n_steps=n_steps, start_level=start, end_level=end, cg_steps=12
    )
    levels = geometric_levels(start, end, n_steps)
    mean = torch.zeros(SHAPE, dtype=torch.complex128)
    variance = torch.full(SHAPE, start**2, dtype=torch.float64)

    def contract(level: float) -> None:
        """One denoising and one exact data step."""
        nonlocal mean, variance
        keep = 1 - level**2 * precision_of(gaussian_prior, level)
        weight = (level / ETA) ** 2
        mean = (keep * mean + weight * data) / (1 + weight * mask)
        variance = (keep / (1 + weight * mask)) ** 2 * variance

    for level, following in zip(levels[:-1], levels[1:], strict=True):
        contract(level)
        variance = variance + following**2
    contract(levels[-1])
    check_law(spectra, mean, variance)


def test_paper_predictor_follows_its_exact_law(gaussian_prior, scan):
    model, mask, data = scan
    n_steps, start, end = 8, 0.3, 0.03
    spectra = draw(
        model,
        gaussian_prior,
        method="paper",
        likelihood="annealed",
        corrector=0,
        n_steps=n_steps,
        start_level=start,
        end_level=end,
    )
    levels = geometric_levels(start, end, n_steps)
    mean = torch.zeros(SHAPE, dtype=torch.complex128)
    variance = torch.full(SHAPE, start**2, dtype=torch.float64)
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        drop = level**2 - following**2
        keep = 1 - drop * precision_of(gaussian_prior, level)
        pull = following**2 / (following**2 + ETA**2) * mask
        mean = (1 - pull) * keep * mean + pull * data
        variance = (1 - pull) ** 2 * (keep**2 * variance + drop)
    keep = 1 - levels[-1] ** 2 * precision_of(gaussian_prior, levels[-1])
    check_law(spectra, keep * mean, keep**2 * variance)


def test_paper_corrector_leaves_the_prior_unchanged(gaussian_prior):
    """Without data, many correctors at one level sample the Gaussian prior: variance 1 / precision."""
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, 0] = True  # one corner sample: the model must have data
    model = EncodingModel(KSpaceFrame.cartesian(torch.zeros(1, *SHAPE, dtype=torch.complex64), mask, ETA))
    level = 0.2
    spectra = draw(
        model, gaussian_prior, method="paper", likelihood="unit", corrector=5, n_steps=30,
        start_level=level * 1.0001, end_level=level,
    )  # fmt: skip
    precision = precision_of(gaussian_prior, level)
    keep = 1 - level**2 * precision  # the closing denoising step
    known = (precision > 0.3 * level**-2) & ~torch.fft.ifftshift(mask)
    assert known.sum() > 20
    found = torch.view_as_real(spectra[:, known]).var(dim=0).mean(-1)
    expected = (keep**2 / precision)[known]
    assert torch.median((found / expected - 1).abs()) < 0.08  # the step 2 (r |xi| / |score|)^2 is not small


def test_data_step_solves_its_normal_equations(scan):
    model, mask, data = scan
    x = torch.view_as_complex(torch.randn(1, *SHAPE, 2, generator=torch.Generator().manual_seed(0)))
    level = 0.2
    found = data_step(x, torch.ones(1, 1, *SHAPE, dtype=torch.complex64), model, level, ETA, 20)
    weight = (level / ETA) ** 2
    expected = (torch.fft.fft2(x[0], norm="ortho") + weight * data) / (1 + weight * mask)
    assert torch.allclose(torch.fft.fft2(found[0], norm="ortho").to(torch.complex128), expected, atol=1e-4)


@pytest.mark.fault("F47")
def test_a_sample_does_not_depend_on_its_batch(gaussian_prior, scan):
    model, _, _ = scan
    csm = torch.ones(1, *SHAPE, dtype=torch.complex64)
    start = torch.zeros(SHAPE, dtype=torch.complex64)
    for method, likelihood in (("renoise", "exact"), ("langevin", "exact"), ("paper", "unit")):
        settings = SamplerSettings(method=method, likelihood=likelihood, n_steps=5)
        together = sample(model, gaussian_prior, start, csm, ETA, range(4), settings, CoilSettings())
        alone = sample(model, gaussian_prior, start, csm, ETA, range(2, 3), settings, CoilSettings())
        assert torch.allclose(together.x[2], alone.x[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together.x[1], together.x[2], atol=1e-2)


def test_noise_has_unit_variance_per_part_and_depends_on_seed_and_sample():
    first, again = (SampleNoise(5, range(3), torch.device("cpu")).draw((200, 200)) for _ in range(2))
    assert torch.equal(first, again)
    parts = torch.view_as_real(first)
    assert parts.var(dim=(1, 2)).sub(1).abs().max() < 0.03
    other = SampleNoise(6, range(3), torch.device("cpu")).draw((200, 200))
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("boundary", ["dirichlet", "neumann"])
def test_coil_update_keeps_unit_coils_and_lowers_the_objective(boundary):
    generator = torch.Generator().manual_seed(0)
    shape, n_coils = (20, 24), 4
    phase = torch.linspace(-1, 1, 24)[None, :] * torch.linspace(0.5, 1, 20)[:, None]
    truth = torch.stack([torch.polar(torch.exp(-((phase - c / 4) ** 2)), c * phase) for c in range(n_coils)])
    truth = truth / torch.linalg.vector_norm(truth, dim=0)
    image = torch.rand(shape, generator=generator) + 0.5
    kspace = centred_fft(truth * image)
    model = EncodingModel(KSpaceFrame.cartesian(kspace, torch.ones(shape, dtype=torch.bool), 0.01))
    noisy = truth + 0.2 * torch.view_as_complex(torch.randn(n_coils, *shape, 2, generator=generator))
    noisy = noisy / torch.linalg.vector_norm(noisy, dim=0)
    state = SamplerState(image.to(torch.complex64)[None], noisy[None])
    before = model.residual_std(state.x[0], state.csm[0])
    for _ in range(5):
        update_coils(state, model, smoothness=0.01, boundary=boundary)
    assert model.residual_std(state.x[0], state.csm[0]) < 0.7 * before
    assert torch.allclose(torch.linalg.vector_norm(state.csm, dim=1), torch.ones(1, *shape), atol=1e-4)


def test_divergence_is_reported_with_its_step(gaussian_prior, scan):
    model, _, _ = scan

    class Broken(ProductPrior):
        def score(self, x, level):
            return torch.full_like(x, float("nan"))

    broken = Broken(gaussian_prior.bank, gaussian_prior.experts)
    start, csm = torch.zeros(SHAPE, dtype=torch.complex64), torch.ones(1, *SHAPE, dtype=torch.complex64)
    with pytest.raises(Diverged) as caught:
        sample(model, broken, start, csm, ETA, range(2), SamplerSettings(n_steps=3), CoilSettings())
    assert caught.value.step == 0


def test_stopping_returns_nothing(gaussian_prior, scan):
    model, _, _ = scan
    start, csm = torch.zeros(SHAPE, dtype=torch.complex64), torch.ones(1, *SHAPE, dtype=torch.complex64)
    seen = []
    state = sample(
        model, gaussian_prior, start, csm, ETA, range(2), SamplerSettings(n_steps=9), CoilSettings(),
        report=lambda done, total: seen.append((done, total)), should_stop=lambda: len(seen) == 3,
    )  # fmt: skip
    assert state is None
    assert seen == [(1, 9), (2, 9), (3, 9)]


class Drop(Sampler):
    """A sampler of one's own: adds nothing, and lets go of half of the image at every level."""

    def step(self, state, task, level, next_level):
        state.x = state.x / 2


def test_a_further_sampler_is_a_class_and_a_name(gaussian_prior, scan, monkeypatch):
    model, image, csm = scan
    monkeypatch.setitem(SAMPLERS, "drop", f"{__name__}:Drop")
    settings = SamplerSettings(method="drop", n_steps=3, start_level=0.2, end_level=0.1)
    state = sample(model, gaussian_prior, image, csm, ETA, range(2), settings, CoilSettings())
    noise = SampleNoise(settings.seed, range(2), torch.device("cpu")).draw(SHAPE)
    assert torch.allclose(state.x, (image + 0.2 * noise) / 8)
