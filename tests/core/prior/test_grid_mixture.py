from pathlib import Path

import numpy as np
import pytest
import torch

from pogmdm_core.prior.grid_mixture import GridMixtureExperts

GOLDEN = Path(__file__).parents[2] / "golden" / "experts.npz"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def golden_experts(golden, n_filters=20):
    experts = GridMixtureExperts(n_filters).double()
    experts.half_logits.data = torch.from_numpy(golden["weights"][:n_filters, 62:]).log()
    experts.width.copy_(torch.from_numpy(golden["xi"][:n_filters]))
    experts.sigma_0.copy_(torch.from_numpy(golden["sigma_0"]))
    experts.exponent.data.zero_()  # the paper's: power 1
    return experts.requires_grad_(False)


@pytest.fixture
def few(golden):
    return golden_experts(golden, 4)


@pytest.mark.golden
def test_golden_log_psi_and_score(golden):
    experts = golden_experts(golden)
    np.testing.assert_allclose(experts.weights().numpy(), golden["weights"], atol=1e-15)
    np.testing.assert_allclose(experts.means().numpy(), golden["mu"], atol=1e-15)
    u = torch.from_numpy(golden["u"]).expand(20, -1)
    for i, zeta in enumerate(golden["zeta"]):
        log_psi = experts.log_psi(u, float(zeta)).numpy()
        np.testing.assert_allclose(log_psi, golden["log_psi"][i], rtol=0, atol=1e-10)
        score, _ = experts.score(u, float(zeta))
        # the absolute part only serves u = 0, where the score is 0
        np.testing.assert_allclose(score.numpy(), golden["score"][i], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.3])
def test_experts_are_densities(few, level):
    reach = 0.5 + 10 * float(few.variance(level).max().sqrt())
    u = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
    psi = few.log_psi(u.expand(4, -1), level).exp()
    assert torch.allclose(torch.trapezoid(psi, u), torch.ones(4, dtype=torch.float64), atol=1e-9)


