import pytest
import torch

from pogmdm_core.estimate.samplers.base import Diverged
from pogmdm_core.estimate.samplers.draw import draw_with_restarts
from pogmdm_core.estimate.samplers.loop import make_sampler
from pogmdm_core.settings import SamplerSettings


def redraw(draw, numbers, settings, end_level):
    """With the sampler's own way to be gentler."""
    sampler = make_sampler(settings.method)
    return draw_with_restarts(draw, numbers, settings, lambda s: sampler.gentler(s, end_level))


class Drawing:
    """Sample 2 diverges until its step is at most `stable`."""

    def __init__(self, stable, name):
        self.stable, self.name, self.calls = stable, name, []

    def __call__(self, numbers, settings):
        step = getattr(settings, self.name)
        self.calls.append((list(numbers), step))
        if 2 in numbers and step > self.stable:
            raise Diverged(len(self.calls))
        return [torch.full((2, 2), float(n)) for n in numbers]


@pytest.mark.fault("F45")
@pytest.mark.parametrize(
    ("method", "name", "first"), [("langevin", "langevin_step", 0.4), ("renoise", "start_level", 0.4)]
)
def test_only_the_sample_that_diverges_is_drawn_again_with_half_the_step(method, name, first):
    drawing = Drawing(0.1, name)
    settings = SamplerSettings(method=method, **{name: first})
    found = redraw(drawing, range(0, 4), settings, 0.02)
    assert [float(x[0, 0]) for x in found] == [0, 1, 2, 3]
    assert drawing.calls == [
        ([0, 1, 2, 3], 0.4), ([0], 0.4), ([1], 0.4), ([2], 0.4), ([2], 0.2), ([2], 0.1), ([3], 0.4)
    ]  # fmt: skip


@pytest.mark.fault("F45")
def test_after_two_restarts_the_first_divergence_is_told():
    drawing = Drawing(0.0, "langevin_step")
    with pytest.raises(Diverged) as caught:
        redraw(drawing, range(2, 3), SamplerSettings(method="langevin", langevin_step=0.4), 0.02)
    assert caught.value.step == 1
    assert [step for _, step in drawing.calls] == [0.4, 0.2, 0.1]


def test_the_start_stays_above_the_end():
    drawing = Drawing(0.0, "start_level")
    with pytest.raises(Diverged):
        redraw(drawing, range(2, 3), SamplerSettings(start_level=0.4), 0.15)
    assert [step for _, step in drawing.calls] == [0.4, 0.3, 0.3]


def test_stopping_stays_stopping():
    assert redraw(lambda *_: None, range(3), SamplerSettings(), 0.1) is None
