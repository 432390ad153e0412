import pytest
import torch

from pogmdm_core.lengths import is_slow
from pogmdm_core.measurement.cartesian import CartesianFourier

SLOW = (69, 106)


def lines(axis, every=4):
    """Lines along one axis of a matrix whose lengths are slow, the centre among them."""
    mask = torch.zeros(SLOW, dtype=torch.bool)
    mask.movedim(axis, 0)[1::every] = True
    mask.movedim(axis, 0)[SLOW[axis] // 2 - 2 : SLOW[axis] // 2 + 3] = True
    return mask


def images(*more, dtype=torch.complex64):
    return torch.randn(*more, *SLOW, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_slow_lengths_take_waves_and_give_the_same(axis, shape):
    assert all(map(is_slow, SLOW))
    fourier, x = CartesianFourier(lines(axis)), images(*shape)
    assert fourier._waves.shape == (int(lines(axis).any(1 - axis).sum()), SLOW[axis])
    found, expected = fourier.normal(x), fourier.adjoint(fourier.forward(x.to(torch.complex128)))
    assert found.dtype == torch.complex64 and found.shape == x.shape
    assert (found - expected).abs().max() < 3e-6 * x.abs().max()


@pytest.mark.parametrize("axis", [0, 1])
def test_with_waves_it_is_still_a_projection(axis):
    fourier, x, y = CartesianFourier(lines(axis)), images(), images(1)[0].flip(0)
    once = fourier.normal(x)
    assert (fourier.normal(once) - once).abs().max() < 3e-6 * x.abs().max()
    left, right = torch.vdot(fourier.normal(y).flatten(), x.flatten()), torch.vdot(y.flatten(), once.flatten())
    assert abs(left - right) < 1e-5 * abs(left) + 1e-3


def test_in_double_precision_it_is_transformed():
    fourier, x = CartesianFourier(lines(0)), images(dtype=torch.complex128)
    assert (fourier.normal(x) - fourier.adjoint(fourier.forward(x))).abs().max() < 1e-13


@pytest.mark.parametrize("mask", [lines(0, every=2), torch.ones(SLOW, dtype=torch.bool), torch.eye(*SLOW) > 0])
def test_no_waves_where_they_are_no_faster(mask):
    assert CartesianFourier(mask)._waves is None
