import dataclasses
import math
import sys

import pytest
import torch
from helpers.simulated_scan import simulate

from pogmdm_core import (
    ComputeError,
    ConfigError,
    KSpaceFrame,
    SamplerStatus,
    Settings,
    load_prior,
    reconstruct,
    zero_filled,
)
from pogmdm_core.errors import HeaderError
from pogmdm_core.estimate.joint_start import nlinv
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.prior.weights import shipped_weights
from pogmdm_core.reconstruction import image_scale
from pogmdm_core.uncertainty.judged_map import judged_map

IMAGES = ("image", "std", "mean", "map", "phase", "csm", "samples")
QUICK = {"n_samples": 3, "n_steps": 4, "map": {"steps": 20}, "device": "cpu", "uncertainty": {"method": "samples"}}


def quick(**values):
    return Settings(**{**QUICK, **values})


@pytest.fixture(scope="module")
def prior():
    return load_prior()


@pytest.fixture(scope="module")
def scan():
    return simulate()


@pytest.fixture(scope="module")
def result(scan, prior):
    return reconstruct(scan.frame, prior, quick())


def assert_finite(result):
    for name in IMAGES:
        value = getattr(result, name)
        if value is not None:
            assert torch.isfinite(torch.view_as_real(value) if value.is_complex() else value).all(), name
    for name in ("noise_std", "noise_level", "data_residual", "scale"):
        assert math.isfinite(getattr(result, name)), name


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_a_complete_result(result, scan):
    assert_finite(result)
    shape = (48, 40)
    assert (result.status, result.detail, result.estimate) == (SamplerStatus.OK, "", "map")
    for name in ("image", "std", "mean", "map", "phase"):
        value = getattr(result, name)
        assert value.shape == shape and value.dtype == torch.float32 and value.device.type == "cpu", name
    assert result.samples.shape == (3, *shape) and result.csm.shape == (4, *shape)
    assert result.csm.dtype == torch.complex64
    assert torch.equal(result.image, result.map)
    assert torch.allclose(result.samples.mean(0), result.mean, atol=1e-6)
    assert torch.allclose(result.samples.std(0), result.std, atol=1e-6)
    assert torch.allclose(result.csm.abs().square().sum(0).sqrt(), torch.ones(()), atol=1e-4)
    assert (result.n_samples, result.n_steps) == (3, 4)
    assert result.noise_std == scan.frame.noise_std
    assert set(result.seconds) == {"setting up", "warm start", "MAP", "samples"}
    assert result.warnings == ()


def test_it_reconstructs(result, scan):
    truth = scan.image.abs()
    error = relative(result.image, truth)
    assert error < 0.06, error
    assert relative(zero_filled(scan.frame), truth) > 1.5 * error
    assert relative(result.mean, truth) < 0.08
    assert 0.3 < result.data_residual < 3
    # the complex image times the coils explains the data: phase and coils belong together
    image = torch.polar(result.image, result.phase)
    assert relative(result.csm * image, scan.csm * scan.image) < 0.08


def test_the_truth_is_within_the_spread(result, scan):
    inside = scan.image.abs() > 0.1
    away = ((result.mean - scan.image.abs()).abs() / result.std)[inside]
    # three raw samples: two to four times too narrow on average
    assert 0.2 < float(away.median()) < 5
    assert float((away < 10).float().mean()) > 0.8


def test_the_shipped_defaults_are_coherent(scan, prior):
    """Defaults except for the number of samples; also without a settings object."""
    outcome = reconstruct(scan.frame, prior, Settings(n_samples=1, device="cpu"))
    assert outcome.status is SamplerStatus.OK and outcome.n_steps == Settings().sampler.n_steps


@pytest.mark.parametrize("factor", [7.0, 1e-12, 1e12])
@pytest.mark.fault("F44")
def test_images_scale_with_the_data(factor, scan, result, prior):
    scaled = reconstruct(simulate(factor=factor).frame, prior, quick())
    assert_finite(scaled)
    assert scaled.status is SamplerStatus.OK
    for name in ("image", "mean", "std", "samples"):
        # rounding differs, and how many conjugate gradient steps the joint start makes hangs on it; the spread of
        # three samples shows it most
        limit = 1e-2 if name == "std" else 1e-3
        assert relative(getattr(scaled, name) / factor, getattr(result, name)) < limit, name
    assert scaled.scale == pytest.approx(factor * result.scale, rel=1e-4)
    assert scaled.noise_level == pytest.approx(factor * result.noise_level, rel=1e-3)
    assert scaled.data_residual == pytest.approx(result.data_residual, rel=1e-2)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.fault("F44")
