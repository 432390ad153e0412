import math

import pytest
import torch
from helpers.simulated_scan import simulate

from pogmdm_core import load_prior
from pogmdm_core.estimate.gauss_newton import SmoothCoils
from pogmdm_core.estimate.joint_start import (
    JointStart,
    _enlarged,
    acs_start,
    low_resolution,
    nlinv,
    smooth_phase_into_coils,
    zero_filled_start,
)
from pogmdm_core.estimate.map_estimate import level_for, map_estimate
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.measurement.phantom import Phantom
from pogmdm_core.measurement.trajectories import radial
from pogmdm_core.reconstruction import image_scale


@pytest.fixture(scope="module")
def scan():
    return simulate((64, 64), n_coils=6, acceleration=2, n_centre=8, noise_std=0.001)


@pytest.fixture(scope="module")
def model(scan):
    return EncodingModel(scan.frame)


@pytest.fixture(scope="module")
def joint(model):
    return nlinv(model, 10)


def product_error(start, scan):
    """Relative error of csm x: image and coils alone are known up to a gauge only."""
    truth = scan.csm * scan.image
    return float((start.csm * start.image - truth).norm() / truth.norm())


def has_unit_coils(start, where):
    return torch.allclose(root_sum_of_squares(start.csm)[where], torch.ones(()), atol=1e-4)


def test_joint_estimate_recovers_the_coil_images(joint, model, scan):
    error, aliased = product_error(joint, scan), product_error(zero_filled_start(model), scan)
    assert error < 0.04, error
    assert 20 * math.log10(aliased / error) > 6
    assert has_unit_coils(joint, slice(None))
    # and with unit coils the image is the root-sum-of-squares image
    inside = scan.image.abs() > 0.2
    assert (joint.image.abs() - scan.image.abs())[inside].abs().mean() < 0.02


def test_joint_estimate_fits_the_data(joint, model, scan):
    assert model.residual_std(joint.image, joint.csm) < 3 * scan.frame.noise_std


def test_more_newton_steps_fit_better(model, scan):
    residuals = [model.residual_std(s.image, s.csm) for s in (nlinv(model, n) for n in (2, 5, 9))]
    assert residuals[0] > residuals[1] > residuals[2]


def test_progress_of_the_joint_estimate(model):
    seen = []
    nlinv(model, 3, report=lambda *args: seen.append(args))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_joint_estimate_scales_with_the_data(model, scan, joint):
    scaled = nlinv(EncodingModel(scan.frame, 1 / 50), 10)
    assert (scaled.image - 50 * joint.image).norm() < 1e-3 * (50 * joint.image).norm()
    assert torch.allclose(scaled.csm, joint.csm, atol=1e-3)


@pytest.mark.parametrize(("shape", "n_coils"), [((45, 51), 3), ((48, 40), 1)])
def test_odd_sizes_and_a_single_coil(shape, n_coils):
    scan = simulate(shape, n_coils, acceleration=1)
    start = nlinv(EncodingModel(scan.frame), 8)
    assert product_error(start, scan) < 0.06
    assert has_unit_coils(start, slice(None))


def test_zero_filled_start(model, scan):
    start = zero_filled_start(model)
    b = model.adjoint_data
    assert torch.allclose(start.image.real, root_sum_of_squares(b)) and (start.image.imag == 0).all()
    inside = start.image.real > 0.05
    assert has_unit_coils(start, inside)
    assert torch.allclose((start.csm * start.image)[:, inside], b[:, inside], atol=1e-5)


def test_acs_start_has_coils_free_of_aliasing(model, scan):
    start = acs_start(model)
    assert has_unit_coils(start, slice(None))
    inside = scan.image.abs() > 0.3
    # coils agree up to the phase of the gauge: the product with the conjugate over coils is of magnitude 1
    overlap = (start.csm.conj() * scan.csm).sum(0).abs()[inside]
    assert overlap.mean() > 0.98
    assert torch.allclose(start.image, (start.csm.conj() * model.adjoint_data).sum(0))


