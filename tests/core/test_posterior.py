import torch

from pogmdm_core.posterior import RunningMoments


def test_welford_equals_two_passes():
    images = 1000 + torch.randn(9, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = RunningMoments((5, 6))
    for image in images:
        moments.add(image)
    assert moments.count == 9
    assert moments.mean.dtype == torch.float32
    assert torch.allclose(moments.mean, images.mean(0).float())
    assert torch.allclose(moments.std, images.std(0).float(), rtol=1e-6)


def test_no_std_from_fewer_than_two():
    moments = RunningMoments((2, 3))
    assert moments.std is None
    moments.add(torch.ones(2, 3))
    assert moments.std is None
    assert torch.equal(moments.mean, torch.ones(2, 3))
    moments.add(torch.ones(2, 3))
    assert torch.equal(moments.std, torch.zeros(2, 3))


def test_small_spread_on_a_large_offset_survives():
    """float32 would lose it: 1e7 +- 1."""
    moments = RunningMoments((1, 1))
    for value in (1e7 - 1, 1e7, 1e7 + 1):
        moments.add(torch.tensor([[value]], dtype=torch.float64))
    assert abs(float(moments.std) - 1) < 1e-6
