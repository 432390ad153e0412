import sys

import pytest
import torch

from pogmdm_core.errors import ComputeError
from pogmdm_core.prior import compiled, tables
from pogmdm_core.prior.tables import _tabulate, build_table

BOUND = torch.tensor([1.0, 2.5, 0.7], dtype=torch.float64)
UNIT = torch.tensor([0.01, 0.002, 0.1], dtype=torch.float64)


def soft(u):
    """-v / (1 + v^2), v = u / unit: bends at the unit, falls off far out."""
    v = u / UNIT[:, None]
    return -v / (1 + v**2), -(1 - v**2) / (1 + v**2) ** 2 / UNIT[:, None]


def soft_of_groups(u):
    """The same of the norm of groups `(3, n_members, n)`."""
    square = u.square().sum(1, keepdim=True) / UNIT[:, None, None] ** 2
    return -u / UNIT[:, None, None] / (1 + square)


def inside(n=4001):
    return BOUND[:, None] * torch.linspace(-1, 1, n, dtype=torch.float64)


def responses(*shape, seed=0):
    """Of all sizes, from far below the unit to far beyond the range."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (6 * torch.rand(*shape, generator=generator) - 4)
    return size * torch.randn(*shape, generator=generator).sign()


@pytest.fixture
def in_torch(monkeypatch):
    """As where numba is not installed."""
    monkeypatch.setattr(tables, "multiply_by_factor", lambda: None)


@pytest.fixture(scope="module")
def table():
    return build_table(soft, BOUND, UNIT).to("cpu", torch.float32)


def test_error_within_the_range():
    table = build_table(soft, BOUND, UNIT, tolerance=1e-5, pieces_per_octave=2)
    near = UNIT[:, None] * torch.linspace(-3, 3, 1001, dtype=torch.float64)
    for u in (inside(), near):
        error = (table(u) - soft(u)[0]).abs().amax(1) / soft(near)[0].abs().amax(1)
        assert float(error.max()) < 1.5e-5
    assert 2 < table.pieces_per_octave <= 16  # refined, and no further than needed
    assert table.to("cpu", torch.float32).coefficients.dtype == torch.float32


def test_tighter_tolerance_takes_more_pieces():
    loose, tight = (build_table(soft, BOUND, UNIT, tolerance, 2) for tolerance in (1e-3, 1e-7))
    assert tight.pieces_per_octave > loose.pieces_per_octave
    assert tight.n_bytes > loose.n_bytes


def test_cubic_factors_are_reproduced_exactly():
    def cubic(u):
        w = 1 + u**2
        return u * (2 - w + 0.1 * w**3), torch.ones_like(u) * 1.1

    one = torch.ones(3, dtype=torch.float64)
    exact = cubic(inside())[0]
    assert (_tabulate(cubic, BOUND, one, 2)(inside()) - exact).abs().max() < 1e-10
    assert build_table(cubic, BOUND, one, 1e-9, 2).pieces_per_octave == 2


def test_the_value_at_zero_is_the_slope():
    table = build_table(soft, BOUND, UNIT)
    tiny = torch.full((3, 1), 1e-9, dtype=torch.float64)
    assert torch.allclose(table(tiny) / tiny, -1 / UNIT[:, None], rtol=1e-6)
    assert (table(torch.zeros(3, 1)) == 0).all()


def test_pieces_meet():
    table = build_table(soft, BOUND, UNIT)
    constant, linear, quadratic, cubic = table.coefficients.unbind(1)
    ends = constant + linear + quadratic + cubic
    assert torch.allclose(ends[:, :-1], constant[:, 1:], rtol=1e-9, atol=1e-12)


def test_linear_far_outside():
    table = build_table(soft, BOUND, UNIT)
    last = table.coefficients[:, :1, -1]
    far = 1e5 * BOUND[:, None] * torch.tensor([-3.0, 1.0, 7.0], dtype=torch.float64)
    assert torch.allclose(table(far), last * far)


def test_a_spiky_function_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "_MOST_PIECES", 64)
    with pytest.raises(ComputeError, match="E520 .* 64 pieces"):
        build_table(lambda u: (torch.sign(torch.sin(400 * u)), 0 * u), BOUND, UNIT)
    # what the limit allows is not refused
    assert build_table(soft, BOUND, UNIT, tolerance=1e-2).pieces_per_octave <= 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_members", [1, 2, 5])
def test_groups_share_the_factor_of_their_norm(dtype, n_members):
    table = build_table(soft, BOUND, UNIT).to("cpu", dtype)
    u = 0.02 * torch.randn(3, n_members, 3000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert (table(u) - soft_of_groups(u)).abs().max() < 2e-5
    if n_members == 1:
        assert torch.equal(table(u[:, 0]), table(u)[:, 0])


@pytest.mark.parametrize("shape", [(3, 1, 5000), (3, 4, 1023), (3, 2, 1025), (3, 1, 1), (3, 3, 0)])
def test_compiled_and_torch_agree(table, shape, monkeypatch):
    assert compiled.multiply_by_factor() is not None, "numba is a requirement"
    u = responses(*shape)
    fast = table(u)
    monkeypatch.setattr(tables, "multiply_by_factor", lambda: None)
    slow = table(u)
    assert torch.allclose(fast, slow, rtol=1e-5, atol=1e-7)
    if u.numel():
        assert (fast != u).any()


def test_threads_make_no_difference(table):
    u, before = responses(3, 2, 4000), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            found.append(table(u))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_some_groups_equal_the_same_rows_of_all(way, table, request):
    if way == "torch":
        request.getfixturevalue("in_torch")
    u = responses(3, 500)
    everything = table(u)
    for part in (slice(0, 1), slice(1, 3), slice(2, 3), slice(None)):
        assert torch.equal(table(u[part], part), everything[part])


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("size", [1e6, 1e20, 1e30])
def test_huge_arguments_stay_finite_and_in_bounds(size, way, table, request):
    if way == "torch":
        request.getfixturevalue("in_torch")
    u = torch.tensor([[-size, size]] * 3)
    out = table(u)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert torch.allclose(out, table.coefficients[:, :1, -1] * u, rtol=1e-3)


@pytest.mark.parametrize("way", ["compiled", "torch", "double"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), -float("nan")])
def test_non_finite_arguments_give_non_finite_values_not_a_crash(bad, way, table, request):
    """The samplers look for NaN in the image and report divergence: a bad index must not come first."""
    if way == "torch":
        request.getfixturevalue("in_torch")
    u = torch.tensor([[bad, 0.1] * 700] * 3)
    out = table.to("cpu", torch.float64)(u.double()) if way == "double" else table(u)
    assert not torch.isfinite(out[:, ::2]).any()
    assert torch.isfinite(out[:, 1::2]).all()


def test_the_argument_is_not_changed_unless_asked(table):
    u = responses(3, 1, 10)
    kept = u.clone()
    expected = table(u)
    assert torch.equal(u, kept)
    assert table.multiply_(u) is u
    assert torch.equal(u, expected)


def test_an_unusable_numba_is_told_and_done_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    compiled.multiply_by_factor.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba cannot be used"):
            assert compiled.multiply_by_factor() is None
    finally:
        compiled.multiply_by_factor.cache_clear()


def test_without_a_folder_for_compiled_code(table, monkeypatch):
    import numba

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    real = numba.njit
    monkeypatch.setattr(numba, "njit", njit)
    compiled.multiply_by_factor.cache_clear()
    try:
        assert compiled.multiply_by_factor() is not None
        assert (table(responses(3, 10)) != responses(3, 10)).all()
    finally:
        compiled.multiply_by_factor.cache_clear()