@pytest.mark.parametrize("make", [acs_start, lambda model: nlinv(model, 6)])
def test_moving_the_phase_changes_no_data(make, model):
    start = make(model)
    moved = smooth_phase_into_coils(start)
    assert torch.allclose(moved.csm * moved.image, start.csm * start.image, atol=1e-5)
    assert torch.allclose(moved.image * moved.gauge, start.image, atol=1e-5)
    assert torch.allclose(moved.csm * moved.gauge.conj(), start.csm, atol=1e-5)
    assert torch.allclose(moved.gauge.abs(), torch.ones(()), atol=1e-5)
    twice = smooth_phase_into_coils(moved)
    assert torch.allclose(twice.image * twice.gauge, start.image, atol=1e-5)


def test_a_smooth_phase_is_removed_from_the_image(scan):
    ones = torch.ones(scan.image.shape, dtype=torch.complex64)
    turned = scan.image.abs() * torch.exp(1j * (0.5 + torch.linspace(-1, 1, 64)))
    moved = smooth_phase_into_coils(JointStart(turned, scan.csm, ones))
    inside = scan.image.abs() > 0.3
    assert turned.angle()[inside].abs().max() > 1
    assert moved.image.angle()[inside].abs().max() < 0.2


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_warm_start_stops_at_the_noise(noise):
    """The residual tells when to stop, at any noise: for the MAP image its coils are as good as those of all steps."""
    shape = (64, 64)
    phantom, generator = Phantom.head(6), torch.Generator().manual_seed(0)
    k, _ = radial(24, shape, n_read=64)
    samples = 64 * phantom.kspace(k)
    samples = samples + noise * torch.view_as_complex(
        torch.randn(*samples.shape, 2, dtype=torch.float64, generator=generator)
    )
    model, truth, steps = EncodingModel(KSpaceFrame.noncartesian(samples, k, shape)), phantom.truth(shape), []
    stopped = nlinv(model, 16, noise_std=noise, report=lambda done, total: steps.append(done))
    assert 9 < len(steps) < 16
    assert model.residual_std(stopped.image, stopped.csm) <= 0.87 * noise
    before = nlinv(model, len(steps) - 1)
    assert model.residual_std(before.image, before.csm) > 0.87 * noise

    def error(start):
        start = smooth_phase_into_coils(start)
        image = map_estimate(model, load_prior(), start.csm, start.image, noise, level_for(noise), 100).image
        return float((image.abs() - truth).norm() / truth.norm())

    assert error(stopped) < 1.02 * error(nlinv(model, 16)) and error(stopped) < 0.97 * error(nlinv(model, 6))


def test_the_warm_start_stops_when_the_model_is_wrong(model, scan):
    """Data no image and smooth coils explain: ten steps, not all of them; without a known noise all are made."""
    made = []
    generator = torch.Generator().manual_seed(5)
    wrong = torch.view_as_complex(torch.randn(*scan.frame.kspace.shape, 2, generator=generator))
    amount = 0.02 * float(scan.frame.kspace.abs().max())
    frame = KSpaceFrame.cartesian(scan.frame.kspace + amount * wrong, scan.frame.mask, scan.frame.noise_std)
    bad = EncodingModel(frame, model.scale)
    nlinv(bad, 16, noise_std=scan.frame.noise_std / model.scale, report=lambda done, total: made.append(done))
    assert 9 <= len(made) <= 12
    made.clear()
    nlinv(bad, 14, report=lambda done, total: made.append(done))
    assert len(made) == 14


