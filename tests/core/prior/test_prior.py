import math
from itertools import pairwise

import pytest
import torch
from helpers.simulated_scan import simulate

import pogmdm_core
from pogmdm_core import load_prior
from pogmdm_core.prior import model
from pogmdm_core.prior.grid_mixture import GridMixtureExperts
from pogmdm_core.prior.model import ProductPrior, filter_norms
from pogmdm_core.prior.multiscale import MultiscaleBank
from pogmdm_core.prior.scale_mixture import ScaleMixtureExperts
from pogmdm_core.prior.shearlets import ShearletBank

FAMILIES = ("paper", "multiscale")


def make_prior(family):
    """An untrained prior with disturbed parameters, so that nothing is special about it."""
    generator = torch.Generator().manual_seed(0)
    if family == "paper":
        bank, experts = ShearletBank(tight_frame=0.1), GridMixtureExperts(20)
    else:
        bank = MultiscaleBank(((1, 5, 4), (2, 5, 3)))
        experts = ScaleMixtureExperts(bank.n_filters)
    prior = ProductPrior(bank, experts)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    prior.measure_widths()
    return prior.requires_grad_(False)


@pytest.fixture(params=FAMILIES)
def prior(request):
    return make_prior(request.param)


@pytest.fixture(params=FAMILIES)
def double_prior(request):
    return make_prior(request.param).double()


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def piecewise_image(n=96):
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    image = 0.5 * (x**2 / 0.7 + y**2 / 0.85 < 1).float()
    image += 0.3 * (((x - 0.2) / 0.3) ** 2 + ((y + 0.1) / 0.45) ** 2 < 1)
    image -= 0.25 * ((x + 0.35).abs() + (y - 0.2).abs() < 0.25)
    return image


def relative(a, b):
    return float((a - b).norm() / b.norm())


# the tables are correct to 1e-5 of each expert's largest score
TABLE = 3e-5


