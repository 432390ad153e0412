import math

import pytest
import torch

from pogmdm_core.errors import ConfigError
from pogmdm_core.measurement.trajectories import gaussian2d, golden_angle, radial, spiral


def angles(k):
    return torch.remainder(torch.atan2(k[1], k[0]), math.pi)


def test_radial_spokes_are_lines_through_the_centre():
    k, shot = radial(7, (30, 30), n_read=60)
    assert k.shape == (2, 420) and shot.tolist() == [s for s in range(7) for _ in range(60)]
    radius = torch.hypot(*k)
    assert float(radius.max()) == 15 and int((radius == 0).sum()) == 7
    for spoke in range(7):
        on_spoke = angles(k[:, (shot == spoke) & (radius > 0)])
        away = (on_spoke - spoke * math.pi / 7 + math.pi / 2) % math.pi - math.pi / 2
        assert away.abs().max() < 1e-12
    assert torch.allclose(radius[shot == 3].diff().abs(), torch.tensor(0.5).double())


def test_radial_is_an_ellipse_on_oblong_matrices_and_twice_oversampled_by_default():
    k, shot = radial(90, (20, 40))
    assert k.shape[1] == 90 * 80
    assert float(k[0].abs().max()) == 20 and float(k[1].abs().max()) == 10
    assert float(torch.hypot(k[0] / 40, k[1] / 20).max()) < 0.5 + 1e-12


def test_golden_angle_series_go_on():
    whole, _ = radial(8, (16, 16), golden=True)
    later, _ = radial(3, (16, 16), golden=True, first=5)
    assert torch.allclose(whole.reshape(2, 8, -1)[:, 5:], later.reshape(2, 3, -1))
    assert math.degrees(golden_angle()) == pytest.approx(111.246, abs=1e-3)
    assert math.degrees(golden_angle(7)) == pytest.approx(23.628, abs=1e-3)
    assert float(angles(whole.reshape(2, 8, -1)[:, 1, -1])) == pytest.approx(math.radians(111.246), abs=1e-4)


def test_spirals_start_at_the_centre_and_end_at_the_edge():
    k, shot = spiral(6, (32, 48), n_turns=4, n_read=1000)
    assert k.shape == (2, 6000) and int(shot.max()) == 5
    radius = torch.hypot(k[0] / 48, k[1] / 32).reshape(6, 1000)
    assert torch.allclose(radius, (torch.arange(1000) / 2000).double().expand(6, 1000))
    turns = torch.atan2(k[1] / 32, k[0] / 48).reshape(6, 1000)[:, 1:]
    assert int((turns[0].diff().abs() > math.pi).sum()) == 4  # the angle wraps once a turn
    start = torch.remainder(turns[:, 0] - turns[0, 0], 2 * math.pi)
    assert torch.allclose(start, torch.arange(6).double() * math.pi / 3, atol=1e-9)
    dense = torch.hypot(*spiral(1, (32, 32), 4, 1000, power=2).k)
    assert int((dense < 4).sum()) > int((radius[0] < 0.125).sum()) * 1.9


def test_gaussian_masks_have_the_acceleration_and_a_dense_centre():
    mask = gaussian2d((64, 80), 8, torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool and int(mask.sum()) == 640
    assert float(mask[28:37, 36:45].float().mean()) > 0.9 > 0.1 > float(mask[:16].float().mean())
    assert torch.equal(mask, gaussian2d((64, 80), 8, torch.Generator().manual_seed(0)))


def test_impossible_patterns_are_refused():
    for make in (
        lambda: radial(0, (8, 8)),
        lambda: radial(3, (8, 0)),
        lambda: spiral(3, (8, 8), n_turns=-1),
        lambda: spiral(3, (8, 8), n_turns=math.nan),
        lambda: gaussian2d((8, 8), 0.5, torch.Generator()),
        lambda: gaussian2d((8, 8), 1e9, torch.Generator()),
    ):
        with pytest.raises(ConfigError, match="E110"):
            make()