def test_heat_equation(few):
    """d psi / d(level^2 / 2) = xi^2 d^2 psi / du^2."""
    u = torch.linspace(-0.8, 0.8, 33, dtype=torch.float64).repeat(4, 1)
    # logaddexp's second derivative overflows at far lower levels
    for level in (0.15, 0.4, 2.0):
        lv = torch.tensor(level, dtype=torch.float64, requires_grad=True)
        # derivative by the one level of every psi at once: backward through a backward
        probe = torch.ones_like(u, requires_grad=True)
        (combined,) = torch.autograd.grad((few.log_psi(u, lv).exp() * probe).sum(), lv, create_graph=True)
        (by_level,) = torch.autograd.grad(combined, probe)
        x = u.clone().requires_grad_()
        (first,) = torch.autograd.grad(few.log_psi(x, level).exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        expected = few.width[:, None] ** 2 * second
        assert (by_level / level - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("level", [0.0, 0.02, 0.2, 2.0])
def test_score_and_slope_are_the_derivatives(few, level):
    u = torch.linspace(-0.9, 0.9, 57, dtype=torch.float64).repeat(4, 1).requires_grad_()
    score, slope = few.score(u, level)
    (by_autograd,) = torch.autograd.grad(few.log_psi(u, level).sum(), u)
    assert torch.allclose(score, by_autograd, rtol=1e-9, atol=1e-9 * float(by_autograd.detach().abs().max()))
    (slope_by_autograd,) = torch.autograd.grad(score.sum(), u)
    assert torch.allclose(slope, slope_by_autograd, rtol=1e-8, atol=1e-8 * float(slope.detach().abs().max()))
    # curvature of -log psi is bounded by 1/s
    assert (-slope <= few.curvature_bound(level)[:, None] * (1 + 1e-12)).all()


def test_score_is_odd(few):
    u = torch.rand(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plus, minus = few.score(u, 0.05)[0], few.score(-u, 0.05)[0]
    assert torch.allclose(plus, -minus, atol=1e-10 * float(plus.abs().max()))
    assert plus.abs().max() > 1


def test_weights_lie_on_the_symmetric_simplex():
    experts = GridMixtureExperts(3)
    with torch.no_grad():
        experts.half_logits.copy_(10 * torch.randn(3, 63, generator=torch.Generator().manual_seed(0)))
    w = experts.weights()
    assert w.shape == (3, 125)
    assert torch.allclose(w, w.flip(1)) and (w >= 0).all()
    assert torch.allclose(w.sum(1), torch.ones(3))
    assert sum(p.numel() for p in experts.parameters()) == 3 * (63 + 2)


@pytest.mark.parametrize("n_means", [2, 1, 124])
def test_even_or_few_means_are_refused(n_means):
    with pytest.raises(ValueError, match="odd"):
        GridMixtureExperts(3, n_means)


def test_variance_and_sigma_0():
    experts = GridMixtureExperts(2).double()
    assert float(experts.sigma_0) == pytest.approx(1 / 124, rel=1e-6)  # a standard deviation, method.md 0.1
    experts.width.copy_(torch.tensor([0.5, 2.0]))
    expected = float(experts.sigma_0) ** 2 + np.array([0.05**2, 0.2**2])
    np.testing.assert_allclose(experts.variance(0.1).numpy(), expected)
    np.testing.assert_allclose(experts.variance(torch.tensor([0.1, 0.0]))[0].numpy(), expected)


def test_exponents():
    experts = GridMixtureExperts(2).double()
    with torch.no_grad():
        experts.exponent.copy_(torch.tensor([0.25, 1.0]).log())
        experts.exponent_slope.copy_(torch.tensor([0.0, 0.5]))
    np.testing.assert_allclose(experts.exponents(0.4).detach().numpy(), [0.25, 2.0], rtol=1e-7)
    u = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64).repeat(2, 1)
    direct = experts.score(u, 0.4)[0] * experts.exponents(0.4)[:, None]
    table = experts.table(0.4)(u)
    assert (table - direct).abs().max() < 2e-5 * direct.abs().max()
    bound = experts.curvature_bound(0.4)
    np.testing.assert_allclose(bound.detach().numpy(), [0.25, 2.0] / experts.variance(0.4).numpy(), rtol=1e-7)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
def test_table_error_is_below_the_tolerance(few, level):
    table = few.table(level, tolerance=1e-5)
    bound = (few.half_range + 8 * few.variance(level).sqrt()).clamp_min(1.5)[:, None].double()
    u = bound * torch.linspace(-1, 1, 5001, dtype=torch.float64)
    direct = few.score(u, level)[0]
    error = (table(u) - direct).abs().amax(1) / direct.abs().amax(1)
    # measured at random points when built; a dense grid finds a little more
    assert float(error.max()) < 2e-5
    outside = bound * torch.tensor([-9.0, -3.0, -1.2, 1.2, 3.0, 9.0], dtype=torch.float64)
    direct = few.score(outside, level)[0]
    assert ((table(outside) - direct).abs() < 0.05 * direct.abs()).all()


def tabulated_and_direct(experts, u, levels):
    exact = torch.stack(
        [experts.score(x, float(v))[0] * experts.exponents(v)[:, None] for x, v in zip(u, levels, strict=True)]
    )
    return experts.training_score(u, levels, experts.width), exact


@pytest.fixture
def trainable(few):
    experts = few.requires_grad_(True)
    with torch.no_grad():
        experts.exponent.fill_(-1.0)
        experts.exponent_slope.fill_(0.2)
    return experts


def test_training_score_agrees_with_the_direct_one(trainable):
    levels = torch.tensor([0.03, 0.1, 0.4], dtype=torch.float64)
    u = 0.2 * torch.randn(3, 4, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u[0, 0, :3] = torch.tensor([0.0, 1e-9, 3.0])  # zero, tiny, and beyond the grid
    table, exact = tabulated_and_direct(trainable, u, levels)
    error = (table - exact).detach().abs().amax((1, 2)) / exact.detach().abs().amax((1, 2))
    assert (error < torch.tensor([2e-3, 2e-4, 2e-4])).all(), error


def test_gradients_of_the_training_score(trainable):
    levels = torch.tensor([0.05, 0.1, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    u = (0.2 * torch.randn(3, 4, 300, dtype=torch.float64, generator=generator)).requires_grad_()
    target = torch.randn(3, 4, 300, dtype=torch.float64, generator=generator)
    wanted = [u, trainable.half_logits, trainable.exponent, trainable.exponent_slope]
    table, exact = tabulated_and_direct(trainable, u, levels)
    scale = levels[:, None, None]
    by_table = torch.autograd.grad(((scale * table - target) ** 2).sum(), wanted)
    by_direct = torch.autograd.grad(((scale * exact - target) ** 2).sum(), wanted)
    for ours, oracle, limit in zip(by_table, by_direct, (5e-2, 1e-2, 1e-2, 1e-2), strict=True):
        assert oracle.norm() > 0
        assert (ours - oracle).norm() < limit * oracle.norm()


def test_the_direct_functions_take_any_number_of_axes(few):
    u = 0.1 * torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(few.log_psi(u, 0.1).flatten(1), few.log_psi(u.flatten(1), 0.1))