@pytest.mark.parametrize("level", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(12, 17), (12, 68)])  # 68 = 4 * 17 is filtered on 72
def test_score_is_minus_the_gradient_of_the_energy(double_prior, level, dtype, shape):
    x = (0.3 * noise(*shape, dtype=dtype)).requires_grad_()
    # the public energy records no graph: its body does
    energy = ProductPrior.energy.__wrapped__(double_prior, x, level)
    (gradient,) = torch.autograd.grad(energy, x)
    assert relative(double_prior.score(x.detach(), level), -gradient) < TABLE
    # and the same for the public one, along a direction
    d, step = noise(*shape, dtype=dtype, seed=1), 1e-5
    ahead = double_prior.energy(x.detach() + step * d, level)
    behind = double_prior.energy(x.detach() - step * d, level)
    along = float((gradient.conj() * d).real.sum())
    assert float(ahead - behind) / (2 * step) == pytest.approx(along, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2**25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_analysis_and_synthesis_are_adjoint(prior, chunk, dtype, monkeypatch):
    """With experts phi(u) = c_k u the score is sum_k c_k K_k^T K_k x, whatever the chunks."""
    monkeypatch.setattr(model, "_CHUNK_BYTES", {"cpu": chunk})
    n_filters = prior.bank.n_filters
    gains = torch.linspace(0.5, 2, n_filters)[:, None]

    class Linear:
        def multiply_(self, u, part):
            return u.mul_(gains[part, :, None])

    monkeypatch.setattr(prior, "_cached_table", lambda *_: Linear())
    batch = noise(3, 31, 37, dtype=dtype)
    spectra = prior.bank.spectra((31, 37))
    expected = torch.fft.ifft2((gains[:, None] * spectra.abs() ** 2).sum(0) * torch.fft.fft2(batch))
    out = prior.score(batch, 0.1)
    assert out.dtype == dtype
    assert relative(out, expected if dtype.is_complex else expected.real) < 1e-5
    x = batch[0]
    # <K x, v> = <x, K^T v>
    v = noise(n_filters, 31, 37, seed=1)
    left = (torch.fft.ifft2(spectra.conj() * torch.fft.fft2(x.real)).real * v).sum()
    right = (torch.fft.ifft2((spectra * torch.fft.fft2(v)).sum(0)).real * x.real).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("shape", [(32, 32), (31, 37), (40, 25), (9, 64)])
def test_sizes_and_translation_equivariance(prior, shape):
    x = 0.3 * noise(*shape)
    score = prior.score(x, 0.1)
    assert score.shape == shape and torch.isfinite(score).all()
    moved = prior.score(x.roll((3, -5), (0, 1)), 0.1)
    assert relative(moved, score.roll((3, -5), (0, 1))) < 1e-4
    assert float(prior.energy(x.roll((3, -5), (0, 1)), 0.1)) == pytest.approx(
        float(prior.energy(x, 0.1)), rel=1e-5, abs=0.01
    )


def test_complex_images_are_two_real_ones(prior):
    x = 0.3 * noise(24, 31, dtype=torch.complex64)
    score = prior.score(x, 0.08)
    apart = torch.complex(prior.score(x.real.contiguous(), 0.08), prior.score(x.imag.contiguous(), 0.08))
    assert relative(score, apart) < 1e-5
    energy = prior.energy(x.real, 0.08) + prior.energy(x.imag, 0.08)
    assert float(prior.energy(x, 0.08)) == pytest.approx(float(energy), rel=1e-5, abs=0.01)


def test_score_is_odd_and_batched(prior):
    x = 0.3 * noise(2, 3, 20, 24)
    score = prior.score(x, 0.1)
    assert score.shape == x.shape
    assert relative(score[1, 2], prior.score(x[1, 2], 0.1)) < 1e-5
    assert relative(prior.score(-x, 0.1), -score) < 1e-5
    energy = prior.energy(x, 0.1)
    assert energy.shape == (2, 3)
    assert float(energy[1, 2]) == pytest.approx(float(prior.energy(x[1, 2], 0.1)), abs=0.01)


@pytest.mark.parametrize(("family", "n", "times"), [("paper", 48, 2), ("multiscale", 33, 3)])
def test_a_tiled_image_has_the_tiled_score(family, n, times):
    """Filters longer than the image wrap around it: the score depends on no grid."""
    prior = make_prior(family)
    x = 0.3 * noise(n, n)
    big = prior.score(x.repeat(times, times), 0.1)
    assert relative(big, prior.score(x, 0.1).repeat(times, times)) < 1e-4


def test_tiling_reaches_the_matrix_of_the_paper():
    prior = load_prior()
    x = piecewise_image(80) + 0.05 * noise(80, 80)
    big = prior.score(x.repeat(4, 4), 0.05)
    assert big.shape == (320, 320)
    # kernels are real on every grid, an even one has a Nyquist line of its own: small differences
    assert relative(big, prior.score(x, 0.05).repeat(4, 4)) < 2e-2


class RingBank(torch.nn.Module):
    """Ideal filters: disjoint rings in frequency, constant magnitude on each."""

    kind = "ring"
    magnitudes = (0.5, 1.0, 2.0)
    n_filters = 3

    def spectra(self, shape):
        ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)
        radius = torch.hypot(ky[:, None], kx[None, :])
        edges = (0.051, 0.151, 0.251, 0.351)
        rings = [(radius > low) & (radius <= high) for low, high in pairwise(edges)]
        return torch.stack([c * r for c, r in zip(self.magnitudes, rings, strict=True)]).to(torch.complex128)


def gaussian_experts(n_filters, widths, sigma=0.3):
    """All means at 0: each expert is one Gaussian of variance sigma^2 + (width level)^2."""
    experts = GridMixtureExperts(n_filters, 3, 1e-7).double().requires_grad_(False)
    experts.sigma_0.fill_(sigma)
    experts.width.copy_(torch.as_tensor(widths))
    experts.exponent.zero_()
    return experts


