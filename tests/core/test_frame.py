import dataclasses

import numpy as np
import pytest
import torch

from pogmdm_core.errors import DataError
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.trajectories import radial
from pogmdm_core.run import Progress, SamplerStatus

KSPACE = torch.ones(3, 8, 6, dtype=torch.complex64)
MASK = torch.zeros(8, 6, dtype=torch.bool)
MASK[::2] = True


def test_a_frame():
    frame = KSpaceFrame.cartesian(KSPACE, MASK, 0.5)
    assert (frame.n_coils, frame.shape, frame.noise_std, frame.acceleration) == (3, (8, 6), 0.5, 2.0)
    assert torch.equal(frame.kspace[:, MASK], KSPACE[:, MASK])
    assert (frame.kspace[:, ~MASK] == 0).all()
    assert frame.to("cpu").shape == frame.shape


def test_values_outside_the_mask_do_not_matter():
    kspace = torch.where(MASK, KSPACE, torch.tensor(float("nan"), dtype=torch.complex64))
    frame = KSpaceFrame.cartesian(kspace, MASK)
    assert torch.isfinite(torch.view_as_real(frame.kspace)).all()
    assert torch.isnan(kspace.real).any()  # the caller's array is left alone


def test_numpy_and_double_precision():
    frame = KSpaceFrame.cartesian(KSPACE.to(torch.complex128).numpy(), MASK.numpy())
    assert frame.kspace.dtype == torch.complex64
    assert isinstance(frame.mask, torch.Tensor)
    assert np.allclose(frame.kspace.numpy()[:, MASK.numpy()], 1)


@pytest.mark.parametrize(
    ("kspace", "mask", "match"),
    [
        (KSPACE[0], MASK, r"E305 kspace must be complex .*\(8, 6\)"),
        (KSPACE.real, MASK, "E305 kspace must be complex .*float32"),
        (KSPACE, MASK.float(), "E305 mask must be bool .*float32"),
        (KSPACE, MASK.T, r"E305 mask must be bool \(ky, kx\) = \(8, 6\) for kspace .*, 8, 6\), got .*\(6, 8\)"),
        (KSPACE, MASK[None], "E305 mask"),
        (KSPACE[:0], MASK, "E305 kspace is empty"),
        (KSPACE[:, :0], MASK[:0], "E305 kspace is empty"),
        (KSPACE, torch.zeros_like(MASK), "E331 no k-space sample"),
        (KSPACE * float("nan"), MASK, "E330 k-space holds NaN"),
        (KSPACE * float("inf"), MASK, "E330 k-space holds NaN"),
    ],
)
def test_bad_arrays(kspace, mask, match):
    with pytest.raises(DataError, match=match):
        KSpaceFrame.cartesian(kspace, mask)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise(noise_std):
    with pytest.raises(DataError, match="E332 noise_std must be a positive number"):
        KSpaceFrame.cartesian(KSPACE, MASK, noise_std)


def test_samples_beyond_single_precision_are_refused():
    """1e300 is finite in double precision and infinite in a frame."""
    with pytest.raises(DataError, match="E330"):
        KSpaceFrame.cartesian(KSPACE.to(torch.complex128) * 1e300, MASK)


def test_frames_are_frozen():
    frame = KSpaceFrame.cartesian(KSPACE, MASK)
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.noise_std = 1.0


def test_words():
    assert str(Progress("MAP", 3, 10)) == "MAP 3/10"
    assert SamplerStatus("ok") is SamplerStatus.OK and SamplerStatus.DIVERGED == "diverged"


SAMPLES = torch.ones(3, 40, dtype=torch.complex64)
TRAJ = radial(4, (8, 6), n_read=10).k


