from dataclasses import replace

import pytest
import torch

from pogmdm_core.errors import DataError
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.noise import (
    channels_with_signal,
    compression_matrix,
    estimate_frame_noise,
    noise_covariance,
    whitening_matrix,
)


def coloured(n_coils, n, seed=0):
    """Noise of a known covariance `(coil, n)`, variance 1 per complex sample before the mixing."""
    generator = torch.Generator().manual_seed(seed)
    mixer = torch.randn(n_coils, n_coils, dtype=torch.complex128, generator=generator) + 2 * torch.eye(n_coils)
    white = torch.randn(n_coils, n, dtype=torch.complex128, generator=generator)
    return mixer @ white, mixer @ mixer.mH


def test_covariance_of_many_samples():
    noise, expected = coloured(5, 60000)
    assert (noise_covariance(noise).matrix - expected).norm() < 0.02 * expected.norm()
    assert (noise_covariance(noise + 100).matrix - expected).norm() < 0.02 * expected.norm()  # no offset gets in


def test_whitened_noise_is_white():
    noise, _ = coloured(5, 60000)
    whitener, live = whitening_matrix(noise_covariance(noise).matrix)
    assert live.tolist() == [0, 1, 2, 3, 4] and whitener.dtype == torch.complex128
    fresh, _ = coloured(5, 60000, seed=0)
    white = whitener @ fresh
    cov = white @ white.mH / white.shape[1]
    assert (cov - torch.eye(5)).abs().max() < 0.02
    assert float(white.real.var()) == pytest.approx(0.5, rel=0.02)
    exact, _ = whitening_matrix(coloured(5, 2)[1])
    cov = coloured(5, 2)[1]
    assert (exact @ cov @ exact.mH - torch.eye(5)).abs().max() < 1e-10


@pytest.mark.fault("F38")
def test_dead_channels_are_dropped():
    noise, _ = coloured(5, 5000)
    noise[2] = 0
    noise[4] *= 1e-6
    whitener, live = whitening_matrix(noise_covariance(noise).matrix)
    assert live.tolist() == [0, 1, 3]
    assert whitener.shape == (3, 5)
    assert (whitener[:, [2, 4]] == 0).all()
    cov = noise_covariance(noise).matrix
    assert (whitener @ cov @ whitener.mH - torch.eye(3)).abs().max() < 1e-9


@pytest.mark.parametrize("n", [2, 3, 7, 12])
@pytest.mark.fault("F38")
def test_few_samples_still_give_a_positive_covariance(n):
    noise, _ = coloured(8, n)
    cov = noise_covariance(noise).matrix
    assert torch.equal(cov, cov.mH)
    assert torch.linalg.eigvalsh(cov).min() > 0
    whitener, live = whitening_matrix(cov)
    assert len(live) == 8 and torch.isfinite(torch.view_as_real(whitener)).all()


def test_single_channel():
    noise, expected = coloured(1, 4000)
    whitener, _ = whitening_matrix(noise_covariance(noise).matrix)
    assert float(whitener.abs()) == pytest.approx(float(expected.real) ** -0.5, rel=0.05)


@pytest.mark.parametrize("shape", [(4, 1), (4,), (2, 3, 4)])
def test_noise_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(DataError, match="E310 noise must be"):
        noise_covariance(torch.ones(shape, dtype=torch.complex64))


@pytest.mark.fault("F38")
def test_useless_covariances_are_refused():
    with pytest.raises(DataError, match="E310 every channel"):
        whitening_matrix(torch.zeros(3, 3, dtype=torch.complex128))
    bad = torch.eye(3, dtype=torch.complex128)
    bad[1, 1] = float("nan")
    with pytest.raises(DataError, match="E310 the noise covariance is not finite"):
        whitening_matrix(bad)


