import math

import pytest
import torch

from pogmdm_core.errors import ConfigError
from pogmdm_core.measurement.phantom import (
    PERIOD,
    Phantom,
    _fit_series,
    _ring_profiles,
    random_noise_mixer,
    receiver_noise,
)


@pytest.fixture(scope="module")
def head():
    return Phantom.head(n_coils=4, seed=3)


def rasterised_kspace(phantom, k, n):
    """Plain sum over the pixels of an n x n raster of object times coils: the integral's oracle."""
    pixels = phantom.image((n, n))[None] * phantom.coil_profiles((n, n))
    r = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    columns = torch.exp(-2j * math.pi * r[:, None] * k[0][None].to(torch.complex128))
    rows = torch.exp(-2j * math.pi * r[:, None] * k[1][None].to(torch.complex128))
    assert phantom.edge == 0
    return torch.einsum("cyx,yk,xk->ck", pixels, rows, columns) / n**2


def test_kspace_equals_a_dense_sum_over_a_fine_raster():
    phantom = Phantom.head(n_coils=3, seed=1, edge=0.0)
    # off-grid, on-grid, half-grid and zero positions, kx unlike ky
    k = torch.tensor([[0.0, 3.0, -7.5, 2.37, -11.1], [0.0, -5.0, 4.5, -8.61, 0.4]], dtype=torch.float64)
    expected = rasterised_kspace(phantom, k, 768)
    assert (phantom.kspace(k) - expected).abs().max() < 2e-4 * expected.abs().max()


def test_lattice_table_equals_direct_evaluation(head):
    on_lattice = torch.stack([torch.arange(-8, 8).repeat(16) / 2, torch.arange(-8, 8).repeat_interleave(16)])
    on_lattice = on_lattice.to(torch.float64)
    beside = torch.cat([on_lattice, torch.tensor([[0.123], [0.0]], dtype=torch.float64)], dim=1)
    table, direct = head.kspace(on_lattice), head.kspace(beside)[:, :-1]
    assert torch.allclose(table, direct, atol=1e-12 * float(direct.abs().max()), rtol=0)


def test_a_real_object_without_coils_has_hermitian_symmetry(head):
    one = torch.ones(1, 1, 1, dtype=torch.complex128)
    plain = Phantom(head.ellipses, one, one[0], head.edge)
    k = 20 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(plain.kspace(-k), plain.kspace(k).conj(), atol=1e-14)
    # and with coils and phase it has none, or the test above would say nothing about them
    assert not torch.allclose(head.kspace(-k), head.kspace(k).conj(), atol=1e-4)


def test_dc_is_the_area():
    ellipse = torch.tensor([[2.0, 0.1, -0.2, 0.2, 0.1, 0.5]], dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.complex128)
    at_zero = Phantom(ellipse, one, one[0], 0.0).kspace(torch.zeros(2, 1, dtype=torch.float64))
    assert at_zero.item() == pytest.approx(2.0 * math.pi * 0.2 * 0.1, rel=1e-12)


def test_coil_series_follows_the_ring_profiles():
    wanted = _ring_profiles(5, 0.3)
    series = _fit_series(wanted, 3)
    r = torch.linspace(-0.5, 0.5, wanted.shape[-1], dtype=torch.float64)
    basis = torch.exp(2j * math.pi / PERIOD * r[:, None] * torch.arange(-3, 4)[None])
    got = torch.einsum("ym,cmn,xn->cyx", basis, series, basis)
    assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_coils_differ_and_cover_the_object(head):
    profiles = head.coil_profiles((32, 32)).reshape(4, -1)
    correlation = (profiles @ profiles.mH).abs() / (profiles.norm(dim=1)[:, None] * profiles.norm(dim=1)[None])
    assert float((correlation - torch.eye(4)).max()) < 0.8
    assert float(profiles.abs().square().sum(0).sqrt().min()) > 0.1


def test_truth_has_maximum_one_and_does_not_depend_on_oversampling(head):
    assert float(head.truth((64, 64)).max()) == pytest.approx(1.0, abs=1e-12)
    assert float(head.truth((96, 64)).max()) == pytest.approx(1.0, abs=0.15)
    wide = torch.fft.ifftshift(head.cartesian((64, 48), oversampling=2), dim=(-2, -1))
    image = torch.fft.fftshift(torch.fft.ifft2(wide, norm="ortho"), dim=(-2, -1))[..., 24:72]
    rss = image.abs().square().sum(0).sqrt()
    truth = head.truth((64, 48))
    # the doubled field of view folds differently outside the object; nothing but ringing is there
    assert float((rss - truth).norm() / truth.norm()) < 0.02


def test_truth_is_the_object_times_the_coils(head):
    rss = head.coil_profiles((128, 128)).abs().square().sum(0).sqrt()
    direct = head.image((128, 128)).abs() * rss
    truth = head.truth((128, 128))
    assert float((truth - direct).norm() / direct.norm()) < 0.15  # edges: ringing against hard steps
    assert float((truth - direct.flip(0)).norm() / direct.norm()) > 0.2  # upright, not mirrored


def test_seed_and_level_choose_the_slice():
    same = Phantom.head(2, seed=5), Phantom.head(2, seed=5)
    assert torch.equal(same[0].ellipses, same[1].ellipses)
    assert torch.equal(same[0].coils, same[1].coils)
    assert not torch.equal(same[0].ellipses, Phantom.head(2, seed=6).ellipses)
    other = Phantom.head(2, seed=5, level=0.7)
    assert float(other.ellipses[0, 3]) < float(same[0].ellipses[0, 3])


@pytest.mark.parametrize("wrong", [{"n_coils": 0}, {"level": 1.5}, {"edge": -0.1}])
def test_impossible_phantoms_are_refused(wrong):
    with pytest.raises(ConfigError, match="E110"):
        Phantom.head(**wrong)


def test_receiver_noise_has_the_stated_std_and_is_correlated():
    generator = torch.Generator().manual_seed(0)
    mixer = random_noise_mixer(6, generator)
    noise = receiver_noise(mixer, 40000, 0.3, generator)
    parts = torch.view_as_real(noise)
    assert float(parts.square().mean().sqrt()) == pytest.approx(0.3, rel=0.01)
    covariance = noise @ noise.mH / noise.shape[1]
    assert torch.allclose(covariance, 2 * 0.3**2 * mixer @ mixer.mH, atol=0.01)
    d = torch.diagonal(covariance).real.sqrt()
    off = (covariance.abs() / (d[:, None] * d[None])).fill_diagonal_(0)
    assert 0.1 < float(off.max()) < 0.9