def test_coils_from_few_coefficients_are_adjoint_and_smooth():
    smooth = SmoothCoils((48, 41), (48, 41), torch.device("cpu"))
    assert smooth.shape[0] < 48 / 4 and smooth.shape[1] < 41 / 4
    generator = torch.Generator().manual_seed(0)
    chat = torch.randn(3, *smooth.shape, dtype=torch.complex64, generator=generator)
    y = torch.randn(3, 48, 41, dtype=torch.complex64, generator=generator)
    coils = smooth.forward(chat)
    assert coils.shape == (3, 48, 41) and smooth.adjoint(y).shape == chat.shape
    left, right = (coils.conj() * y).sum(), (chat.conj() * smooth.adjoint(y)).sum()
    assert torch.allclose(left, right, rtol=1e-4)
    # what is left out counts for nothing: all coefficients give the same coils
    k = torch.hypot(torch.fft.fftfreq(48)[:, None], torch.fft.fftfreq(41)[None, :])
    weight = (1 + 220 * k**2) ** -16.0
    assert float(torch.fft.fft2(coils, norm="ortho").abs()[:, weight < 1e-5].max()) < 1e-4
    delta = torch.zeros(1, *smooth.shape, dtype=torch.complex64)
    delta[0, 0, 0] = 1
    assert torch.allclose(smooth.forward(delta), torch.full((1, 48, 41), (48 * 41) ** -0.5, dtype=torch.complex64))


def test_one_smoothness_at_every_resolution():
    """The same coefficients give the same coils on a smaller matrix of the same field of view."""
    full, device = (96, 64), torch.device("cpu")
    large, small = SmoothCoils(full, full, device), SmoothCoils((48, 32), full, device)
    assert small.shape == large.shape
    generator = torch.Generator().manual_seed(0)
    chat = torch.randn(2, *small.shape, dtype=torch.complex64, generator=generator)
    enlarged = _enlarged(small.forward(chat).roll((24, 16), (1, 2)), full).roll((-48, -32), (1, 2))
    assert torch.allclose(enlarged / 2, large.forward(chat), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (41, 38)])
def test_enlarged_coils_are_the_same_at_the_same_places(shape):
    small, large = (24, 25), shape
    place = [(torch.arange(n) - n // 2) / n for n in small], [(torch.arange(n) - n // 2) / n for n in large]

    def wave(ys, xs):
        return torch.exp(2j * torch.pi * (2 * ys[:, None] - 3 * xs[None, :])) + 0.5

    found = _enlarged(wave(*place[0])[None].to(torch.complex64), large)
    assert torch.allclose(found[0], wave(*place[1]).to(torch.complex64), atol=1e-5)


def spokes(n_spokes, n, noise_std):
    phantom, trajectory = Phantom.head(n_coils=6, seed=2), radial(n_spokes, (n, n))
    kspace = phantom.kspace(trajectory.k) * (n * n) ** 0.5
    generator = torch.Generator().manual_seed(1)
    noise = noise_std * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=generator))
    frame = KSpaceFrame.noncartesian(kspace + noise, trajectory.k, (n, n), None, noise_std, trajectory.shot)
    return frame, phantom


def test_coils_from_the_centre_of_kspace_are_as_good():
    frame, _ = spokes(60, 160, 0.01)
    scale = image_scale(frame)
    model = EncodingModel(frame, scale)
    small = low_resolution(model)
    assert small is not None and small.fourier.shape == (96, 96)
    whole = nlinv(model, noise_std=0.01 / scale)
    centre = nlinv(model, noise_std=0.01 / scale, centre=small)
    inside = whole.image.abs() > 0.1
    same = (whole.csm.conj() * centre.csm).sum(0).abs()[inside]  # 1 where they agree but for a phase
    assert float(same.quantile(0.05)) > 0.99
    assert model.residual_std(centre.image, centre.csm) < 1.1 * 0.01 / scale
    assert has_unit_coils(centre, slice(None))


def test_small_matrices_are_fitted_whole():
    frame, _ = spokes(20, 64, 0.01)
    assert low_resolution(EncodingModel(frame)) is None


def test_without_samples_at_the_centre_all_of_kspace_is_fitted():
    frame, _ = spokes(60, 160, 0.01)
    outer = torch.hypot(*frame.positions) > 60
    assert low_resolution(EncodingModel(frame.subset(outer))) is None
    assert low_resolution(EncodingModel(frame.subset(~outer))) is not None
