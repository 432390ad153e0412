"""Objects larger than the field of view: they fold, and are reconstructed on one twice as large."""

from __future__ import annotations

import pytest
import torch
from helpers.simulated_scan import blobs, line_mask, simulate, smooth_coils

from pogmdm_core import KSpaceFrame, Settings, load_prior, reconstruct
from pogmdm_core.estimate.joint_start import JointStart, nlinv, zero_filled_start
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.folding import as_scanned, doubled
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.result import ReconResult
from pogmdm_core.run import Run, SamplerStatus
from pogmdm_core.uncertainty.combine import object_mask
from pogmdm_core.uncertainty.leave_out import has_scarce_calibration
from pogmdm_core.wrapped import Wrapped, unwrapped

FOLDS = {"map": {"prior_weight": 0.7}, "uncertainty": {"method": "folds"}, "device": "cpu"}


@pytest.fixture(scope="module")
def prior():
    return load_prior()


def wrap(wide: torch.Tensor, n: int) -> torch.Tensor:
    """What a field of view of `n` rows shows of `(..., y, x)`, row by row; the centres of both are one place."""
    folded = torch.zeros(*wide.shape[:-2], n, wide.shape[-1], dtype=wide.dtype)
    for y in range(wide.shape[-2]):
        folded[..., (y - wide.shape[-2] // 2 + n // 2) % n, :] += wide[..., y, :]
    return folded


def wrapped_scan(n: int = 80, noise_std: float = 0.01) -> tuple[KSpaceFrame, torch.Tensor]:
    """Object of 96 rows and coils on 128, seen by `n`; and what a full scan shows, `(y, x)`."""
    wide = smooth_coils(8, (128, 96)) * blobs((128, 96))
    coil_images = wrap(wide, n)
    generator = torch.Generator().manual_seed(0)
    noise = torch.view_as_complex(torch.randn(8, n, 96, 2, generator=generator))
    frame = KSpaceFrame.cartesian(centred_fft(coil_images) + noise_std * noise, line_mask((n, 96), 2, 16), noise_std)
    return frame, torch.linalg.vector_norm(coil_images, dim=0)


def error_in_decibel(image: torch.Tensor, truth: torch.Tensor) -> float:
    inside = object_mask(truth)
    return float(10 * torch.log10((image - truth)[inside].square().mean() / truth.max() ** 2))


@pytest.mark.parametrize(("n", "axis"), [(10, 0), (9, 0), (10, 1), (9, 1)])
def test_the_larger_field_of_view_has_the_same_samples(n, axis):
    wide = torch.view_as_complex(torch.randn(3, 2 * n, 12, 2, generator=torch.Generator().manual_seed(1)))
    mask = torch.rand(n, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    kspace = centred_fft(wrap(wide, n))
    if axis:
        wide, mask, kspace = wide.mT, mask.T, kspace.mT
    frame = doubled(KSpaceFrame.cartesian(kspace, mask, 0.2), axis)
    seen = EncodingModel(frame).for_image(torch.ones(1, *frame.shape, dtype=torch.complex64))
    for coil in range(3):
        assert torch.allclose(seen.forward(wide[coil])[0], frame.kspace[coil], atol=1e-5)
    assert int(frame.mask.sum()) == int(mask.sum())
    assert frame.noise_std == pytest.approx(0.2 / 2**0.5)


def any_result(n: int, generator: torch.Generator) -> ReconResult:
    """Of the larger field of view `(2 n, 6)`, with unit coils."""
    csm = torch.view_as_complex(torch.randn(4, 2 * n, 6, 2, generator=generator))
    csm = csm / torch.linalg.vector_norm(csm, dim=0)
    image, std, sample = torch.rand(3, 2 * n, 6, generator=generator) + 0.1
    phase = 6 * torch.rand(2 * n, 6, generator=generator) - 3
    return ReconResult(image, 0.01 * std, image, image, phase, csm, torch.stack([sample, image]), SamplerStatus.OK)


@pytest.mark.parametrize(("n", "axis"), [(8, 0), (7, 0), (8, 1)])
def test_images_fold_coil_by_coil(n, axis):
    generator = torch.Generator().manual_seed(4)
    result = any_result(n, generator)
    if axis:
        turned = {name: getattr(result, name).mT for name in ("image", "std", "mean", "map", "phase", "csm", "samples")}
        result = ReconResult(**turned, status=SamplerStatus.OK)
    shape = (n, 6) if axis == 0 else (6, n)
    frame = doubled(KSpaceFrame.cartesian(torch.ones(4, *shape, dtype=torch.complex64), torch.ones(shape) > 0), axis)
    wrapped = Wrapped(frame, JointStart(result.image, result.csm, result.image))

    def folded(wide: torch.Tensor) -> torch.Tensor:
        return wrap(wide.mT, n).mT if axis else wrap(wide, n)

    found = wrapped.folded(result)
    coil_images = folded(result.csm * torch.polar(result.image, result.phase))
    expected = torch.linalg.vector_norm(coil_images, dim=0)
    for name in ("image", "mean", "map"):
        assert torch.allclose(getattr(found, name), expected, atol=1e-5), name
    assert torch.allclose(found.samples[1], expected, atol=1e-5)
    assert torch.allclose(found.csm * torch.polar(found.image, found.phase), coil_images, atol=1e-5)
    assert torch.allclose(torch.linalg.vector_norm(found.csm, dim=0), torch.ones(shape), atol=1e-5)
    assert found.std is result.std  # it is of what is shown from the beginning


@pytest.mark.parametrize(("n", "axis"), [(8, 0), (7, 0), (8, 1), (7, 1)])
def test_as_it_was_scanned_again(n, axis):
    kspace = torch.view_as_complex(torch.randn(3, n, n + 2, 2, generator=torch.Generator().manual_seed(6)))
    frame = KSpaceFrame.cartesian(kspace, torch.rand(n, n + 2, generator=torch.Generator().manual_seed(7)) < 0.6, 0.3)
    again = as_scanned(doubled(frame, axis))
    assert torch.allclose(again.kspace, frame.kspace, atol=1e-6) and torch.equal(again.mask, frame.mask)
    assert (again.shape, again.doubled_axis) == (frame.shape, None)
    assert again.noise_std == pytest.approx(0.3)
    assert as_scanned(frame) is frame
    assert doubled(frame, axis).subset(doubled(frame, axis).mask).doubled_axis == axis


def test_a_wrapped_object_is_seen_whole(prior):
    frame, truth = wrapped_scan()
    found = reconstruct(frame, prior, Settings(**FOLDS))
    assert "LARGER_FOV" in found.warnings
    assert found.image.shape == found.std.shape == frame.shape and found.csm.shape == (8, *frame.shape)
    as_it_is = reconstruct(frame, prior, Settings(**FOLDS, coils={"wrapped": "off"}))
    assert "LARGER_FOV" not in as_it_is.warnings
    assert error_in_decibel(found.image, truth) < error_in_decibel(as_it_is.image, truth) - 6
    inside = object_mask(truth)
    error = (found.image - truth)[inside].square().mean().sqrt()
    assert 0.5 < float(found.std[inside].square().mean().sqrt() / error) < 2
    assert found.noise_std == pytest.approx(as_it_is.noise_std)
    # what it began with serves again, whatever the setting
    again = reconstruct(frame, prior, Settings(**FOLDS, coils={"wrapped": "off"}), start=found.start)
    assert torch.allclose(again.image, found.image, atol=1e-4)


def test_raw_spread_is_that_of_the_samples_shown(prior):
    frame, _ = wrapped_scan()
    settings = Settings(n_samples=3, n_steps=4, map={"steps": 30}, uncertainty={"method": "samples"}, device="cpu")
    found = reconstruct(frame, prior, settings)
    assert "LARGER_FOV" in found.warnings
    assert torch.allclose(found.std, found.samples.std(0), rtol=1e-3, atol=1e-5)


def test_a_trial_that_diverges_or_is_stopped_is_not_taken(prior, monkeypatch):
    frame, _ = wrapped_scan()
    model = EncodingModel(frame)
    start = nlinv(model, 10)

    def diverging(larger, settings, noise_std, run):
        run.end(SamplerStatus.DIVERGED, "")
        return zero_filled_start(larger)

    monkeypatch.setattr("pogmdm_core.wrapped.joint_start", diverging)
    run = Run(None, None)
    assert unwrapped(model, start, 0.01, Settings().coils, run) is None
    assert run.status is SamplerStatus.OK
    run.end(SamplerStatus.CANCELLED, "")
    assert unwrapped(model, start, 0.01, Settings().coils, run) is None


def test_columns_wrap_too(prior):
    frame, truth = wrapped_scan()
    turned = KSpaceFrame.cartesian(frame.kspace.mT.contiguous(), frame.mask.T.contiguous(), frame.noise_std)
    found = reconstruct(turned, prior, Settings(map={"prior_weight": 0.7}, uncertainty={"method": "off"}, n_samples=0))
    assert "LARGER_FOV" in found.warnings
    assert error_in_decibel(found.image, truth.T) < -25


def test_what_ends_in_air_keeps_its_field_of_view(prior):
    scan = simulate(shape=(96, 80), n_coils=8, n_centre=16, noise_std=0.01)
    found = reconstruct(scan.frame, prior, Settings(uncertainty={"method": "off"}, n_samples=0))
    assert "LARGER_FOV" not in found.warnings


def test_the_image_comes_folded_ahead_of_its_std(prior):
    frame, _ = wrapped_scan()
    told = []
    found = reconstruct(frame, prior, Settings(**FOLDS), early=told.append)
    assert len(told) == 1 and told[0].std is None
    assert torch.equal(told[0].image, found.image)


@pytest.mark.parametrize(("n", "n_centre"), [(64, 8), (64, 6), (63, 8), (63, 6)])
def test_calibration_is_counted_in_lines_that_could_be_sampled(n, n_centre):
    mask = line_mask((n, 20), 4, n_centre)
    frame = KSpaceFrame.cartesian(torch.ones(2, n, 20, dtype=torch.complex64), mask, 0.1)
    assert has_scarce_calibration(doubled(frame, 0)) == has_scarce_calibration(frame) == (n_centre < 8)
