"""A wrong noise level must be found out from the data, and must never cost the image or its standard deviation."""

from dataclasses import replace

import pytest
import torch
from helpers.simulated_scan import simulate

from pogmdm_core import Settings, load_prior, reconstruct
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.noise import estimate_frame_noise
from pogmdm_core.measurement.noise_check import NoiseLevel, against_fit, against_kspace, free_share
from pogmdm_core.uncertainty.combine import object_mask

pytestmark = pytest.mark.fault("F67")

FAST = Settings(map={"prior_weight": 0.7}, uncertainty={"method": "folds"})


@pytest.fixture(scope="module")
def prior():
    return load_prior()


@pytest.fixture(scope="module")
def scan():
    """Much signal to the edge of k-space: its outer parts alone tell too little of the noise."""
    return simulate(noise_std=0.01)


@pytest.fixture(scope="module")
def right(prior, scan):
    return reconstruct(scan.frame, prior, FAST)


def claimed(scan, factor):
    return replace(scan.frame, noise_std=factor * scan.frame.noise_std)


@pytest.mark.parametrize(
    ("factor", "label"),
    [
        (1000, "NOISE_TOO_LOUD"),
        (10, "NOISE_TOO_LOUD"),
        (1.5, "NOISE_TOO_LOUD"),
        (1 / 3, None),
        (0.1, None),
        (0.001, "NOISE_SCALE_MISMATCH"),
        (None, ""),
    ],
)
def test_a_wrong_level_flattens_neither_image_nor_std(prior, scan, right, factor, label):
    """`label` None: either word for a level that is too quiet."""
    frame = replace(scan.frame, noise_std=None) if factor is None else claimed(scan, factor)
    found = reconstruct(frame, prior, FAST)
    truth = scan.image.abs()
    inside = object_mask(truth)
    error, before = ((r.image - truth)[inside].square().mean().sqrt() for r in (found, right))
    assert error < 1.25 * before
    spread = found.std[inside].square().mean().sqrt()
    assert 0.5 * error < spread < 2.5 * error
    quiet = {"NOISE_TOO_QUIET", "MODEL_ERROR"} & set(found.warnings)
    assert (label in found.warnings) if label else (bool(quiet) if label is None else not found.warnings)


def test_a_right_level_is_left_alone(scan, right):
    assert right.noise_std == scan.frame.noise_std
    assert right.warnings == ()


@pytest.mark.parametrize("share", [0, 1 / 4, 1 / 3])
def test_padding_is_no_quiet_kspace(prior, share):
    """Asymmetric echoes that a gadget upstream has filled up with zeros, taken for samples."""
    scan = simulate(noise_std=0.05)
    kspace = scan.frame.kspace.clone()
    kspace[:, :, : int(share * kspace.shape[2])] = 0
    found = reconstruct(replace(scan.frame, kspace=kspace), prior, FAST)
    assert found.noise_std == scan.frame.noise_std
    assert "NOISE_TOO_LOUD" not in found.warnings


def test_a_claim_is_held_against_the_quietest_kspace():
    generator = torch.Generator().manual_seed(0)
    kspace = torch.view_as_complex(torch.randn(4, 64, 64, 2, generator=generator))
    kspace[:, 20:44, 20:44] *= 1000
    frame = KSpaceFrame.cartesian(kspace, torch.ones(64, 64, dtype=torch.bool))
    quietest = estimate_frame_noise(frame)
    assert quietest == pytest.approx(1, rel=0.05)
    for noise_std, std, warnings in [
        (None, quietest, ()),
        (0.5, 0.5, ()),
        (1.15, 1.15, ()),
        (1.3, quietest, ("NOISE_TOO_LOUD",)),
        (0.01, quietest, ("NOISE_SCALE_MISMATCH",)),
    ]:
        level = against_kspace(replace(frame, noise_std=noise_std))
        assert (level.std, level.warnings) == (std, warnings)
        assert level.is_measured == (std == noise_std)


def test_a_claim_is_held_against_the_fit():
    """64 samples per pixel-free share: the bound is the residual over the root of what no unknown takes."""
    n_pixels, n_measured = 100, 1000
    free = free_share(n_pixels, n_measured)
    assert free == pytest.approx(0.8)
    bound = 0.5 / free**0.5

    def judged(claim, quietest, *, measured=True, n=n_measured):
        level = against_fit(NoiseLevel(claim, quietest, measured), 0.5, n_pixels, n)
        return level.std, level.warnings

    assert judged(0.6, 9.0) == (0.6, ())
    assert judged(0.9, 9.0) == (bound, ("NOISE_TOO_LOUD",))
    # nothing was claimed: the lower of two upper bounds
    assert judged(9.0, 9.0, measured=False) == (bound, ())
    assert judged(0.1, 0.1, measured=False) == (0.1, ())
    # too quiet only where both bounds agree: else it is the model that is wrong, or signal at the edge of k-space
    assert judged(0.1, 0.52) == (0.52, ("NOISE_TOO_QUIET",))
    assert judged(0.1, 9.0) == (0.1, ())
    # too few samples for a fit to tell
    assert judged(0.9, 9.0, n=120) == (0.9, ())


def test_parts_that_were_never_measured_do_not_count():
    """Zeros that a converter wrote as samples."""
    generator = torch.Generator().manual_seed(0)
    kspace = torch.view_as_complex(torch.randn(4, 64, 64, 2, generator=generator))
    kspace[:, :8] = kspace[:, -8:] = 0
    kspace[:, :, :8] = kspace[:, :, -8:] = 0
    frame = KSpaceFrame.cartesian(kspace, torch.ones(64, 64, dtype=torch.bool))
    assert estimate_frame_noise(frame) == pytest.approx(1, rel=0.1)


def test_whole_numbers_of_a_low_gain_have_noise():
    """Most of them are 0, and the median says that there is none. An upper bound is all there is."""
    generator = torch.Generator().manual_seed(0)
    kspace = torch.view_as_complex((0.25 * torch.randn(2, 64, 64, 2, generator=generator)).round())
    frame = KSpaceFrame.cartesian(kspace, torch.ones(64, 64, dtype=torch.bool))
    assert 0.2 < estimate_frame_noise(frame) < 0.6