def test_compression_keeps_signal_and_white_noise():
    generator = torch.Generator().manual_seed(0)
    profiles = torch.randn(8, 2, dtype=torch.complex128, generator=generator)
    signal = profiles @ torch.randn(2, 500, dtype=torch.complex128, generator=generator)
    matrix, kept = compression_matrix(signal, 2)
    assert matrix.shape == (2, 8)
    assert (matrix @ matrix.mH - torch.eye(2)).abs().max() < 1e-12
    assert kept == pytest.approx(1, abs=1e-9)
    assert torch.allclose(matrix.mH @ (matrix @ signal), signal)
    noise = matrix @ torch.randn(8, 50000, dtype=torch.complex128, generator=generator)
    assert (noise @ noise.mH / 50000 - torch.eye(2)).abs().max() < 0.03


def test_compression_to_fewer_keeps_the_largest_share():
    signal = torch.diag(torch.tensor([1.0, 3.0, 2.0])).to(torch.complex128)
    matrix, kept = compression_matrix(signal, 1)
    assert kept == pytest.approx(9 / 14)
    assert matrix.abs()[0].tolist() == pytest.approx([0, 1, 0], abs=1e-12)
    everything, kept = compression_matrix(signal, 10)
    assert everything.shape == (3, 3) and kept == pytest.approx(1)
    matrix, kept = compression_matrix(torch.zeros(3, 5, dtype=torch.complex64), 2)
    assert matrix.shape == (2, 3) and kept == 0


@pytest.mark.parametrize("std", [1e-9, 0.3, 1e7])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_noise_estimate_on_noise_alone(std, fraction):
    generator = torch.Generator().manual_seed(0)
    kspace = std * torch.view_as_complex(torch.randn(4, 65, 80, 2, generator=generator))
    mask = torch.rand(65, 80, generator=generator) < fraction
    kspace = kspace * mask
    assert estimate_frame_noise(KSpaceFrame.cartesian(kspace, mask)) == pytest.approx(std, rel=0.1)


def test_noise_estimate_ignores_signal_at_the_centre():
    generator = torch.Generator().manual_seed(1)
    kspace = torch.view_as_complex(torch.randn(4, 64, 64, 2, generator=generator))
    kspace[:, 24:40, 24:40] += 1e4
    mask = torch.ones(64, 64, dtype=torch.bool)
    assert estimate_frame_noise(KSpaceFrame.cartesian(kspace, mask)) == pytest.approx(1, rel=0.1)
    assert estimate_frame_noise(KSpaceFrame.cartesian(torch.zeros_like(kspace), mask)) == 0


def test_channels_with_signal_are_those_above_the_noise():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.view_as_complex(torch.randn(*shape, 2, generator=generator))

    noise = 0.01 * random(8, 4000)
    mixing, _ = torch.linalg.qr(random(8, 8))
    sources = torch.tensor([1.0, 0.5, 0.2, 0.02])[:, None] * random(4, 4000)
    samples = mixing[:, :4] @ sources + noise
    assert channels_with_signal(samples, 0.01) == 3  # the fourth holds 0.03 %
    assert channels_with_signal(samples, 0.01, share=0.9999) == 4
    assert channels_with_signal(samples, 0.01, share=0.7) == 1
    assert channels_with_signal(noise, 0.02) == 8  # nothing to go by


def test_zeros_of_whole_numbers_are_samples():
    rng = torch.Generator().manual_seed(1)
    mask = torch.ones(32, 32, dtype=torch.bool)
    noise = 0.26 * torch.randn(1, 32, 32, dtype=torch.complex64, generator=rng) * 2**0.5
    kspace = torch.view_as_complex(torch.view_as_real(noise).round())
    frame = replace(KSpaceFrame.cartesian(kspace, mask), noise_floor=12**-0.5)
    std = float(torch.view_as_real(kspace).double().square().mean().sqrt())
    assert estimate_frame_noise(frame) == pytest.approx(std, rel=0.15)
    assert estimate_frame_noise(replace(frame, noise_floor=0.0)) > 2 * std  # only where zeros are padding