def test_a_noncartesian_frame():
    frame = KSpaceFrame.noncartesian(SAMPLES, TRAJ.float(), (8, 6), torch.ones(40), 0.5, torch.arange(40) // 10)
    assert (frame.n_coils, frame.shape, frame.noise_std, frame.is_cartesian, frame.mask) == (
        3,
        (8, 6),
        0.5,
        False,
        None,
    )
    assert frame.trajectory.dtype == torch.float64 and frame.shot.tolist()[::10] == [0, 1, 2, 3]
    assert frame.to("cpu").trajectory is not None
    cartesian = KSpaceFrame.cartesian(KSPACE, MASK)
    assert cartesian.is_cartesian
    assert cartesian.trajectory is None and cartesian.density is None and cartesian.shot is None
    with pytest.raises(DataError, match="E305 a Cartesian frame"):
        _ = cartesian.positions


def test_acceleration_off_the_grid_counts_cells():
    full = radial(60, (32, 32)).k
    assert KSpaceFrame.noncartesian(torch.ones(1, full.shape[1]).cfloat(), full, (32, 32)).acceleration < 1.3
    few = radial(8, (32, 32)).k
    assert 4 < KSpaceFrame.noncartesian(torch.ones(1, few.shape[1]).cfloat(), few, (32, 32)).acceleration < 6
    twice = torch.cat([few, few], dim=1)
    once, again = (
        KSpaceFrame.noncartesian(torch.ones(1, k.shape[1]).cfloat(), k, (32, 32)).acceleration for k in (few, twice)
    )
    assert once == again


def test_subsets():
    frame = KSpaceFrame.noncartesian(
        SAMPLES * torch.arange(40), TRAJ, (8, 6), torch.arange(1.0, 41), 0.5, torch.arange(40) // 10
    )
    part = frame.subset(frame.shot != 1)
    assert part.kspace.shape == (3, 30) and part.kspace[0, 10] == 20
    assert part.trajectory.shape == (2, 30) and part.density[10] == 21 and part.shot[10] == 2
    assert (part.shape, part.noise_std) == ((8, 6), 0.5)
    lines = torch.zeros_like(MASK)
    lines[:4] = True
    cartesian = KSpaceFrame.cartesian(KSPACE, MASK, 0.5).subset(lines)
    assert torch.equal(cartesian.mask, MASK & lines) and (cartesian.kspace[:, 4:] == 0).all()
    with pytest.raises(DataError, match="E331"):
        frame.subset(torch.zeros(40, dtype=torch.bool))
    for bad in (torch.ones(39, dtype=torch.bool), torch.ones(40), lines):
        with pytest.raises(DataError, match="E305 kept"):
            frame.subset(bad)


def changed(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("samples", SAMPLES[0], r"E305 samples must be complex .*\(40,\)"),
        ("samples", SAMPLES.real, "E305 samples must be complex"),
        ("samples", SAMPLES[:0], "E305 0 channels"),
        ("traj", TRAJ.T, r"E305 trajectory must be real \(2, 40\)"),
        ("traj", TRAJ.long(), "E305 trajectory must be real"),
        ("traj", changed(TRAJ, float("nan")), "E323 the trajectory holds NaN"),
        ("traj", changed(TRAJ, float("inf")), "E323 the trajectory holds NaN"),
        ("traj", 1.01 * TRAJ, r"E323 the trajectory reaches \|kx\| = 3.03 .* a matrix of 6 holds 3"),
        ("traj", TRAJ.flip(0), r"E323 the trajectory reaches \|kx\| = 4"),
        ("samples", changed(SAMPLES, float("nan")), "E330"),
        ("density", torch.ones(39), "E305 density must be real"),
        ("density", -torch.ones(40), "E305 density weights"),
        ("density", torch.zeros(40), "E305 density weights"),
        ("density", changed(torch.ones(40), float("nan")), "E305 density weights"),
        ("shot", torch.ones(40), "E305 shot must be integers"),
        ("shot", torch.ones(39).long(), "E305 shot must be integers"),
        ("noise_std", 0.0, "E332"),
    ],
)
def test_bad_noncartesian_parts(part, value, match):
    with pytest.raises(DataError, match=match):
        KSpaceFrame.noncartesian(**{"samples": SAMPLES, "traj": TRAJ, "shape": (8, 6), part: value})


def test_no_samples_at_all():
    with pytest.raises(DataError, match="E331"):
        KSpaceFrame.noncartesian(SAMPLES[:, :0], TRAJ[:, :0], (8, 6))
