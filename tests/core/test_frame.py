import dataclasses

import numpy as np
import pytest
import torch

from pogmdm_core.errors import DataError
from pogmdm_core.frame import KSpaceFrame, Progress, SamplerStatus

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
        (KSPACE, MASK.T, r"E305 mask must be bool of shape \(8, 6\)"),
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
