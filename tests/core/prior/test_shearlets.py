import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pogmdm_core.prior.shearlets import (
    ShearletBank,
    project_l1_sphere,
    project_simplex,
    shearlet_kernels,
    start_fan,
    start_low_pass,
    wrap_kernel,
)

TESTS = Path(__file__).parents[2]
REDUCED = TESTS / "golden" / "shearlets.npz"
# keep in step with tests/golden/make_reduced.py
KERNELS, SPECTRA, KERNEL_STRIDE, SPECTRUM_STRIDE = (1, 5), (0, 7, 12, 19), 4, 5


@pytest.fixture(scope="module")
def full_golden():
    folder = Path(os.environ.get("POGMDM_SPEC", TESTS.parents[1] / "shared" / "spec")) / "golden"
    if not (folder / "shearlets.npz").is_file():
        pytest.skip("the specification's golden files are not here: set POGMDM_SPEC")
    return np.load(folder / "shearlets.npz")


def golden_bank(golden):
    bank = ShearletBank().double()
    with torch.no_grad():
        bank.low_pass.copy_(torch.from_numpy(golden["h"]))
        bank.fan.copy_(torch.from_numpy(golden["P"]))
    return bank


def with_golden_border(kernel):
    """The golden kernels have one column of zeros more on each side."""
    return np.pad(kernel.detach().numpy(), ((0, 0), (1, 1)))


@pytest.mark.golden
def test_reduced_golden_numbers():
    golden = np.load(REDUCED)
    assert REDUCED.stat().st_size <= 100_000
    tolerance = float(golden["tolerance"])
    bank = golden_bank(golden)
    kernels = shearlet_kernels(bank.low_pass, bank.fan)
    for k in KERNELS:
        kernel, expected = with_golden_border(kernels[k]), golden[f"kernel_{k}"]
        assert kernel.shape == tuple(golden[f"kernel_{k}_shape"])
        assert np.abs(kernel.ravel()[::KERNEL_STRIDE] - expected).max() <= tolerance * np.abs(kernel).max()
    spectra = bank.spectra((64, 48)).detach().numpy()[list(SPECTRA)].reshape(len(SPECTRA), -1)
    error = np.abs(spectra[:, ::SPECTRUM_STRIDE] - golden["spectra_64x48"]).max(1)
    assert (error <= tolerance * np.abs(spectra).max(1)).all()
    xi = bank.spectra((320, 320)).detach().abs().amax((1, 2)).numpy()
    np.testing.assert_allclose(xi, golden["xi_320"], rtol=tolerance)


@pytest.mark.golden
def test_all_golden_numbers(full_golden):
    bank = golden_bank(full_golden)
    for k, kernel in enumerate(shearlet_kernels(bank.low_pass, bank.fan)):
        expected = full_golden[f"kernel_{k}"]
        assert np.abs(with_golden_border(kernel) - expected).max() <= 1e-10 * np.abs(expected).max(), k
    spectra, expected = bank.spectra((64, 48)).detach().numpy(), full_golden["spectra_64x48"]
    assert (np.abs(spectra - expected).max((1, 2)) <= 1e-10 * np.abs(expected).max((1, 2))).all()


@pytest.mark.golden
def test_the_reduced_file_is_a_part_of_the_full_one(full_golden):
    golden = np.load(REDUCED)
    for name in ("h", "P", "xi_320"):
        np.testing.assert_array_equal(golden[name], full_golden[name])
    for k in KERNELS:
        np.testing.assert_array_equal(golden[f"kernel_{k}"], full_golden[f"kernel_{k}"].ravel()[::KERNEL_STRIDE])


@pytest.mark.parametrize("shape", [(31, 37), (129, 97), (8, 150), (64, 64)])
def test_wrapping_adds_modulo_the_grid(shape):
    kernel = torch.randn(89, 137, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.zeros(shape)
    y = (np.arange(89) - 44)[:, None] % shape[0]
    x = (np.arange(137) - 68)[None, :] % shape[1]
    np.add.at(expected, (y, x), kernel.numpy())
    np.testing.assert_allclose(wrap_kernel(kernel, shape).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(31, 37), (129, 97), (64, 64)])
def test_filters_are_real_and_cone_two_is_cone_one_transposed(shape):
    bank = ShearletBank(tight_frame=0.1).double()
    spectra, turned = bank.spectra(shape).detach(), bank.spectra(shape[::-1]).detach()
    assert torch.fft.ifft2(spectra).imag.abs().max() < 1e-14
    permuted = torch.cat([turned[10:], turned[:10]]).mT
    assert torch.allclose(spectra, permuted, atol=1e-13)
    assert not torch.allclose(spectra, turned.mT, atol=1e-3)  # the order matters