@pytest.mark.parametrize("level", [0.05, 0.5])
def test_disjoint_filters_diffuse_exactly(level):
    """Sigma(t) = Sigma(0) + 2t I where |K_k| = xi_k on its support: Tweedie is the Wiener filter."""
    bank = RingBank()
    prior = ProductPrior(bank, gaussian_experts(3, bank.magnitudes))
    y = noise(33, 40, dtype=torch.complex128)
    power = (bank.spectra((33, 40)).abs() ** 2).sum(0)
    clean_variance = 0.3**2 / power.clamp_min(1e-300)
    gain = torch.where(power > 0, clean_variance / (clean_variance + level**2), torch.ones_like(power))
    expected = torch.fft.ifft2(gain * torch.fft.fft2(y))
    assert (prior.denoise(y, level) - expected).abs().max() < 1e-5
    assert (expected - y).abs().max() > 0.01  # it does something


def test_gaussian_energy_is_quadratic():
    bank = RingBank()
    prior = ProductPrior(bank, gaussian_experts(3, bank.magnitudes))
    x = noise(20, 21, dtype=torch.float64)
    curvature = (bank.spectra((20, 21)).abs() ** 2 / prior.experts.variance(0.2)[:, None, None]).sum(0)
    half = 0.5 * float((curvature * torch.fft.fft2(x, norm="ortho").abs() ** 2).sum())
    zero = float(prior.energy(torch.zeros_like(x), 0.2))
    assert float(prior.energy(x, 0.2)) - zero == pytest.approx(half, rel=1e-6)
    assert prior.lipschitz_bound(0.2, (20, 21)) == pytest.approx(float(curvature.max()), rel=1e-5)