def test_extreme_scales_without_a_noise_scan(factor, prior):
    plain = reconstruct(simulate(tell_noise=False).frame, prior, quick(n_samples=0))
    scaled = reconstruct(simulate(tell_noise=False, factor=factor).frame, prior, quick(n_samples=0))
    assert relative(scaled.image / factor, plain.image) < 1e-3
    assert scaled.noise_std == pytest.approx(factor * plain.noise_std, rel=1e-3)


@pytest.mark.fault("F47")
def test_same_seed_same_bits(scan, result, prior):
    again = reconstruct(scan.frame, prior, quick())
    for name in IMAGES:
        assert torch.equal(getattr(again, name), getattr(result, name)), name
    other = reconstruct(scan.frame, prior, quick(seed=1))
    assert torch.equal(other.map, result.map)
    assert not torch.equal(other.mean, result.mean)


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.fault("F47")
def test_batches_do_not_matter(batch, scan, result, prior):
    split = reconstruct(scan.frame, prior, quick(batch=batch))
    assert relative(split.mean, result.mean) < 1e-5
    assert relative(split.samples, result.samples) < 1e-4
    assert split.n_samples == 3


def test_fewer_samples_are_the_first_ones(scan, result, prior):
    two = reconstruct(scan.frame, prior, quick(n_samples=2))
    assert relative(two.samples, result.samples[:2]) < 1e-4


@pytest.mark.fault("F46")
def test_one_sample_has_no_std(scan, prior):
    one = reconstruct(scan.frame, prior, quick(n_samples=1))
    assert one.std is None and one.n_samples == 1
    assert torch.equal(one.mean, one.samples[0])
    assert one.status is SamplerStatus.OK


@pytest.mark.parametrize("values", [{"n_samples": 0}, {"uncertainty": {"method": "off"}}])
def test_without_samples(values, scan, result, prior):
    outcome = reconstruct(scan.frame, prior, quick(**values))
    assert (outcome.std, outcome.mean, outcome.samples) == (None, None, None)
    assert (outcome.n_samples, outcome.n_steps, outcome.estimate) == (0, 0, "map")
    assert torch.equal(outcome.image, result.map)


def test_the_map_is_the_estimate_whatever_is_sampled(scan, prior, result):
    four = reconstruct(scan.frame, prior, quick(n_samples=4))
    assert four.estimate == "map" and torch.equal(four.image, result.map)
    assert not torch.equal(four.image, four.mean)


def test_without_map(scan, prior):
    mean = reconstruct(scan.frame, prior, quick(map={"steps": 0}))
    assert mean.map is None and mean.estimate == "mean" and torch.equal(mean.image, mean.mean)
    start = reconstruct(scan.frame, prior, quick(map={"steps": 0}, n_samples=0))
    assert start.estimate == "warm_start" and start.status is SamplerStatus.OK
    assert_finite(start)


@pytest.mark.parametrize("noise_std", [None, 0.01])
@pytest.mark.fault("F43")
def test_zero_data(noise_std, prior):
    mask = simulate().frame.mask
    frame = KSpaceFrame.cartesian(torch.zeros(4, 48, 40, dtype=torch.complex64), mask, noise_std)
    outcome = reconstruct(frame, prior, quick())
    assert outcome.status is SamplerStatus.NO_SIGNAL and "NO_SIGNAL" in outcome.warnings
    assert_finite(outcome)
    for name in ("image", "mean", "map"):
        assert torch.equal(getattr(outcome, name), torch.zeros(48, 40)), name
    # a map of zeros would say that nothing is uncertain
    assert (outcome.std, outcome.uncertainty_method) == (None, "off")
    assert torch.allclose(outcome.csm.abs().square().sum(0), torch.ones(()))


@pytest.mark.parametrize("after", [0, 5, 23])
def test_cancelling(after, scan, prior):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > after

    outcome = reconstruct(scan.frame, prior, quick(map={"steps": 20, "tolerance": 0}), should_stop=stop)
    assert outcome.status is SamplerStatus.CANCELLED and "cancelled" in outcome.detail
    assert len(asked) == after + 1  # once is enough
    assert_finite(outcome)
    assert outcome.samples is None and outcome.n_samples == 0


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_cancelling_between_batches_keeps_finished_samples(scan, prior, one_thread):
    seen = []
    outcome = reconstruct(
        scan.frame,
        prior,
        quick(batch=1),
        progress=lambda p: seen.append(p) if p.stage == "samples" else None,
        should_stop=lambda: len(seen) == 6,
    )
    assert outcome.status is SamplerStatus.CANCELLED
    assert outcome.n_samples == 1 and outcome.std is None
    assert_finite(outcome)


class BrokenPrior(ProductPrior):
    """Returns NaN from a certain call on."""

    def __init__(self, good, broken_from=0):
        super().__init__(good.bank, good.experts)
        self.calls, self.broken_from = 0, broken_from

    def score(self, x, level):
        self.calls += 1
        out = super().score(x, level)
        return out * float("nan") if self.calls > self.broken_from else out


