"""What a posterior sampler is: it advances images from one noise level to the next.

Notation (paper -> here): x -> `x`, sigma_c -> `csm`, zeta_i -> `level`, xi -> fresh noise. All samples of a batch are
advanced together; each draws its noise from a generator of its own, so a sample does not depend on its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.base import Prior
from pogmdm_core.settings import SamplerSettings


@dataclass
class SamplerState:
    """What the loop carries: images `(sample, y, x)` and coils `(sample or 1, coil, y, x)`."""

    x: torch.Tensor
    csm: torch.Tensor


class Diverged(Exception):  # noqa: N818 - a condition, turned into a status by `reconstruct`
    """Sampling left the finite range at a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"diverged at step {step}")


class SampleNoise:
    """Complex Gaussian noise, variance 1 per real and imaginary part, one generator per sample."""

    def __init__(self, seed: int, samples: range, device: torch.device) -> None:
        self._device = device
        self._generators = [
            # distinct for all (seed, sample) with sample < 2^20
            torch.Generator(device=device).manual_seed((seed << 20) + i)
            for i in samples
        ]

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise for every sample of the batch, complex64 `(sample, *shape)`."""
        parts = [torch.randn(*shape, 2, generator=g, device=self._device) for g in self._generators]
        return torch.view_as_complex(torch.stack(parts))


@dataclass(frozen=True)
class Task:
    """What stays the same from step to step.

    Attributes
    ----------
    model
        Data in units where the image is about 1.
    prior, settings
        As in `reconstruct`.
    noise
        Where a sampler takes its random numbers from.
    noise_level
        eta: noise per real/imaginary part, units of the image scale.
    """

    model: EncodingModel
    prior: Prior
    noise: SampleNoise
    noise_level: float
    settings: SamplerSettings


class Sampler(ABC):
    """One way to draw posterior samples; has no state of its own."""

    @abstractmethod
    def step(self, state: SamplerState, task: Task, level: float, next_level: float) -> None:
        """Advance the images of `state` from a noise level to the next, lower one, in place."""

    def finish(self, state: SamplerState, task: Task, level: float) -> torch.Tensor:  # noqa: ARG002 - for subclasses
        """Images `(sample, y, x)` that are samples, from those of the last level: as they are, unless overridden."""
        return state.x

    def gentler(self, settings: SamplerSettings, end_level: float) -> SamplerSettings:
        """Settings under which it diverges less easily: half the level it starts from, if not said otherwise."""
        lowest = min(settings.start_level, 2 * end_level)
        return settings.model_copy(update={"start_level": max(settings.start_level / 2, lowest)})
