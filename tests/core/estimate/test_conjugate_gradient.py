import pytest
import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient


def systems(n_batch, n=6, seed=0):
    """Hermitian positive definite matrices of moderate condition, and right sides `(batch, 1, n)`."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n_batch, n, n, dtype=torch.complex128, generator=generator)
    return a @ a.mH + 2 * torch.eye(n), torch.randn(n_batch, 1, n, dtype=torch.complex128, generator=generator)


def product(matrix):
    return lambda x: (matrix @ x.mT).mT


def residual(matrix, x, right):
    return (right - product(matrix)(x)).abs().amax((1, 2))


def test_exact_in_as_many_steps_as_unknowns():
    matrix, right = systems(3)
    zero = torch.zeros_like(right)
    x = conjugate_gradient(product(matrix), right, zero, 6)
    assert (residual(matrix, x, right) < 1e-10).all()
    early = conjugate_gradient(product(matrix), right, zero, 4)
    assert (residual(matrix, early, right) > 1e-6).all()


def test_more_steps_than_needed_do_no_harm():
    matrix, right = systems(2)
    x = conjugate_gradient(product(matrix), right, torch.zeros_like(right), 60)
    assert (residual(matrix, x, right) < 1e-10).all()


def test_any_start_gives_the_same_solution():
    matrix, right = systems(1)
    start = 5 * systems(1, seed=1)[1]
    kept = start.clone()
    x = conjugate_gradient(product(matrix), right, start, 8)
    assert torch.allclose(x, torch.linalg.solve(matrix, right.mT).mT, atol=1e-9)
    assert torch.equal(start, kept)


def test_systems_of_a_batch_do_not_see_each_other():
    matrix, right = systems(3)
    right[1] *= 1e4
    together = conjugate_gradient(product(matrix), right, torch.zeros_like(right), 4)
    for i in range(3):
        alone = conjugate_gradient(product(matrix[i : i + 1]), right[i : i + 1], torch.zeros_like(right[i : i + 1]), 4)
        assert torch.allclose(together[i], alone[0], rtol=1e-10, atol=1e-14)


def test_n_axes_joins_axes_into_one_system():
    diagonal = torch.linspace(1, 4, 24, dtype=torch.float64).reshape(2, 3, 4)
    right = systems(2, 12)[1].reshape(2, 3, 4)
    x = conjugate_gradient(lambda v: diagonal * v, right, torch.zeros_like(right), 40, 1e-12, n_axes=3)
    assert torch.allclose(x, right / diagonal, atol=1e-9)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-4])
def test_tolerance_stops(tolerance):
    matrix, right = systems(2, 40)
    calls = []

    def counted(x):
        calls.append(1)
        return product(matrix)(x)

    x = conjugate_gradient(counted, right, torch.zeros_like(right), 200, tolerance)
    norms = (right - product(matrix)(x)).abs().square().sum((1, 2)).sqrt() / right.abs().square().sum((1, 2)).sqrt()
    assert (norms <= tolerance * 1.01).all()
    steps = len(calls) - 1
    assert 1 <= steps < 60
    before = conjugate_gradient(product(matrix), right, torch.zeros_like(right), steps - 1)
    norms = (right - product(matrix)(before)).abs().square().sum((1, 2)).sqrt()
    assert (norms > tolerance * right.abs().square().sum((1, 2)).sqrt()).any()  # not a step too many


def test_zero_right_side():
    matrix, right = systems(2)
    zero = torch.zeros_like(right)
    assert torch.equal(conjugate_gradient(product(matrix), zero, zero, 10), zero)
    right[0] = 0  # one of a batch
    x = conjugate_gradient(product(matrix), right, zero, 10)
    assert torch.equal(x[0], zero[0])
    assert (residual(matrix, x, right) < 1e-10).all()


def test_single_precision():
    matrix, right = systems(2)
    matrix, right = matrix.to(torch.complex64), right.to(torch.complex64)
    x = conjugate_gradient(product(matrix), right, torch.zeros_like(right), 12)
    assert x.dtype == torch.complex64
    assert (residual(matrix, x, right) < 1e-4).all()


def test_a_preconditioner_changes_the_way_and_not_the_end():
    matrix, right = systems(3)
    scale = torch.logspace(0, 4, 6, dtype=torch.float64)
    matrix = scale[:, None] * matrix * scale
    zero = torch.zeros_like(right)
    plain = conjugate_gradient(product(matrix), right, zero, 6)
    better = conjugate_gradient(product(matrix), right, zero, 6, precondition=lambda r: r / scale**2)
    exact = torch.linalg.solve(matrix, right.mT).mT
    error = [((x - exact).abs() * scale).amax() for x in (plain, better)]
    assert error[1] < 1e-8 < 1e-2 * error[0]
    half = conjugate_gradient(product(matrix), right, zero, 3, precondition=lambda r: 0.5 * r)
    assert torch.allclose(half, conjugate_gradient(product(matrix), right, zero, 3), rtol=1e-6)
