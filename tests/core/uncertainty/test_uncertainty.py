"""Folds, the error spectrum, and the standard-deviation map made of them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.simulated_scan import line_mask, simulate
from hypothesis import given
from hypothesis import strategies as st

from pogmdm_core import KSpaceFrame, SamplerStatus, Settings, load_prior, reconstruct
from pogmdm_core.measurement.trajectories import radial
from pogmdm_core.result import GAUSSIAN_FACTORS
from pogmdm_core.uncertainty.combine import Uncertainty, combine, object_mask
from pogmdm_core.uncertainty.error_spectrum import ErrorSpectrum, fit
from pogmdm_core.uncertainty.held_out import HeldOut
from pogmdm_core.uncertainty.leave_out import CENTRE, Sampling, grid_positions, sampling_of, split

QUICK = {"n_samples": 2, "n_steps": 4, "map": {"steps": 30}, "device": "cpu"}


def frame_of(mask: torch.Tensor) -> KSpaceFrame:
    return KSpaceFrame.cartesian(torch.ones(2, *mask.shape, dtype=torch.complex64), mask, 0.1)


def points_mask(shape=(40, 36), seed=0) -> torch.Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask[shape[0] // 2 - 3 : shape[0] // 2 + 3, shape[1] // 2 - 3 : shape[1] // 2 + 3] = True
    return mask


def spokes(n_spokes=13, n=32) -> KSpaceFrame:
    traj, shot = radial(n_spokes, (n, n))
    return KSpaceFrame.noncartesian(torch.ones(2, traj.shape[1], dtype=torch.complex64), traj, (n, n), None, 0.1, shot)


FRAMES = {
    "lines": lambda: frame_of(line_mask((48, 40), 3, 6)),
    "columns": lambda: frame_of(line_mask((48, 40), 3, 6).T.contiguous()),
    "points": lambda: frame_of(points_mask()),
    "shots": spokes,
}


@pytest.mark.parametrize("kind", FRAMES)
@given(seed=st.integers(0, 2**31), n_groups=st.integers(2, 6))
def test_folds_are_disjoint_whole_and_even(kind, seed, n_groups):
    frame = FRAMES[kind]()
    groups = split(frame, n_groups, seed)
    assert len(groups) == n_groups
    total = torch.stack(groups).long().sum(0)
    assert total.max() == 1
    if frame.is_cartesian:
        assert not (total.bool() & ~frame.mask).any()
        ky, kx = grid_positions(frame.shape)
        distance = {"lines": ky.abs(), "columns": kx.abs(), "points": torch.hypot(ky, kx)}[kind]
        assert torch.equal(total.bool(), frame.mask & (distance > CENTRE))
        units = [group.sum() for group in groups]
        if kind != "points":  # whole lines
            axis = {"lines": 1, "columns": 0}[kind]
            units = [group.any(axis).sum() for group in groups]
            assert all(torch.equal(f.any(axis), f.all(axis)) for f in groups)
    else:
        assert total.min() == 1
        units = [torch.unique(frame.shot[group]).numel() for group in groups]
        assert sum(units) == torch.unique(frame.shot).numel()
    assert max(units) - min(units) <= 1
    assert all(torch.equal(a, b) for a, b in zip(groups, split(frame, n_groups, seed), strict=True))


def test_neighbouring_lines_go_to_different_folds():
    frame = FRAMES["lines"]()
    groups = split(frame, 4)
    free = torch.nonzero(torch.stack(groups).any(0)[:, 0]).squeeze(1)
    number = torch.stack(groups)[:, :, 0].long().argmax(0)[free]
    for first in range(0, len(free) - 3, 4):
        assert len(set(number[first : first + 4].tolist())) == 4


def test_fewer_lines_than_groups_leave_no_empty_fold():
    mask = torch.zeros(32, 16, dtype=torch.bool)
    mask[[15, 16, 24]] = True
    groups = split(frame_of(mask), 4)
    assert len(groups) == 1 and groups[0].sum() == 16
    only_centre = torch.zeros(32, 16, dtype=torch.bool)
    only_centre[16] = True
    assert split(frame_of(only_centre), 4) == []


@pytest.mark.parametrize(
    ("kind", "found"),
    [("lines", Sampling.LINES), ("columns", Sampling.LINES), ("points", Sampling.POINTS), ("shots", Sampling.SHOTS)],
)
def test_sampling_is_told_from_the_frame(kind, found):
    assert sampling_of(FRAMES[kind]()) is found


@pytest.mark.parametrize("kind", ["points", "shots"])
def test_band_errors_are_recovered(kind):
    """Residuals drawn with a known energy per radius give that energy back, noise taken off."""
    frame = FRAMES[kind]()
    groups = split(frame, 4)
    generator = torch.Generator().manual_seed(1)
    noise = 0.3
    errors = []
    for group in groups:
        n = int(group.sum())
        errors.append((2.0 + noise) * torch.distributions.Gamma(4.0, 4.0).sample((n,)).double())
    del generator
    spectrum = fit(frame, groups, errors, noise)
    missing = spectrum.cells[~spectrum.acquired]
    assert float(missing.mean()) == pytest.approx(2.0, rel=0.15)
    assert torch.equal(spectrum.acquired, frame.sampled_cells)


def line_errors(frame, groups, truth, noise):
    """Residuals of left-out lines from exp(a) f^b d^c plus noise."""
    lines = frame.mask.any(1)
    n = len(lines)
    index = torch.arange(n)
    frequency = ((index - n // 2) / n).abs().clamp_min(CENTRE)
    out = []
    for group in groups:
        kept = lines & ~group.any(1)
        distance = (index[:, None] - index[kept][None]).abs().amin(1)
        mean = truth[0] * (frequency / 0.1) ** truth[1] * distance.clamp_min(1) ** truth[2] + noise
        out.append(mean[:, None].expand(frame.shape)[group].double())
    return out


def test_line_model_reaches_into_gaps_wider_than_those_it_saw():
    generator = torch.Generator().manual_seed(2)
    lines = torch.rand(160, generator=generator) < 0.3
    lines[74:86] = True
    lines[100:118] = False  # no group makes a gap like this
    frame = frame_of(lines[:, None].expand(160, 16).contiguous())
    groups = split(frame, 4)
    truth, noise = (3.0, -1.7, 1.2), 0.5
    spectrum = fit(frame, groups, line_errors(frame, groups, truth, noise), noise)
    row = 109
    distance = float((torch.arange(160)[lines] - row).abs().min())
    expected = truth[0] * (abs(row - 80) / 160 / 0.1) ** truth[1] * distance ** truth[2]
    assert float(spectrum.cells[row, 0]) == pytest.approx(expected, rel=0.2)
    assert spectrum.untested > 0.25


def test_an_even_mask_is_tested_throughout():
    frame = frame_of(line_mask((120, 16), 3, 10))
    groups = split(frame, 4)
    spectrum = fit(frame, groups, line_errors(frame, groups, (1.0, -2.0, 1.0), 0.1), 0.1)
    assert spectrum.untested < 0.25


@pytest.mark.parametrize(("n_central", "untested"), [(8, False), (7, True), (5, True), (1, True)])
def test_with_few_central_lines_nothing_is_tested(n_central, untested):
    """The coils may be wrong then, and the groups are predicted with the same ones."""
    lines = torch.zeros(120, dtype=torch.bool)
    lines[::3] = True
    lines[56:66] = False
    lines[60 - n_central // 2 : 60 - n_central // 2 + n_central] = True
    frame = frame_of(lines[:, None].expand(120, 16).contiguous())
    groups = split(frame, 4)
    spectrum = fit(frame, groups, line_errors(frame, groups, (1.0, -2.0, 1.0), 0.1), 0.1)
    assert (spectrum.untested == 1.0) is untested


def test_a_full_scan_has_enough_central_lines():
    frame = frame_of(torch.ones(16, 16, dtype=torch.bool))
    groups = split(frame, 4)
    assert fit(frame, groups, line_errors(frame, groups, (1.0, -2.0, 1.0), 0.1), 0.1).untested < 1


def test_rms_charges_missing_cells_and_what_noise_leaves_in_acquired_ones():
    cells = torch.tensor([[3.0, 5.0], [7.0, 1.0]], dtype=torch.float64)
    acquired = torch.tensor([[True, False], [False, True]])
    noise = 0.5
    energy = 5 + 7 + 3 * 0.5 / 3.5 + 1 * 0.5 / 1.5
    assert ErrorSpectrum(cells, acquired, 0.0).rms(noise, 6) == pytest.approx(math.sqrt(energy / 12))
    # without noise acquired cells are exact, with endless noise they are worth nothing
    assert ErrorSpectrum(cells, acquired, 0.0).rms(0.0, 6) == pytest.approx(1.0)
    assert ErrorSpectrum(cells, acquired, 0.0).rms(1e12, 6) == pytest.approx(math.sqrt(16 / 12))


def held_of(rms: float, shape=(20, 20), untested=0.0, n_groups=4) -> HeldOut:
    """Folds that predict a root mean square error over the whole image."""
    acquired = torch.zeros(shape, dtype=torch.bool)
    cells = torch.full(shape, 2 * rms**2, dtype=torch.float64)
    spread = torch.linspace(1, 2, shape[0])[:, None].expand(shape) * 1e-4
    return HeldOut(spread, ErrorSpectrum(cells, acquired, untested), 0.1, 0.001, n_groups, 4)


def draws(std: float, n: int, shape=(20, 20)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [1 + std * torch.randn(shape, generator=generator) for _ in range(n)]


def test_scale_is_the_geometric_mean_of_both():
    found = combine(torch.ones(20, 20), held_of(0.04), draws(0.01, 200), sample_factor=3.0)
    assert found.method == "calibrated"
    assert found.scales["folds"] == pytest.approx(0.04)
    assert found.scales["samples"] == pytest.approx(0.03, rel=0.02)
    assert float(found.std.square().mean().sqrt()) == pytest.approx(math.sqrt(0.04 * found.scales["samples"]), rel=1e-5)
    assert found.warnings == ()
    # where groups move more, the map is larger
    assert found.std[-4:].mean() > found.std[:4].mean()

    halved = combine(torch.ones(20, 20), held_of(0.04), draws(0.01, 200), 3.0, held_out_factor=2.0)
    assert halved.scales["folds"] == pytest.approx(found.scales["folds"] / 2)
    assert torch.allclose(halved.std, found.std / 2**0.5)


def test_disagreement_and_untested_gaps_are_told():
    found = combine(torch.ones(20, 20), held_of(0.04, untested=0.4), draws(0.01, 50), sample_factor=1.0)
    assert found.warnings == ("STD_LOWER_BOUND", "SCALE_UNCERTAIN")


@pytest.mark.fault("F67")
@pytest.mark.parametrize("n_groups", [4, 2])
@pytest.mark.parametrize("samples", [[], [torch.ones(20, 20), torch.ones(20, 20) + 1e-6]])
def test_the_scale_has_a_floor_in_the_jackknife(samples, n_groups):
    """Neither a prediction error that the noise eats up nor samples that all agree leave a spread of nothing."""
    held = held_of(1e-9, n_groups=n_groups)
    found = combine(torch.ones(20, 20), held, samples, 2.0)
    least = 0.8 * math.sqrt(3 * float(held.spread.mean()))
    assert float(found.std.square().mean().sqrt()) == pytest.approx(least, rel=1e-4)
    shots = combine(torch.ones(20, 20), held, samples, 2.0, held_out_factor=1.6)
    assert float(shots.std.square().mean().sqrt()) == pytest.approx(least / 1.6, rel=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_without_samples_the_folds_decide(n):
    found = combine(torch.ones(20, 20), held_of(0.04), draws(0.01, n), 3.0)
    assert found.method == "folds"
    assert float(found.std.square().mean().sqrt()) == pytest.approx(0.04, rel=1e-5)


def test_two_samples_leave_no_pixel_certain():
    two = draws(0.01, 2)
    two[1][5, 5] = two[0][5, 5]
    found = combine(torch.ones(20, 20), held_of(0.04), two, 3.0)
    assert found.std.min() > 0.1 * found.std.median()
    assert combine(torch.ones(20, 20), None, two, 3.0).std.min() > 0


def test_nothing_known_is_no_map():
    assert combine(torch.ones(20, 20), None, [], 3.0) == Uncertainty(None, "off")
    assert combine(torch.zeros(20, 20), held_of(0.04), [], 3.0).std is None


def test_object_mask_leaves_the_air_out():
    image = torch.full((40, 40), 0.01)
    image[10:30, 10:30] = 1
    inside = object_mask(image)
    assert inside[12:28, 12:28].all() and not inside[:6].any()


@pytest.fixture(scope="module")
def prior():
    return load_prior()


@pytest.mark.parametrize("method", ["calibrated", "folds"])
def test_the_whole_way(method, prior):
    scan = simulate(noise_std=0.02)
    settings = Settings(**QUICK, uncertainty={"method": method})
    result = reconstruct(scan.frame, prior, settings)
    assert (result.status, result.uncertainty_method, result.estimate) == (SamplerStatus.OK, method, "map")
    assert result.std.shape == scan.frame.shape and torch.isfinite(result.std).all() and (result.std > 0).all()
    assert (result.samples is None) == (method == "folds")
    assert dict(result.interval_factors) == dict(
        zip((0.5, 0.8, 0.95), settings.uncertainty.interval_factors, strict=True)
    )
    # right within a factor of two on an object the prior never saw
    error = (result.image - scan.image.abs())[object_mask(result.image)]
    ratio = float(result.std[object_mask(result.image)].square().mean().sqrt() / error.square().mean().sqrt())
    assert 0.5 < ratio < 2
    again = reconstruct(scan.frame, prior, settings)
    assert torch.equal(again.std, result.std)
    scaled = reconstruct(simulate(noise_std=0.02, factor=8).frame, prior, settings)
    assert torch.allclose(scaled.std, 8 * result.std, rtol=1e-4)
    assert scaled.uncertainty["folds"] == pytest.approx(8 * result.uncertainty["folds"], rel=1e-4)


def test_samples_alone_keep_gaussian_factors(prior):
    result = reconstruct(simulate().frame, prior, Settings(**QUICK, uncertainty={"method": "samples"}))
    assert result.uncertainty_method == "samples" and result.interval_factors == GAUSSIAN_FACTORS
    assert torch.allclose(result.std, result.samples.std(0), atol=1e-6)


def test_batches_change_nothing(prior):
    frame = simulate().frame
    one, two = (reconstruct(frame, prior, Settings(**QUICK, batch=batch)) for batch in (1, 2))
    assert torch.allclose(one.std, two.std, rtol=1e-4)


def test_stopping_in_the_folds_keeps_the_image(prior):
    frame = simulate().frame
    calls = []
    stages = []

    def stop():
        calls.append(1)
        return "held-out k-space" in stages

    result = reconstruct(frame, prior, Settings(**QUICK), progress=lambda p: stages.append(p.stage), should_stop=stop)
    assert result.status is SamplerStatus.CANCELLED and result.map is not None
    assert result.std is None and result.uncertainty_method == "off"


def test_folds_need_the_map():
    with pytest.raises(ValueError, match="needs map.steps > 0"):
        Settings(map={"steps": 0})
    assert Settings(map={"steps": 0}, uncertainty={"method": "samples"}).map.steps == 0


def test_spokes_are_left_out_whole(prior):
    traj, shot = radial(21, (32, 32))
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(32, 32, dtype=torch.complex64)
    image[8:24, 10:22] = 1
    blank = KSpaceFrame.noncartesian(torch.zeros(1, traj.shape[1], dtype=torch.complex64), traj, (32, 32))
    from pogmdm_core.measurement.encoding import fourier_operator

    clean = fourier_operator(blank).forward(image[None])
    noise = 0.02 * torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator))
    frame = KSpaceFrame.noncartesian(clean + noise, traj, (32, 32), None, 0.02, shot)
    result = reconstruct(frame, prior, Settings(**QUICK))
    assert result.uncertainty_method == "calibrated" and (result.std > 0).all()


def test_a_missing_sample_makes_no_points_of_lines():
    """Asymmetric echoes and discarded samples: whole lines are left out, and few central ones stay a lower bound."""
    lines = torch.zeros(64, dtype=torch.bool)
    lines[30:35] = True
    lines[::9] = True
    whole = lines[:, None].repeat(1, 48)
    partial = whole.clone()
    partial[:, :6] = False  # nobody measured these columns
    partial[9, 20] = False
    partial[27, 6:12] = False
    kspace = torch.ones(2, 64, 48, dtype=torch.complex64)
    frames = [KSpaceFrame.cartesian(kspace, mask, 0.1) for mask in (whole, partial)]
    assert [sampling_of(frame) for frame in frames] == [Sampling.LINES] * 2
    groups = [split(frame, 3) for frame in frames]
    for one, other in zip(*groups, strict=True):
        assert torch.equal(one.any(1), other.any(1))
        assert not (other & ~partial).any()
    errors = [torch.full((int(group.sum()),), 0.5, dtype=torch.float64) for group in groups[1]]
    assert fit(frames[1], groups[1], errors, 0.1).untested == 1.0
    assert sampling_of(KSpaceFrame.cartesian(kspace, whole.T.repeat(2, 1)[:64, :48], 0.1)) is Sampling.LINES
    points = torch.rand(64, 48, generator=torch.Generator().manual_seed(0)) < 0.3
    assert sampling_of(KSpaceFrame.cartesian(kspace, points, 0.1)) is Sampling.POINTS


@pytest.mark.parametrize("weight", [0.7, None])
def test_the_image_is_told_as_soon_as_it_is_final(prior, weight):
    """Before anything is held out where the prior's weight is given, before the samples where it must be chosen."""
    stages, told = [], []

    def early(result):
        told.append((result, set(stages)))

    settings = Settings(**{**QUICK, "map": {"steps": 30, "prior_weight": weight}})
    result = reconstruct(simulate().frame, prior, settings, progress=lambda p: stages.append(p.stage), early=early)
    ((first, before),) = told
    assert torch.equal(first.image, result.image) and torch.equal(first.phase, result.phase)
    assert first.std is None and first.uncertainty_method == "off" and result.std is not None
    assert (first.prior_weight, first.data_residual) == (result.prior_weight, result.data_residual)
    assert before == {"warm start", "MAP"} | (set() if weight else {"held-out k-space"})
    assert stages[-1] not in before
