import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gadget.evaluate.intensity import spline_psnr
from gadget.evaluate.metrics import (
    Reference,
    gaussian_crps,
    image_metrics,
    least_squares_scale,
    null_space_residual,
    uncertainty_metrics,
)

RNG = np.random.default_rng(0)


def a_reference(shape=(40, 36)):
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    image = (1 + np.cos(5 * x) * np.sin(4 * y)) * (y**2 + x**2 < 0.8)
    return Reference(image, y**2 + x**2 < 0.8, image + 0.1)


def test_against_skimage():
    reference = a_reference()
    image = 3 * (reference.image + 0.05 * RNG.standard_normal(reference.image.shape))
    mask = reference.mask
    found = image_metrics(image, reference)
    scaled = image * (image[mask] @ reference.image[mask]) / (image[mask] @ image[mask])
    peak = reference.image[mask].max()
    assert found["psnr"] == pytest.approx(
        peak_signal_noise_ratio(reference.image[mask], scaled[mask], data_range=peak), abs=1e-9
    )
    _, values = structural_similarity(scaled, reference.image, data_range=peak, full=True)
    assert found["ssim"] == pytest.approx(values[mask].mean(), abs=1e-9)
    whole = least_squares_scale(image, reference.plain) * image
    expected = peak_signal_noise_ratio(reference.plain, whole, data_range=reference.plain.max())
    assert found["psnr_full"] == pytest.approx(expected, abs=1e-9)
    assert found["nmse"] == pytest.approx(
        ((scaled - reference.image)[mask] ** 2).sum() / (reference.image[mask] ** 2).sum()
    )
    assert image_metrics(7 * image, reference) == pytest.approx(found)


def test_by_hand():
    image, truth = np.array([1.0, 1.0]), np.array([1.0, 3.0])
    assert least_squares_scale(image, truth) == 2.0
    assert least_squares_scale(np.zeros(2), truth) == 0.0


def test_an_honest_standard_deviation_is_found_honest():
    shape = (200, 200)
    truth = 10 + np.zeros(shape)
    std = np.exp(RNG.normal(-1.5, 0.6, (25, 25))).repeat(8, 0).repeat(8, 1)
    image = truth + std * RNG.standard_normal(shape)
    found = uncertainty_metrics(
        image, std, Reference(truth, np.ones(shape, bool), truth), {0.5: 0.6745, 0.8: 1.2816, 0.95: 1.96}
    )
    assert found["sd_over_rmse"] == pytest.approx(1, abs=0.03)
    for probability in (50, 80, 95):
        assert found[f"coverage_{probability}"] == pytest.approx(probability / 100, abs=0.015)
    assert found["rank_7x7"] > 0.9
    assert 0.2 < found["rank_pixel"] < found["rank_7x7"]
    doubled = uncertainty_metrics(
        image, 2 * std, Reference(truth, np.ones(shape, bool), truth), {0.5: 0.6745, 0.8: 1.2816, 0.95: 1.96}
    )
    assert doubled["crps"] > found["crps"]
    assert doubled["sd_over_rmse"] == pytest.approx(2 * found["sd_over_rmse"])


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (0.7, 0.5), (-2.0, 0.3)])
def test_crps_is_the_integral_that_defines_it(error, std):
    def squared(x):
        return (norm.cdf(x, scale=std) - (x >= error)) ** 2

    expected = quad(squared, -20, error)[0] + quad(squared, error, 20)[0]
    assert float(gaussian_crps(np.array([error]), np.array([std]))[0]) == pytest.approx(expected, rel=1e-6)


def test_crps_without_spread_is_the_absolute_error():
    assert gaussian_crps(np.array([0.5, -2.0]), np.zeros(2)) == pytest.approx([0.5, 2.0])


def test_null_space_of_the_true_maps_is_empty():
    maps = RNG.standard_normal((4, 6, 5)) + 1j * RNG.standard_normal((4, 6, 5))
    image = RNG.standard_normal((6, 5))
    assert null_space_residual(3 * maps, maps * image).max() < 1e-12
    # orthogonal maps leave everything
    other = np.stack([maps[1].conj(), -maps[0].conj(), 0 * maps[2], 0 * maps[3]])
    data = np.stack([maps[0], maps[1], 0 * maps[2], 0 * maps[3]]) * image
    assert null_space_residual(other, data) == pytest.approx(np.linalg.norm(data, axis=0))


def test_the_spline_is_learned_from_other_scans_alone():
    reference = a_reference()
    bent = np.sqrt(reference.image + 0.2)
    plain = image_metrics(bent, reference)["psnr"]
    other = a_reference((44, 30))
    taught = spline_psnr(bent, reference, [(np.sqrt(other.image + 0.2), other)])
    assert taught > plain + 10
    assert np.isnan(spline_psnr(bent, reference, []))
