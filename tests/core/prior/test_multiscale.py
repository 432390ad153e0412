import math

import pytest
import torch

from pogmdm_core.prior.multiscale import MultiscaleBank

SCALES = ((1, 7, 3), (2, 5, 2), (4, 5, 1))


@pytest.fixture
def bank():
    made = MultiscaleBank(SCALES, tight_frame=0.02).double()
    with torch.no_grad():
        for kernels in made.kernels:
            kernels.add_(0.3 * torch.randn(kernels.shape, generator=torch.Generator().manual_seed(0)))
        made.gain.add_(0.1)
    return made.requires_grad_(False)


def symbol(taps, dilation, wy, wx):
    """Plain sum: DTFT of the taps at dilation * w times the low-passes before it."""
    taps = taps - taps.mean()
    taps = taps / taps.norm()
    side = taps.shape[0]
    total = 0j
    for i in range(side):
        for j in range(side):
            angle = -dilation * (wy * (i - side // 2) + wx * (j - side // 2))
            total += float(taps[i, j]) * complex(math.cos(angle), math.sin(angle))
    q = 1
    while q < dilation:
        total *= (math.cos(q * wy / 2) * math.cos(q * wx / 2)) ** 4
        q *= 2
    return total


def test_spectra_equal_the_plain_sum(bank):
    ny, nx = 15, 17
    flat = [(k, d) for (d, _, _), group in zip(SCALES, bank.kernels, strict=True) for k in group]
    for p, q in [(0, 1), (3, 0), (7, 8), (14, 5)]:
        wy = 2 * math.pi * float(torch.fft.fftfreq(ny)[p])
        wx = 2 * math.pi * float(torch.fft.fftfreq(nx)[q])
        raw = torch.tensor(
            [symbol(k, d, wy, wx) * math.exp(float(g)) for (k, d), g in zip(flat, bank.gain, strict=True)]
        )
        expected = raw / max(float((raw.abs() ** 2).sum()), 0.02) ** 0.5
        assert torch.allclose(bank.spectra((ny, nx))[:, p, q].to(raw.dtype), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(31, 37), (32, 48), (129, 97), (5, 6)])
def test_kernels_are_real_and_the_frame_is_tight(bank, shape):
    spectra = bank.spectra(shape)
    assert spectra.shape == (6, *shape)
    assert torch.fft.ifft2(spectra).imag.abs().max() < 1e-12
    coverage = (spectra.abs() ** 2).sum(0)
    assert coverage.max() <= 1 + 1e-12
    assert spectra[:, 0, 0].abs().max() < 1e-12  # no filter sees the mean


def test_spectra_are_samples_of_one_function(bank):
    """A grid twice as fine meets the coarse grid's frequencies (Nyquist aside, on odd grids)."""
    fine = bank.spectra((45, 63))[:, ::3, ::3]
    coarse = bank.spectra((15, 21))
    assert torch.allclose(fine, coarse, atol=1e-12)


def test_projection_changes_no_spectrum(bank):
    before = bank.spectra((31, 37))
    bank.project()
    assert torch.allclose(bank.spectra((31, 37)), before, atol=1e-12)
    for kernels in bank.kernels:
        assert kernels.sum((1, 2)).abs().max() < 1e-12
        assert torch.allclose(kernels.square().sum((1, 2)), torch.ones((), dtype=torch.float64))


def test_gradients_reach_all_parameters():
    bank = MultiscaleBank(SCALES)
    (bank.spectra((24, 20)).abs() ** 2 * torch.rand(6, 24, 20)).sum().backward()
    for parameter in bank.parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0