@pytest.mark.parametrize(
    ("broken_from", "map_steps", "estimate"), [(0, 20, "warm_start"), (2, 2, "map"), (0, 0, "warm_start")]
)
@pytest.mark.fault("F45")
def test_divergence_ends_in_the_status(broken_from, map_steps, estimate, scan, prior):
    settings = quick(map={"steps": map_steps, "tolerance": 0})
    outcome = reconstruct(scan.frame, BrokenPrior(prior, broken_from), settings)
    assert outcome.status is SamplerStatus.DIVERGED and "diverged" in outcome.detail
    assert outcome.estimate == estimate
    assert_finite(outcome)
    assert (outcome.std, outcome.mean, outcome.n_samples) == (None, None, 0)


class ShortlyBrokenPrior(BrokenPrior):
    """Returns NaN in one call only."""

    def score(self, x, level):
        return super().score(x, level) if self.calls <= self.broken_from else ProductPrior.score(self, x, level)


@pytest.mark.fault("F45")
def test_a_sample_that_diverges_once_is_drawn_again(scan, prior, one_thread):
    """A sample takes 5 scores, this is the third of the second one; the others come out as they would have."""
    settings = quick(map={"steps": 2, "tolerance": 0}, batch=1)
    expected = reconstruct(scan.frame, prior, settings)
    broken = ShortlyBrokenPrior(prior, 2 + 5 + 2)
    outcome = reconstruct(scan.frame, broken, settings)
    assert broken.calls == broken.broken_from + 1  # it did break
    assert outcome.status is SamplerStatus.OK
    assert outcome.n_samples == 3
    assert_finite(outcome)
    same = [torch.equal(a, b) for a, b in zip(outcome.samples, expected.samples, strict=True)]
    assert same == [True, False, True]
    assert "step 2 of 4" in reconstruct(scan.frame, BrokenPrior(prior, 2 + 5 + 2), settings).detail


def test_divergence_in_a_later_batch_keeps_earlier_samples(scan, prior, one_thread):
    settings = quick(map={"steps": 2, "tolerance": 0}, batch=1)
    outcome = reconstruct(scan.frame, BrokenPrior(prior, 2 + 5 + 2), settings)
    assert outcome.status is SamplerStatus.DIVERGED and outcome.n_samples == 1
    assert_finite(outcome)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_broken_warm_start_is_no_crash(bad, scan, prior, monkeypatch):
    """Whatever the first image holds, the caller gets finite images and a status."""
    module = sys.modules["pogmdm_core.estimate.joint_start"]

    def broken(*args, **kwargs):
        start = nlinv(*args, **kwargs)
        image = start.image.clone()
        image[3, 4] = bad
        return dataclasses.replace(start, image=image)

    monkeypatch.setattr(module, "nlinv", broken)
    outcome = reconstruct(scan.frame, prior, quick())
    assert outcome.status is SamplerStatus.DIVERGED
    assert_finite(outcome)


def test_progress_is_monotone_and_printable(scan, prior):
    seen = []
    reconstruct(scan.frame, prior, quick(batch=2), progress=seen.append)
    stages = list(dict.fromkeys(p.stage for p in seen))
    assert stages == ["warm start", "MAP", "samples"]
    for stage in stages:
        steps = [p for p in seen if p.stage == stage]
        done = [p.done for p in steps]
        assert done == sorted(set(done)) and len({p.total for p in steps}) == 1
        assert done[-1] <= steps[0].total
    assert seen[-1].done == seen[-1].total == 8  # two batches of four levels
    assert str(seen[0]) == "warm start 1/16"


def test_print_will_do_for_progress(scan, prior, capsys):
    reconstruct(scan.frame, prior, quick(n_samples=0, map={"steps": 2}), progress=print)
    assert "MAP 2/2" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda:9", "cuda:64"])
@pytest.mark.fault("F50")
def test_a_device_that_is_not_there(device, scan, prior):
    with pytest.raises(ComputeError, match=f"E501 device '{device}' is not there"):
        reconstruct(scan.frame, prior, quick(device=device))


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (7, 40)])
@pytest.mark.fault("F48")
def test_an_image_that_filters_would_wrap_around_is_refused(shape, prior):
    frame = KSpaceFrame.cartesian(torch.ones(2, *shape, dtype=torch.complex64), torch.ones(shape, dtype=torch.bool))
    with pytest.raises(HeaderError, match=f"E216 the image matrix is {shape[1]}x{shape[0]}"):
        reconstruct(frame, prior, quick())


