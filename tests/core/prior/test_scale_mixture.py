import pytest
import torch

from pogmdm_core.prior.scale_mixture import ScaleMixtureExperts


def make(n_knots):
    generator = torch.Generator().manual_seed(0)
    made = ScaleMixtureExperts(4, n_knots=n_knots).double()
    with torch.no_grad():
        made.logits.add_(torch.randn(4, n_knots, 14, generator=generator, dtype=torch.float64))
        made.log_exponents.add_(0.3 * torch.randn(4, 6, generator=generator, dtype=torch.float64))
        made.width.copy_(torch.tensor([0.1, 0.3, 0.5, 1.0]))
    return made.requires_grad_(False)


@pytest.fixture(params=[1, 4], ids=["same weights", "weights per level"])
def experts(request):
    return make(request.param)


def responses(experts, level, n=61):
    return experts.width[:, None] * level * torch.linspace(-30, 30, n, dtype=torch.float64)


@pytest.mark.parametrize("level", [0.01, 0.1, 0.7])
def test_score_and_slope_are_the_derivatives(experts, level):
    u = responses(experts, level).requires_grad_()
    score, slope = experts.score(u, level)
    (by_autograd,) = torch.autograd.grad(experts.log_psi(u, level).sum(), u)
    assert (score - by_autograd).detach().abs().max() < 1e-10 * by_autograd.abs().max()
    (slope_by_autograd,) = torch.autograd.grad(score.sum(), u)
    assert (slope - slope_by_autograd).detach().abs().max() < 1e-10 * slope_by_autograd.abs().max()


def test_experts_are_densities(experts):
    level = 0.1
    u = torch.sinh(torch.linspace(-16, 16, 40001, dtype=torch.float64)) * 1e-4  # fine at 0, far outside
    psi = experts.log_psi(u.expand(4, -1), level).exp()
    assert torch.allclose(torch.trapezoid(psi, u), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_heat_equation_with_the_same_weights_at_all_levels():
    experts = make(1)
    for level in (0.05, 0.3):
        u = responses(experts, level)
        lv = torch.tensor(level, dtype=torch.float64, requires_grad=True)
        probe = torch.ones_like(u, requires_grad=True)
        (combined,) = torch.autograd.grad((experts.log_psi(u, lv).exp() * probe).sum(), lv, create_graph=True)
        (by_level,) = torch.autograd.grad(combined, probe)
        x = u.clone().requires_grad_()
        (first,) = torch.autograd.grad(experts.log_psi(x, level).exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        expected = experts.width[:, None] ** 2 * second
        assert (by_level / level - expected).abs().max() < 1e-6 * expected.abs().max()


def test_weights_move_from_knot_to_knot():
    experts = make(4)
    low, high = experts.log_weights(0.005), experts.log_weights(1.0)
    assert torch.allclose(low, experts.log_weights(0.001)) and torch.allclose(high, experts.log_weights(5.0))
    assert not torch.allclose(low, high)
    second = 0.005 * 200 ** (1 / 3)
    assert torch.allclose(experts.log_weights(second), torch.log_softmax(experts.logits[:, 1], -1))
    batch = experts.log_weights(torch.tensor([0.005, 0.05, 1.0], dtype=torch.float64))
    assert batch.shape == (3, 4, 14)
    assert torch.allclose(batch[1], experts.log_weights(0.05))
    assert torch.allclose(batch.exp().sum(-1), torch.ones(3, 4, dtype=torch.float64))


def test_the_potential_rises_with_the_response(experts):
    for level in (0.005, 0.1, 1.0):
        u = responses(experts, level)[:, 31:]
        assert (experts.score(u, level)[0] < 0).all()
        assert (experts.score(-u, level)[0] > 0).all()


@pytest.mark.parametrize("level", [0.005, 0.05, 0.5])
def test_curvature_is_largest_at_zero(experts, level):
    bound = experts.curvature_bound(level)
    zero = torch.zeros(4, 1, dtype=torch.float64)
    attained = -experts.exponents(level) * experts.score(zero, level)[1][:, 0]
    assert torch.allclose(bound, attained)
    curvature = -experts.exponents(level)[:, None] * experts.score(responses(experts, level, 601), level)[1]
    assert (curvature <= bound[:, None] * (1 + 1e-12)).all()


@pytest.mark.parametrize("level", [0.005, 0.05, 0.5])
def test_table(experts, level):
    power = experts.exponents(level)[:, None]
    table = experts.table(level, tolerance=1e-5)
    far = torch.linspace(-8, 8, 3001, dtype=torch.float64).repeat(4, 1)
    for u in (responses(experts, level, 2001).clamp(-8, 8), far):
        direct = power * experts.score(u, level)[0]
        limit = 3e-5 * (power * experts.score(far, level)[0]).abs().amax(1, keepdim=True)
        assert ((table(u) - direct).abs() <= limit).all()


def test_training_score_and_its_gradients(experts):
    experts.requires_grad_(True)
    levels = torch.tensor([0.02, 0.1, 0.6], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    u = 0.3 * torch.randn(3, 4, 300, dtype=torch.float64, generator=generator)
    u[0, 0, 0] = 1e-9
    u.requires_grad_()
    widths = experts.width.clone().requires_grad_()
    target = torch.randn(3, 4, 300, dtype=torch.float64, generator=generator)
    table = experts.training_score(u, levels, widths)
    exact = torch.stack(
        [experts.exponents(v)[:, None] * experts.score(x, v)[0] for x, v in zip(u, levels, strict=True)]
    )
    error = (table - exact).detach().abs().amax((1, 2)) / exact.detach().abs().amax((1, 2))
    assert (error < 2e-3).all(), error
    wanted = [u, experts.logits, experts.log_exponents]
    scale = levels[:, None, None]
    by_table = torch.autograd.grad(((scale * table - target) ** 2).sum(), [*wanted, widths])
    by_direct = torch.autograd.grad(((scale * exact - target) ** 2).sum(), wanted)
    for ours, oracle, limit in zip(by_table[:3], by_direct, (5e-2, 1e-2, 1e-2), strict=True):
        assert oracle.norm() > 0
        assert (ours - oracle).norm() < limit * oracle.norm()
    assert by_table[3].abs().min() > 0  # the widths learn, too


def test_exponents_interpolate_and_stay_constant_outside(experts):
    relative = experts.exponents(0.005) / experts.width**2
    assert torch.allclose(relative, experts.log_exponents[:, 0].exp())
    assert torch.allclose(experts.exponents(1e-5), experts.exponents(0.005))
    assert torch.allclose(experts.exponents(50.0), experts.exponents(1.0))
    batch = experts.exponents(torch.tensor([0.02, 0.3], dtype=torch.float64))
    assert torch.allclose(batch[1], experts.exponents(0.3))
    middle = (0.005 * 200**0.2) ** 0.5 * (0.005 * 200**0.4) ** 0.5  # half way between knots 1 and 2
    expected = experts.log_exponents[:, 1:3].mean(1).exp() * experts.width**2
    assert torch.allclose(experts.exponents(middle), expected, rtol=1e-6)