def test_transposed_image_gives_permuted_responses():
    x = torch.randn(33, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bank = ShearletBank().double()
    u = torch.fft.ifft2(bank.spectra((33, 40)).detach().conj() * torch.fft.fft2(x)).real
    v = torch.fft.ifft2(bank.spectra((40, 33)).detach().conj() * torch.fft.fft2(x.T)).real
    assert torch.allclose(v, torch.cat([u[10:], u[:10]]).mT, atol=1e-12)


@pytest.mark.parametrize("shape", [(31, 37), (96, 96)])
def test_tight_frame_covers_everything_it_sees_alike(shape):
    plain = (ShearletBank().double().spectra(shape).detach().abs() ** 2).sum(0)
    tight = (ShearletBank(tight_frame=0.1).double().spectra(shape).detach().abs() ** 2).sum(0)
    assert tight.max() <= 1 + 1e-12
    assert torch.allclose(tight[plain >= 0.1], torch.ones((), dtype=torch.float64))
    assert torch.allclose(tight[plain < 0.1], plain[plain < 0.1] / 0.1)
    assert (plain < 0.1).any() and (plain > 0.2).any()


def test_gradients_reach_all_parameters():
    bank = ShearletBank(tight_frame=0.1)
    (bank.spectra((48, 40)).abs() ** 2 * torch.rand(20, 48, 40)).sum().backward()
    for parameter in (bank.low_pass, bank.fan, bank.gain):
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0


def test_start_low_pass_is_low_pass():
    h = start_low_pass()
    assert h.shape == (9,)
    assert float(h.double().sum()) == pytest.approx(1, abs=1e-6)
    signs = torch.tensor([(-1.0) ** n for n in range(9)])
    assert abs(float((signs * h).double().sum())) < 1e-6  # H(pi) = 0: high-passes have no mean
    assert torch.equal(h, h.flip(0))


def test_start_fan_passes_one_cone():
    fan = start_fan()
    assert float(fan.abs().sum()) == pytest.approx(1, abs=1e-5)
    spectrum = torch.fft.fft2(fan, s=(64, 64)).abs()
    assert spectrum[4, 24] > 10 * spectrum[24, 4]  # |w_x| > |w_y|


def test_filters_ignore_a_constant_image():
    spectra = ShearletBank().double().spectra((40, 48)).detach()
    assert spectra[:, 0, 0].abs().max() < 1e-6 * spectra.abs().max()


def test_project_restores_the_constraints():
    generator = torch.Generator().manual_seed(2)
    bank = ShearletBank()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    before = bank.low_pass.detach().clone()
    bank.project()
    assert float(bank.low_pass.detach().sum()) == pytest.approx(1, abs=1e-5)
    moved = bank.low_pass.detach() - before
    assert torch.allclose(moved, moved[0].expand(9), atol=1e-5)  # the nearest point of sum h = 1
    assert float(bank.fan.detach().abs().sum()) == pytest.approx(1, abs=1e-5)
    assert float(bank.gain.detach().min()) == 0.0  # some were negative
    kept = [p.detach().clone() for p in bank.parameters()]
    bank.project()
    for parameter, value in zip(bank.parameters(), kept, strict=True):
        assert torch.allclose(parameter.detach(), value, atol=1e-5)


# small multiples of 1/4 produce ties and exact zeros; floats produce the rest
numbers = st.one_of(st.integers(-6, 6).map(lambda i: i / 4), st.floats(-3, 3, width=32))
vectors = st.lists(numbers, min_size=1, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(vectors)
def test_simplex_projection_is_the_nearest_point(v):
    p = project_simplex(v)
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert (p >= 0).all()
    # variational inequality at the corners: <v - p, e_i - p> <= 0
    assert ((v - p) - ((v - p) * p).sum() <= 1e-9).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(vectors)
def test_l1_sphere_projection(v):
    p = project_l1_sphere(v)
    assert float(p.abs().sum()) == pytest.approx(1, abs=1e-9)
    assert (p * v >= 0).all()
    assert (p[v == 0] >= 0).all()  # no mass lost where the sign is undefined
    # nearest: no corner of the face p lies on is nearer
    face = torch.where(v < 0, -1.0, 1.0).to(torch.float64)
    for i in range(len(v)):
        corner = torch.zeros_like(v)
        corner[i] = face[i]
        assert (v - p).norm() <= (v - corner).norm() + 1e-9
    assert torch.allclose(project_l1_sphere(p), p, atol=1e-9)


def test_l1_sphere_keeps_the_mass_of_zeros():
    p = project_l1_sphere(torch.tensor([0.3, 0.0, -0.2, 0.0]))
    assert torch.allclose(p, torch.tensor([0.425, 0.125, -0.325, 0.125]))
    assert float(project_l1_sphere(torch.zeros(17, 17)).abs().sum()) == pytest.approx(1, abs=1e-5)


def test_simplex_projection_works_row_by_row():
    v = torch.tensor([[2.0, 2.0, 0.0], [0.2, 0.3, 0.5]])
    assert torch.allclose(project_simplex(v), torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]))
