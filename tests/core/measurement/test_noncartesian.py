"""Sampling off the grid against the explicit sums, on every trajectory and backend."""

import gc
import importlib.util
import math
import weakref

import pytest
import torch
from helpers.dot_test import dot_test, normal_test

from pogmdm_core import KSpaceFrame, Settings, load_prior, reconstruct, zero_filled
from pogmdm_core.measurement.cartesian import CartesianFourier
from pogmdm_core.measurement.density import density_weights, frame_weights, gridded_coil_images
from pogmdm_core.measurement.encoding import EncodingModel, ImageOperator, fourier_operator
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.measurement.noise import estimate_frame_noise
from pogmdm_core.measurement.noncartesian import NonCartesianFourier
from pogmdm_core.measurement.nufft import make_nufft
from pogmdm_core.measurement.phantom import Phantom
from pogmdm_core.measurement.trajectories import gaussian2d, radial, spiral

SIZES = [(16, 16), (17, 32), (31, 37)]
KINDS = ("grid", "radial", "spiral", "gaussian", "one sample")
BACKENDS = [
    pytest.param(
        "finufft",
        marks=pytest.mark.skipif(importlib.util.find_spec("finufft") is None, reason="finufft is not installed"),
    ),
    "torch",
]


def positions(mask):
    ny, nx = mask.shape
    row, column = torch.nonzero(mask, as_tuple=True)
    return torch.stack([column - nx // 2, row - ny // 2]).double()


def make_trajectory(kind, shape):
    if kind == "grid":
        return positions(torch.ones(shape, dtype=torch.bool))
    if kind == "radial":
        return radial(9, shape).k
    if kind == "spiral":
        return spiral(3, shape, 4, 200).k
    if kind == "gaussian":
        on_grid = positions(gaussian2d(shape, 4, torch.Generator().manual_seed(0)))
        return on_grid + 0.4 * torch.rand(
            on_grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
    return torch.tensor([[shape[1] / 2], [-shape[0] / 2]], dtype=torch.float64)


def dense(trajectory, shape):
    """The sums' matrix `(n, y, x)`, written out."""
    ny, nx = shape
    y, x = torch.arange(ny).double() - ny // 2, torch.arange(nx).double() - nx // 2
    phase = trajectory[1][:, None, None] * y[:, None] / ny + trajectory[0][:, None, None] * x / nx
    return torch.polar(torch.ones_like(phase), -2 * math.pi * phase) / math.sqrt(ny * nx)


def random(*shape, dtype=torch.complex128, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float((a.to(torch.complex128) - b).norm() / b.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SIZES)
def test_against_the_explicit_sums(shape, kind, backend):
    trajectory = make_trajectory(kind, shape)
    operator, matrix = NonCartesianFourier(trajectory, shape, backend), dense(trajectory, shape)
    assert operator.shape == shape and operator.sample_shape == (trajectory.shape[1],)
    assert backend in operator.backend and "toeplitz" in operator.backend
    for dtype, limit in ((torch.complex64, 1e-5), (torch.complex128, 1e-11)):
        x, y = random(2, *shape, dtype=dtype), random(2, operator.n_samples, dtype=dtype, seed=1)
        forward = torch.einsum("jyx,byx->bj", matrix, x.to(torch.complex128))
        assert relative(operator.forward(x), forward) < limit
        adjoint = torch.einsum("jyx,bj->byx", matrix.conj(), y.to(torch.complex128))
        assert relative(operator.adjoint(y), adjoint) < limit
        normal = torch.einsum("jyx,bj->byx", matrix.conj(), forward)
        assert relative(operator.normal(x), normal) < limit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_coils", [1, 16])
def test_adjointness_in_batches(n_coils, kind, backend):
    shape = (17, 20)
    operator = NonCartesianFourier(make_trajectory(kind, shape), shape, backend)
    for batch in ((), (n_coils,), (2, n_coils)):
        dot_test(operator, (*batch, *shape), (*batch, operator.n_samples), n_draws=2)
        normal_test(operator, (*batch, *shape))
    dot_test(operator, shape, (operator.n_samples,), torch.complex64)
    normal_test(operator, shape, torch.complex64)
    csm = random(n_coils, *shape)
    dot_test(ImageOperator(operator, csm), shape, (n_coils, operator.n_samples), n_draws=2)
    normal_test(ImageOperator(operator, csm), shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_images_than_fit_one_plan(backend):
    nufft = make_nufft(radial(5, (8, 8)).k, (8, 8), backend)
    x = random(37, 8, 8)
    assert torch.allclose(nufft.forward(x)[36], nufft.forward(x[36:])[0], atol=1e-11)
    y = nufft.forward(x)
    assert torch.allclose(nufft.adjoint(y)[35], nufft.adjoint(y[35:36])[0], atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transform_goes_with_its_last_user(backend):
    """Its plans hold megabytes: they must not wait for the cyclic garbage collector."""
    trajectory, _ = radial(5, (16, 16))
    nufft = make_nufft(trajectory, (16, 16), backend)
    nufft.adjoint(nufft.forward(torch.ones(1, 16, 16, dtype=torch.complex64)))
    alive = weakref.ref(nufft)
    gc.disable()
    try:
        del nufft
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["radial", "spiral", "gaussian"])
def test_norm_and_circulant_approximation(kind):
    shape = (17, 20)
    operator = NonCartesianFourier(make_trajectory(kind, shape), shape)
    largest = float(torch.linalg.matrix_norm(dense(operator.trajectory, shape).reshape(-1, 340), 2)) ** 2
    assert largest <= operator.norm < 1.1 * largest
    assert (operator.circulant >= 0).all()
    # the nearest circulant matrix keeps the diagonal
    assert float(operator.circulant.mean()) == pytest.approx(operator.n_samples / 340, rel=1e-5)


def test_grid_points_are_a_cartesian_scan():
    shape = (15, 18)
    mask = gaussian2d(shape, 3, torch.Generator().manual_seed(2))
    mask[0, 0] = True  # the whole grid is in reach
    cartesian = CartesianFourier(mask)
    operator = NonCartesianFourier(positions(mask), shape)
    x = random(2, *shape)
    assert torch.allclose(operator.forward(x), centred_fft(x)[:, mask], atol=1e-11)
    assert torch.allclose(operator.normal(x), cartesian.normal(x), atol=1e-11)
    assert torch.allclose(operator.circulant.double(), torch.fft.ifftshift(mask).double(), atol=1e-5)
    assert 1 <= operator.norm < 1.06
    assert torch.allclose(density_weights(positions(mask), shape), torch.ones(()).double(), atol=1e-5)
    kspace = centred_fft(random(3, *shape, dtype=torch.complex64))
    on_grid, off_grid = (
        KSpaceFrame.cartesian(kspace, mask),
        KSpaceFrame.noncartesian(kspace[:, mask], positions(mask), shape),
    )
    assert off_grid.acceleration == pytest.approx(on_grid.acceleration)
    images = [gridded_coil_images(frame, fourier_operator(frame)) for frame in (on_grid, off_grid)]
    assert relative(images[1], images[0].to(torch.complex128)) < 1e-5


def test_density_weights_make_the_gridded_image_of_a_full_scan():
    """Weights of a full radial scan follow the ramp and add up to the disc's area."""
    shape = (32, 32)
    k = radial(64, shape).k
    weights = density_weights(k, shape)
    radius = torch.hypot(*k)
    ramp = 2 * math.pi * radius / (2 * 64 * 2)  # circumference over crossings and radial samples per step
    middle = (radius > 3) & (radius < 13)
    assert (weights[middle] / ramp[middle] - 1).abs().max() < 0.1
    assert float(weights.sum()) == pytest.approx(math.pi * 16**2, rel=0.1)
    y, x = torch.meshgrid(*[(torch.arange(32) - 16) / 4.0] * 2, indexing="ij")
    image = torch.exp(-(x**2 + y**2) / 2).to(torch.complex64)[None]
    operator = NonCartesianFourier(k, shape)
    frame = KSpaceFrame.noncartesian(operator.forward(image), k, shape)
    assert relative(gridded_coil_images(frame, operator), image.to(torch.complex128)) < 0.03


def test_supplied_weights_have_any_scale():
    shape = (24, 24)
    k = spiral(6, shape, 3, 300).k
    computed = density_weights(k, shape)
    samples = random(2, k.shape[1])
    frame = KSpaceFrame.noncartesian(samples, k, shape, density=1e6 * computed)
    assert torch.allclose(frame_weights(frame), computed, rtol=0.02)
    assert torch.equal(frame_weights(KSpaceFrame.noncartesian(samples, k, shape)), computed)


def test_the_residual_is_that_of_the_samples():
    shape = (16, 16)
    k = radial(8, shape).k
    csm, image = random(3, *shape, dtype=torch.complex64), random(*shape, dtype=torch.complex64, seed=1)
    noise = random(3, k.shape[1], seed=2) * 2**0.5 * 0.1
    clean = torch.einsum("jyx,cyx->cj", dense(k, shape), (csm * image).to(torch.complex128))
    frame = KSpaceFrame.noncartesian(clean + noise, k, shape)
    model = EncodingModel(frame, 2.0)
    assert model.n_measured == 3 * k.shape[1]
    expected = float(torch.view_as_real(noise).square().mean().sqrt()) / 2
    assert model.residual_std(image / 2, csm) == pytest.approx(expected, rel=1e-4)


def test_the_preconditioner_evens_out_the_curvature():
    """On a radial scan the eigenvalues of weight N + damping spread far less after it."""
    shape, weight, damping = (16, 16), 50.0, 2.0
    operator = NonCartesianFourier(radial(24, shape).k, shape)
    basis = torch.eye(256, dtype=torch.complex128).reshape(256, *shape)
    curvature = (weight * operator.normal(basis) + damping * basis).reshape(256, 256)
    inverse = operator.precondition(basis, weight, damping).reshape(256, 256)
    assert torch.allclose(inverse, inverse.mH, atol=1e-8)
    values = [torch.linalg.eigvals(m).real for m in (curvature, inverse @ curvature)]
    spread = [float(v.max() / v.min()) for v in values]
    assert values[1].min() > 0 and spread[1] < 0.3 * spread[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_reconstruction_from_few_spokes(backend, monkeypatch):
    """End to end on the analytic phantom: far better than gridding, to the noise, whatever the library."""
    if backend == "torch":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    shape, noise = (64, 64), 0.01
    phantom = Phantom.head(6, seed=1)
    k, shot = radial(24, shape)
    generator = torch.Generator().manual_seed(0)
    samples = 64 * phantom.kspace(k)
    samples = samples + noise * torch.view_as_complex(
        torch.randn(*samples.shape, 2, dtype=torch.float64, generator=generator)
    )
    frame = KSpaceFrame.noncartesian(samples, k, shape, noise_std=noise, shot=shot)
    result = reconstruct(frame, load_prior(), Settings(n_samples=2, n_steps=4, map={"steps": 60}, device="cpu"))
    truth = phantom.truth(shape).float()
    assert result.status == "ok" and result.backend == f"toeplitz ({backend})"
    errors = [float((image - truth).norm() / truth.norm()) for image in (result.image, result.mean, zero_filled(frame))]
    assert errors[0] < 0.08 and errors[1] < 0.12 and errors[2] > 2 * errors[0], errors
    gridded = zero_filled(frame)
    assert float((gridded * truth).sum() / gridded.square().sum()) == pytest.approx(1, abs=0.1)  # in the image's units
    assert 0.5 < result.data_residual < 3
    for start in ("acs", "zero_filled"):
        other = reconstruct(
            frame, load_prior(), Settings(n_samples=0, map={"steps": 5}, device="cpu", coils={"init": start})
        )
        assert other.status == "ok" and torch.isfinite(other.image).all()


@pytest.mark.parametrize("method", ["langevin", "paper"])
def test_every_sampler_runs_off_the_grid(method):
    shape = (24, 24)
    k, _ = radial(12, shape)
    samples = 24 * Phantom.head(3).kspace(k)
    extra = {"likelihood": "unit"} if method == "paper" else {}
    settings = Settings(n_samples=2, n_steps=4, map={"steps": 5}, device="cpu", method=method, **extra)
    result = reconstruct(KSpaceFrame.noncartesian(samples, k, shape, noise_std=0.01), load_prior(), settings)
    assert result.status == "ok" and result.n_samples == 2


def test_noise_from_the_outermost_samples():
    k, _ = radial(40, (64, 64))
    generator = torch.Generator().manual_seed(3)
    noise = 0.2 * torch.view_as_complex(torch.randn(4, k.shape[1], 2, generator=generator))
    samples = noise + 1e4 * (torch.hypot(*k) < 20)
    frame = KSpaceFrame.noncartesian(samples, k, (64, 64))
    assert estimate_frame_noise(frame) == pytest.approx(0.2, rel=0.05)


def test_supplied_density_weights_change_the_preview_only():
    """The same scan with and without a column of weights gives the same image."""
    shape = (24, 24)
    k, shot = radial(16, shape)
    samples = 24 * Phantom.head(3).kspace(k)
    ramp = torch.hypot(*k) + 0.5
    plain, weighted = (
        KSpaceFrame.noncartesian(samples, k, shape, density, noise_std=0.01, shot=shot) for density in (None, ramp)
    )
    settings = Settings(n_samples=2, n_steps=4, map={"steps": 20}, device="cpu")
    one, other = (reconstruct(frame, load_prior(), settings) for frame in (plain, weighted))
    assert torch.equal(one.image, other.image) and torch.equal(one.std, other.std)
    assert not torch.equal(zero_filled(plain), zero_filled(weighted))