def largest_curvature(prior, x, level, bound, n_steps=20):
    """Largest eigenvalue of the energy's Hessian by power iteration on H + bound (H may be indefinite)."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ProductPrior.energy.__wrapped__(prior, x, level), x, create_graph=True)
    v = noise(*x.shape, dtype=x.dtype, seed=5)
    rayleigh = 0.0
    for _ in range(n_steps):
        v = v / v.norm()
        (hv,) = torch.autograd.grad((gradient * v).sum(), x, retain_graph=True)
        rayleigh = float((v * hv).sum())
        v = hv + bound * v
    return rayleigh


@pytest.mark.parametrize("level", [0.1, 0.4])
def test_lipschitz_bound_holds(double_prior, level):
    bound = double_prior.lipschitz_bound(level, (12, 12))
    # flat and busy images: most experts at their centre, then spread
    for size in (1e-3, 0.05):
        x = size * noise(12, 12, dtype=torch.float64)
        observed = largest_curvature(double_prior, x, level, bound)
        assert observed <= bound * (1 + 1e-6)
        assert observed > 0.05 * bound  # not idly large


@pytest.mark.parametrize("level", [0.02, 0.05, 0.1, 0.2])
def test_the_shipped_prior_denoises(level):
    clean = piecewise_image()
    noisy = clean + level * noise(96, 96)
    denoised = load_prior().denoise(noisy, level)
    gain = 20 * math.log10(float((noisy - clean).norm() / (denoised - clean).norm()))
    assert gain > 3, gain
    assert abs(float(denoised.mean() - noisy.mean())) < 1e-3  # the mean passes


def test_the_shipped_prior_knows_what_it_is():
    prior = load_prior()
    assert prior.name == "default" and len(prior.sha256) == 64
    low, high = prior.level_range
    assert 0 < low <= 0.015 and high >= 0.2  # the levels the sampler uses by default
    assert prior.n_parameters == sum(p.numel() for p in prior.parameters())
    assert not any(p.requires_grad for p in prior.parameters())
    assert float(prior.coverage((64, 48)).max()) <= 1 + 1e-5


@pytest.mark.parametrize("part", ["bank", "experts"])
def test_caches_are_forgotten_on_request(prior, part):
    x = 0.3 * noise(16, 16)
    before = prior.score(x, 0.1)
    assert torch.equal(prior.score(x, 0.1), before)
    with torch.no_grad():
        if part == "bank":
            prior.bank.gain[0] += 0.5
        else:
            for parameter in prior.experts.mixture_parameters():
                parameter[..., 0] += 1
    prior.forget_caches()
    assert relative(prior.score(x, 0.1), before) > 1e-3


def test_caches_are_bounded(prior, monkeypatch):
    first = prior._cached_table(0.1, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(model, "_MOST_TABLE_BYTES", 3 * first.n_bytes)
    for n in range(8, 16):
        prior.score(torch.zeros(n, n), 0.1 + n / 1000)
        prior.score(torch.zeros(n, n), 0.1)  # used again and again: it stays
    assert len(prior._spectra) <= model._MAX_CACHED_SPECTRA
    assert sum(table.n_bytes for table in prior._tables.values()) <= 3 * first.n_bytes
    assert prior._cached_table(0.1, torch.device("cpu"), torch.float32) is first


def test_widths_are_the_norms_of_the_filters(prior):
    white = noise(200, 48, 40)
    prior.measure_widths()
    spectra = prior.bank.spectra((96, 96))
    kernels = torch.fft.ifft2(spectra).real
    assert torch.allclose(filter_norms(spectra), kernels.square().sum((1, 2)).sqrt(), rtol=1e-4)
    assert torch.allclose(prior.experts.width, filter_norms(spectra))
    k = int(prior.experts.width.argmax())
    small = prior.bank.spectra((48, 40))[k]
    response = torch.fft.ifft2(small.conj() * torch.fft.fft2(white)).real
    assert float(response.std()) == pytest.approx(float(prior.experts.width[k]), rel=0.05)


def test_training_score_equals_the_score(prior):
    clean = piecewise_image(48)[None].repeat(2, 1, 1)
    levels = torch.tensor([0.1, 0.3])
    y = clean + levels[:, None, None] * noise(2, 48, 48)
    # widths are measured on 96 x 96, in training on the patch
    prior.experts.width.copy_(filter_norms(prior.bank.spectra((48, 48))))
    prior.forget_caches()
    with torch.no_grad():
        trained = prior.training_score(y, levels)
    for i, level in enumerate((0.1, 0.3)):
        assert relative(trained[i], prior.score(y[i], level)) < 5e-3


@pytest.mark.parametrize(("level", "side"), [(0.001, "below"), (2.0, "above")])
def test_outside_the_trained_range_it_says_so_once(level, side):
    prior, image = load_prior(), noise(32, 32)
    with pytest.warns(UserWarning, match=f"{side} the range .* '{prior.name}' was trained on"):
        prior.score(image, level)
    prior.denoise(image, level)  # a second warning would be an error here
    for inside in prior.level_range:
        prior.denoise(image, inside)


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("level", [1.5, 10.0])
def test_above_the_trained_range_denoising_is_never_worse_than_nothing(name, level):
    prior = load_prior(name)
    clean = torch.zeros(48, 56)
    clean[12:36, 16:40] = 1
    noisy = clean + level * noise(48, 56)
    with pytest.warns(UserWarning, match="trained"):
        found = prior.denoise(noisy, level)
    assert (found - clean).norm() < (noisy - clean).norm()


def test_a_prior_of_ones_own_needs_the_members_of_the_protocol_only():
    assert isinstance(load_prior(), pogmdm_core.Prior)

    class Flat:
        name, sha256, level_range = "flat", "", (0.01, 1.0)

        def score(self, x, level):
            return torch.zeros_like(x)

        def denoise(self, y, level):
            return y

        def energy(self, x, level):
            return torch.zeros(x.shape[:-2])

        def lipschitz_bound(self, level, shape):
            return 1.0

        def to(self, device):
            return self

    assert isinstance(Flat(), pogmdm_core.Prior)
    scan = simulate(noise_std=0.01)
    settings = pogmdm_core.Settings(n_samples=2, n_steps=3, map={"steps": 5}, device="cpu")
    result = pogmdm_core.reconstruct(scan.frame, Flat(), settings)
    assert result.std is not None and bool(torch.isfinite(result.std).all())


def test_a_copy_goes_to_the_device_and_the_prior_stays(prior):
    assert prior.to("cpu") is prior
    elsewhere = prior.to("meta")
    assert elsewhere is prior.to(torch.device("meta"))
    assert {p.device.type for p in elsewhere.parameters()} == {"meta"}
    assert {p.device.type for p in prior.parameters()} == {"cpu"}
    assert (elsewhere.name, elsewhere.sha256, elsewhere.level_range) == (prior.name, prior.sha256, prior.level_range)
    prior.forget_caches()
    assert prior.to("meta") is not elsewhere
