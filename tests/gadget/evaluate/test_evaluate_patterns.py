import pytest
import torch
from helpers.simulated_scan import blobs, smooth_coils

from gadget.evaluate.patterns import ALIASES, NAMES, lines, mask, resolve, undersample
from pogmdm_core import ConfigError
from pogmdm_core.measurement.fourier import centred_fft

SHAPE = (64, 56)


@pytest.fixture(scope="module")
def coil_images():
    return (smooth_coils(3, SHAPE) * blobs(SHAPE)).to(torch.complex64)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("cartesian4", 2.9, 5.5),
        ("cartesian4_acs4", 2.9, 5.5),
        ("cartesian4h", 2.9, 5.5),
        ("gaussian8", 7.9, 8.1),
        ("radial6", 5.4, 6.0),
        ("radial11", 9.9, 11.0),
        ("spiral5", 4.5, 5.0),
    ],
)
def test_the_acceleration_is_reached(name, low, high, coil_images):
    frame = undersample(coil_images, name, 0, 0.01)
    assert low < frame.acceleration <= high
    assert frame.noise_std == 0.01


def test_lines_keep_a_quarter_on_average_and_the_centre_always():
    n, share = 100, 0.08
    kept = torch.stack([lines(n, 4, share, seed) for seed in range(400)])
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.005)
    always = kept.all(dim=0).nonzero().flatten()
    assert always.tolist() == list(range(46, 54))


@pytest.mark.parametrize("name", ["cartesian4", "cartesian4h", "gaussian8"])
def test_seeds_decide(name):
    assert torch.equal(mask(name, SHAPE, 1), mask(name, SHAPE, 1))
    assert not torch.equal(mask(name, SHAPE, 1), mask(name, SHAPE, 2))


def test_rows_or_columns_are_left_out():
    rows, columns = mask("cartesian4", SHAPE, 0), mask("cartesian4h", SHAPE, 0)
    assert torch.equal(rows, rows[:, :1].expand(SHAPE))
    assert torch.equal(columns, columns[:1].expand(SHAPE))


def test_samples_are_those_of_the_coil_images(coil_images):
    frame = undersample(coil_images, "cartesian4", 0, None)
    assert torch.allclose(frame.kspace, centred_fft(coil_images) * frame.mask, atol=1e-6)
    off = undersample(coil_images, "radial6", 0, None)
    assert not off.is_cartesian
    # an explicit sum at a few positions
    y, x = torch.meshgrid(torch.arange(64) - 32, torch.arange(56) - 28, indexing="ij")
    for i in (0, 100, off.kspace.shape[1] - 1):
        kx, ky = off.positions[:, i]
        wave = torch.exp(-2j * torch.pi * (kx * x / 56 + ky * y / 64))
        expected = (coil_images * wave).sum((1, 2)) / (64 * 56) ** 0.5
        assert torch.allclose(
            off.kspace[:, i], expected.to(torch.complex64), atol=2e-4 * float(expected.abs().max()) + 1e-4
        )


def test_names():
    assert all(resolve(alias) in NAMES for alias in ALIASES)
    with pytest.raises(ConfigError, match="E140"):
        resolve("cartesian5")
