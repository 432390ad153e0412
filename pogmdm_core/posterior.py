"""Running mean and variance over posterior samples."""

from __future__ import annotations

import torch


class RunningMoments:
    """Mean and variance of images that arrive one at a time (Welford 1962), in float64."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.count = 0
        self._mean = torch.zeros(shape, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(shape, dtype=torch.float64)

    def add(self, image: torch.Tensor) -> None:
        """Take one real image `(y, x)` into account."""
        value = image.detach().to("cpu", torch.float64)
        self.count += 1
        deviation = value - self._mean
        self._mean += deviation / self.count
        self._sum_of_squares += deviation * (value - self._mean)

    @property
    def mean(self) -> torch.Tensor:
        """Mean, float32 `(y, x)`."""
        return self._mean.float()

    @property
    def std(self) -> torch.Tensor | None:
        """Standard deviation (divisor n - 1), float32; None with fewer than two images."""
        if self.count < 2:
            return None
        return (self._sum_of_squares / (self.count - 1)).sqrt().float()