@pytest.mark.parametrize("shape", [(8, 8), (17, 33)])
@pytest.mark.parametrize("name", sorted(shipped_weights()))
@pytest.mark.fault("F48")
def test_the_smallest_images_with_all_priors(name, shape):
    noise = torch.randn(2, *shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    frame = KSpaceFrame.cartesian(noise, torch.ones(shape, dtype=torch.bool))
    outcome = reconstruct(frame, load_prior(name), quick())
    assert outcome.status is SamplerStatus.OK
    assert_finite(outcome)
    assert outcome.image.shape == shape


@pytest.mark.parametrize(("shape", "n_coils"), [((48, 40), 1), ((31, 37), 3), ((33, 64), 2)])
@pytest.mark.fault("F39", "F48")
def test_one_coil_and_odd_sizes_without_a_noise_scan(shape, n_coils, prior):
    made = simulate(shape, n_coils, 1 if n_coils == 1 else 2, tell_noise=False)
    outcome = reconstruct(made.frame, prior, quick(n_samples=2))
    assert outcome.status is SamplerStatus.OK
    assert_finite(outcome)
    assert outcome.image.shape == shape and outcome.noise_std > 0
    assert relative(outcome.image, made.image.abs()) < 0.15


def test_a_joint_start_may_be_given(scan, prior, result, monkeypatch):
    begun = reconstruct(scan.frame, prior, quick().joint_start_only())
    assert (begun.map, begun.samples, begun.std) == (None, None, None)
    module = sys.modules["pogmdm_core.estimate.joint_start"]
    monkeypatch.setattr(module, "nlinv", lambda *_, **__: pytest.fail("made again"))
    outcome = reconstruct(scan.frame, prior, quick(), start=begun.start)
    for name in IMAGES:
        assert torch.equal(getattr(outcome, name), getattr(result, name)), name


@pytest.mark.parametrize("init", ["zero_filled", "acs"])
def test_other_warm_starts(init, scan, prior):
    outcome = reconstruct(scan.frame, prior, quick(coils={"init": init}, n_samples=2))
    assert_finite(outcome)
    assert outcome.status is SamplerStatus.OK
    assert relative(outcome.image, scan.image.abs()) < 0.5


@pytest.mark.parametrize(
    "method", [{}, {"method": "paper", "likelihood": "annealed"}, {"method": "paper", "likelihood": "unit"}]
)
@pytest.mark.parametrize("boundary", ["dirichlet", "neumann"])
def test_coil_updates_in_the_loop_are_stable(method, boundary, scan, result, prior):
    settings = quick(coils={"update_every": 1, "boundary": boundary}, n_samples=2, n_steps=10, **method)
    outcome = reconstruct(scan.frame, prior, settings)
    assert outcome.status is SamplerStatus.OK
    assert_finite(outcome)
    assert relative(outcome.mean, scan.image.abs()) < 0.25


def test_noise_free_data(prior):
    made = simulate(noise_std=0.0)
    outcome = reconstruct(made.frame, prior, quick(n_samples=2))
    assert outcome.status is SamplerStatus.OK
    assert_finite(outcome)
    assert relative(outcome.image, made.image.abs()) < 0.06


def test_the_inputs_survive(scan, prior):
    kept = scan.frame.kspace.clone()
    before = {key: value.clone() for key, value in prior.state_dict().items()}
    state = torch.get_rng_state()
    reconstruct(scan.frame, prior, quick())
    assert torch.equal(scan.frame.kspace, kept)
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is nobody's business


def test_scale_is_the_brightest_intensity(scan):
    assert image_scale(scan.frame) == pytest.approx(float(zero_filled(scan.frame).max()), rel=0.05)
    loud = dataclasses.replace(scan.frame, kspace=3 * scan.frame.kspace)
    assert image_scale(loud) == pytest.approx(3 * image_scale(scan.frame), rel=1e-5)


def test_starting_above_the_trained_noise_levels_is_refused(scan, prior):
    with pytest.raises(ConfigError, match="E127.*start_level 3"):
        reconstruct(scan.frame, prior, quick(start_level=3.0))
    assert reconstruct(scan.frame, prior, quick(start_level=3.0, n_samples=0)).status is SamplerStatus.OK


@pytest.mark.parametrize(("quieter", "told"), [(1.0, False), (2.0, True)])
def test_held_out_samples_that_are_quieter_than_the_noise_scan_are_told(quieter, told, scan, prior, monkeypatch):
    module = sys.modules["pogmdm_core.reconstruction"]

    def judged(*args):
        found = judged_map(*args)
        return dataclasses.replace(
            found, held=dataclasses.replace(found.held, noise_std=found.held.noise_std / quieter)
        )

    monkeypatch.setattr(module, "judged_map", judged)
    outcome = reconstruct(scan.frame, prior, quick(uncertainty={"method": "folds"}))
    assert ("NOISE_TOO_LOUD" in outcome.warnings) == told
