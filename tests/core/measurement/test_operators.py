import math

import pytest
import torch
from helpers.dot_test import dot_test, normal_test

from pogmdm_core.errors import DataError
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.cartesian import CartesianFourier
from pogmdm_core.measurement.encoding import CoilOperator, EncodingModel, ImageOperator, root_sum_of_squares
from pogmdm_core.measurement.fourier import centred_fft, centred_ifft
from pogmdm_core.measurement.linear import LinearOperator, inner

SIZES = [(8, 8), (17, 32), (31, 37)]
MASKS = ("full", "lines along x", "lines along y", "random", "single")


def make_mask(kind, shape):
    ny, nx = shape
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(shape, dtype=torch.bool)
    if kind == "full":
        mask[:] = True
    elif kind == "lines along x":
        mask[torch.rand(ny, generator=generator) < 0.4] = True
        mask[ny // 2] = True
    elif kind == "lines along y":
        mask[:, torch.rand(nx, generator=generator) < 0.4] = True
        mask[:, nx // 2] = True
    elif kind == "random":
        mask = torch.rand(shape, generator=generator) < 0.3
    else:
        mask[1, nx - 2] = True
    return mask


def random(*shape, dtype=torch.complex128, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SIZES)
def test_centred_fft_is_the_dft(shape):
    """Position and frequency run from -(n // 2); unitary."""
    matrices = []
    for n in shape:
        r = torch.arange(n, dtype=torch.float64) - n // 2
        matrices.append(torch.exp(-2j * math.pi * torch.outer(r, r).to(torch.complex128) / n) / n**0.5)
    x = random(2, *shape)
    assert torch.allclose(centred_fft(x), matrices[0] @ x @ matrices[1].T, atol=1e-12)
    assert torch.allclose(centred_ifft(centred_fft(x)), x, atol=1e-12)
    assert float(centred_fft(x).norm()) == pytest.approx(float(x.norm()), rel=1e-12)
    assert torch.allclose(centred_fft(x, (-1,)), x @ matrices[1].T, atol=1e-12)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.fault("F48")
def test_cartesian_fourier(kind, shape):
    mask = make_mask(kind, shape)
    operator = CartesianFourier(mask)
    assert operator.n_samples == int(mask.sum()) and operator.shape == shape
    for batch in ((), (3,), (2, 3)):
        dot_test(operator, (*batch, *shape), (*batch, *shape), n_draws=10 if not batch else 2)
        normal_test(operator, (*batch, *shape))
    dot_test(operator, shape, shape, torch.complex64)
    normal_test(operator, shape, torch.complex64)
    x = random(*shape)
    sampled = operator.forward(x)
    assert torch.equal(sampled[~mask], torch.zeros_like(sampled[~mask]))
    assert torch.allclose(sampled[mask], centred_fft(x)[mask])


@pytest.mark.parametrize("kind", MASKS)
def test_the_norm_bounds_the_normal_operator(kind):
    operator = CartesianFourier(make_mask(kind, (17, 32)))
    x = random(17, 32)
    for _ in range(5):  # a projection: one step is all it takes
        x = operator.normal(x) / x.norm()
    assert float(x.norm()) == pytest.approx(operator.norm, rel=1e-9)
    for seed in range(5):
        x = random(17, 32, seed=seed)
        assert operator.normal(x).norm() <= operator.norm * x.norm() * (1 + 1e-12)


def test_the_input_survives():
    operator = CartesianFourier(make_mask("lines along x", (8, 8)))
    x = random(8, 8)
    kept = x.clone()
    operator.normal(x), operator.forward(x), operator.adjoint(x)
    assert torch.equal(x, kept)


class Doubling(LinearOperator):
    domain = range = (4,)

    def forward(self, x):
        return 2j * x

    def adjoint(self, y):
        return -2j * y


def test_operators_without_a_shortcut_have_a_normal_operator():
    dot_test(Doubling(), (3, 4), (3, 4))
    assert torch.allclose(Doubling().normal(torch.ones(4, dtype=torch.complex128)).real, torch.tensor(4.0).double())


def test_the_algebra_of_operators():
    fourier = CartesianFourier(make_mask("lines along x", (17, 32)))
    coils = ImageOperator(fourier, random(3, 17, 32))
    assert (coils.domain, coils.range) == ((17, 32), (3, 17, 32))
    assert (coils.H.domain, coils.H.range, coils.H.H) == ((3, 17, 32), (17, 32), coils)
    x, y = random(2, 17, 32), random(2, 3, 17, 32)
    assert torch.equal(coils @ x, coils.forward(x)) and torch.equal(coils(x), coils.forward(x))
    assert torch.equal(coils.H @ y, coils.adjoint(y))
    normal = coils.H @ coils
    assert torch.equal(normal @ x, coils.normal(x)) and torch.equal(normal.H @ x, coils.normal(x))
    dot_test(coils @ coils.H, (3, 17, 32), (3, 17, 32))
    three = fourier.H @ fourier @ fourier.H
    dot_test(three, (17, 32), (17, 32))
    assert torch.allclose(three @ x, fourier.adjoint(x))  # F^H F is a projection
    assert torch.allclose((coils @ coils.H) @ y, coils.forward(coils.adjoint(y)))


def test_operators_refuse_other_shapes_and_name_both():
    fourier = CartesianFourier(make_mask("full", (8, 6)))
    with pytest.raises(DataError, match=r"E305 CartesianFourier is applied to \(\.\.\., 8, 6\), got \(6, 8\)"):
        fourier @ random(6, 8)
    coils = ImageOperator(fourier, random(3, 8, 6))
    problem = r"E305 CartesianFourier is applied to \(\.\.\., 8, 6\), but ImageOperator gives \(\.\.\., 3, 8, 6\)"
    with pytest.raises(DataError, match=problem):
        fourier @ coils


def test_the_dot_test_finds_mistakes():
    class Wrong(Doubling):
        def adjoint(self, y):
            return 2j * y

    class Flat(Doubling):
        def forward(self, x):
            return 2j * x.flatten()

    with pytest.raises(AssertionError, match="<y, A x>"):
        dot_test(Wrong(), (3, 4), (3, 4))
    with pytest.raises(AssertionError, match="forward gives"):
        dot_test(Flat(), (3, 4), (3, 4))


def test_inner_is_the_real_part_per_batch():
    a, b = random(2, 3, 4), random(2, 3, 4, seed=1)
    out = inner(a, b, 2)
    assert out.shape == (2, 1, 1) and out.dtype == torch.float64
    assert float(out[1]) == pytest.approx(float((a[1].conj() * b[1]).sum().real))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
@pytest.mark.parametrize("n_coils", [1, 16])
@pytest.mark.parametrize("kind", ["lines along y", "random"])
def test_image_and_coil_operators(kind, n_coils, dtype):
    shape = (17, 32)
    fourier = CartesianFourier(make_mask(kind, shape))
    csm, image = random(n_coils, *shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    for operator in (ImageOperator(fourier, csm), CoilOperator(fourier, image, n_coils)):
        domain = operator.domain
        dot_test(operator, domain, (n_coils, *shape), dtype)
        normal_test(operator, domain, dtype)
    both = (ImageOperator(fourier, csm).forward(image), CoilOperator(fourier, image, n_coils).forward(csm))
    assert torch.allclose(*both, atol=1e-5)  # one bilinear model seen from two sides


@pytest.mark.parametrize("n_maps", [1, 3])
def test_batches_of_images_and_coils(n_maps):
    shape, fourier = (17, 8), CartesianFourier(make_mask("random", (17, 8)))
    csm, images = random(n_maps, 4, *shape), random(3, *shape, seed=1)
    operator = ImageOperator(fourier, csm)
    dot_test(operator, (3, *shape), (3, 4, *shape))
    normal_test(operator, (3, *shape))
    alone = ImageOperator(fourier, csm[-1]).forward(images[2])
    assert torch.allclose(operator.forward(images)[2], alone)
    coils = CoilOperator(fourier, images, 4)
    dot_test(coils, (3, 4, *shape), (3, 4, *shape))
    normal_test(coils, (3, 4, *shape))


@pytest.fixture
def model():
    """Float64 throughout: frames hold complex64."""
    shape = (12, 15)
    frame = KSpaceFrame.cartesian(random(3, *shape, seed=7), make_mask("random", shape))
    made = EncodingModel(frame, scale=2.0)
    made._data = made._data.to(torch.complex128)
    made.adjoint_data = made.fourier.adjoint(made._data)
    return made


def misfit(model, x, csm):
    difference = model.fourier.forward(csm * x) - model._data
    return 0.5 * (difference.real**2 + difference.imag**2).sum()


def test_dominant_coils_approach_the_normal_operator():
    """All combinations are exact; fewer keep its size, and are nearer the more there are."""
    strength = torch.logspace(0, -1.5, 6)[:, None, None]  # so that some combinations hold more than others
    coils = random(6, 24, 32) * strength
    operator = ImageOperator(CartesianFourier(make_mask("random", (24, 32))), coils)
    x = random(24, 32, seed=1)
    whole = operator.normal(x)
    errors = [float((operator.dominant(n).normal(x) - whole).norm() / whole.norm()) for n in (1, 3, 5)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.5
    assert operator.dominant(6) is operator
    energy = float(operator.dominant(2).csm.abs().square().sum())
    assert energy == pytest.approx(float(coils.abs().square().sum()), rel=1e-5)


def test_gradients_equal_autograd(model):
    x = random(12, 15).requires_grad_()
    csm = random(3, 12, 15, seed=1).requires_grad_()
    by_x, by_csm = torch.autograd.grad(misfit(model, x, csm), (x, csm))
    assert torch.allclose(model.grad_image(x.detach(), csm.detach()), by_x, atol=1e-10)
    assert torch.allclose(model.grad_csm(x.detach(), csm.detach()), by_csm, atol=1e-10)


def test_gradients_in_batches(model):
    x, csm = random(2, 12, 15), random(2, 3, 12, 15, seed=1)
    assert torch.allclose(model.grad_image(x, csm)[1], model.grad_image(x[1], csm[1]))
    assert torch.allclose(model.grad_csm(x, csm)[1], model.grad_csm(x[1], csm[1]))
    assert torch.allclose(model.grad_image(x, csm[:1])[1], model.grad_image(x[1], csm[0]))


def test_gauge_invariance(model):
    """(x, csm) -> (a x, csm / a) leaves the data alone."""
    x, csm = random(12, 15), random(3, 12, 15, seed=1)
    a = random(12, 15, seed=2)
    a = a / a.abs() * (0.5 + a.abs())
    before = model.for_image(csm).forward(x)
    after = model.for_image(csm / a).forward(a * x)
    assert torch.allclose(before, after, atol=1e-12)


def test_a_unit_image_step_never_raises_the_misfit(model):
    csm = random(3, 12, 15, seed=1)
    csm = csm / root_sum_of_squares(csm)
    x = random(12, 15)
    for _ in range(5):
        new = x - model.grad_image(x, csm) / model.fourier.norm
        assert misfit(model, new, csm) <= misfit(model, x, csm)
        x = new


def test_residual_std_and_data_scale(model):
    x, csm = random(12, 15), random(3, 12, 15, seed=1)
    mask = model.fourier.mask
    difference = torch.view_as_real((centred_fft(csm * x) - model._data)[:, mask])
    assert model.n_measured == 3 * int(mask.sum())
    assert model.residual_std(x, csm) == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-10)
    frame = KSpaceFrame.cartesian(random(3, 12, 15, seed=7), mask)
    assert torch.allclose(EncodingModel(frame, 2.0).adjoint_data * 2, EncodingModel(frame).adjoint_data, atol=1e-6)
    assert torch.allclose(model.adjoint_data, centred_ifft(model._data), atol=1e-12)


def test_root_sum_of_squares():
    coils = random(2, 4, 5, 6)
    assert torch.allclose(root_sum_of_squares(coils), coils.abs().square().sum(1).sqrt())
