import pytest
import torch

from pogmdm_core.errors import ComputeError
from pogmdm_core.prior import tables
from pogmdm_core.prior.tables import _tabulate, build_table

BOUND = torch.tensor([1.0, 2.5, 0.7], dtype=torch.float64)
RATE = torch.tensor([3.0, 1.0, 6.0], dtype=torch.float64)[:, None]


def sine(u):
    return torch.sin(RATE * u) - u, RATE * torch.cos(RATE * u) - 1


def cubic(u):
    return RATE * u**3 + u, 3 * RATE * u**2 + 1


def inside(n=4001):
    return BOUND[:, None] * torch.linspace(-1, 1, n, dtype=torch.float64)


def test_error_within_the_range():
    table = build_table(sine, BOUND, tolerance=1e-5, n_intervals=4)
    exact = sine(inside())[0]
    error = ((table(inside()) - exact).abs().amax(1) / exact.abs().amax(1)).max()
    assert float(error) < 1.5e-5
    assert 4 < table.n_intervals < 256  # the grid was refined, and no further than needed
    assert table.to("cpu", torch.float32).coefficients.dtype == torch.float32


def test_tighter_tolerance_takes_more_intervals():
    assert build_table(sine, BOUND, 1e-6, 4).n_intervals > build_table(sine, BOUND, 1e-3, 4).n_intervals


def test_cubics_are_reproduced_exactly():
    exact = cubic(inside())[0]
    assert (_tabulate(cubic, BOUND, 8, None)(inside()) - exact).abs().max() < 1e-12
    assert build_table(cubic, BOUND, 1e-6, 8).n_intervals == 8


def test_linear_continuation_outside():
    table = build_table(sine, BOUND, n_intervals=16)
    edge = BOUND[:, None]
    beyond = torch.tensor([1e-6, 0.1, 1.0, 10.0], dtype=torch.float64)
    for side in (-1, 1):
        value, slope = sine(side * edge)
        expected = value + side * slope * beyond
        assert torch.allclose(table(side * (edge + beyond)).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_spiky_function_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "_MAX_INTERVALS", 64)
    with pytest.raises(ComputeError, match="E520 .* 64 intervals"):
        build_table(lambda u: (torch.sign(u) * (u.abs() > 0.3), 0 * u), BOUND, n_intervals=16)
    # what the limit allows is not refused
    assert build_table(sine, BOUND, tolerance=1e-2, n_intervals=16).n_intervals <= 64


def test_logarithmic_grid():
    """Uniform in sign(u) log(1 + |u| / unit): fine near 0, and exact far beyond it."""
    unit = torch.tensor([0.01, 0.002, 0.1], dtype=torch.float64)

    def soft(u):
        v = u / unit[:, None]
        return v / (1 + v**2), (1 - v**2) / (1 + v**2) ** 2 / unit[:, None]

    table = build_table(soft, BOUND, 1e-5, 32, unit=unit)
    exact = soft(inside())[0]
    error = ((table(inside()) - exact).abs().amax(1) / exact.abs().amax(1)).max()
    assert float(error) < 2e-5
    near = unit[:, None] * torch.linspace(-3, 3, 101, dtype=torch.float64)
    assert (table(near) - soft(near)[0]).abs().max() < 2e-5
    assert table.n_intervals < build_table(soft, BOUND, 1e-5, 32).n_intervals  # that is what it is for
    part = slice(1, 3)
    assert torch.equal(table(near[part], part), table(near)[part])


def test_some_filters_equal_the_same_rows_of_all():
    table = build_table(sine, BOUND)
    u = 2 * torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    everything = table(u)
    for part in (slice(0, 1), slice(1, 3), slice(2, 3), slice(None)):
        assert torch.equal(table(u[part], part), everything[part])


@pytest.mark.parametrize("size", [1e6, 1e20, 1e30])
def test_huge_arguments_stay_finite_and_in_bounds(size):
    table = build_table(sine, BOUND).to("cpu", torch.float32)
    u = torch.tensor([[-size, size]] * 3)
    out = table(u)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    slope = sine(BOUND[:, None])[1].float()
    assert torch.allclose(out, slope * u, rtol=1e-3)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_non_finite_arguments_give_non_finite_values_not_a_crash(bad):
    """The samplers look for NaN in the image and report divergence: a bad index must not come first."""
    table = build_table(sine, BOUND)
    out = table(torch.tensor([[bad, 0.1]] * 3))
    assert not torch.isfinite(out[:, 0]).any()
    assert torch.isfinite(out[:, 1]).all()


def test_the_argument_is_not_changed():
    table = build_table(sine, BOUND)
    u = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    kept = u.clone()
    table(u)
    assert torch.equal(u, kept)
