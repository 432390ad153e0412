"""The simulated scans that are timed, with white noise and known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gadget.evaluate.data import object_mask
from gadget.evaluate.metrics import Reference
from gadget.phantom.sampling import sampled_lines
from pogmdm_core import KSpaceFrame
from pogmdm_core.measurement import trajectories
from pogmdm_core.measurement.phantom import Phantom

_ACCELERATION = 4.0


@dataclass(frozen=True)
class BenchScan:
    """What to simulate: image matrix `(ny, nx)`, channels, and spokes, or None for lines at an acceleration of 4.

    `noise` is the standard deviation per real and imaginary part of a sample; the image's maximum is 1.
    """

    shape: tuple[int, int]
    n_coils: int
    n_spokes: int | None = None
    noise: float = 0.01

    @property
    def label(self) -> str:
        """For tables."""
        (ny, nx), how = self.shape, "Cartesian 4" if self.n_spokes is None else f"{self.n_spokes} spokes"
        return f"{nx}x{ny}x{self.n_coils} {how}"

    def simulate(self) -> tuple[KSpaceFrame, Reference]:
        """Make the undersampled frame and its truth."""
        ny, nx = self.shape
        phantom = Phantom.head(self.n_coils)
        truth = phantom.truth(self.shape).numpy().astype(np.float32)
        reference = Reference(truth, object_mask(truth), truth)
        if self.n_spokes is not None:
            k, shot = trajectories.radial(self.n_spokes, self.shape, n_read=2 * max(self.shape))
            samples = self._noisy(phantom.kspace(k) * (ny * nx) ** 0.5)
            return KSpaceFrame.noncartesian(samples, k, self.shape, None, self.noise or None, shot), reference
        mask = torch.zeros(self.shape, dtype=torch.bool)
        mask[torch.from_numpy(sampled_lines(ny, _ACCELERATION, seed=0)[0])] = True
        return KSpaceFrame.cartesian(self._noisy(phantom.cartesian(self.shape)), mask, self.noise or None), reference

    def _noisy(self, clean: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(*clean.shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return (clean + self.noise * torch.view_as_complex(noise)).to(torch.complex64)


SCANS = {
    "cartesian320": BenchScan((320, 320), 8),
    "cartesian640": BenchScan((372, 640), 16),
    "radial320": BenchScan((320, 320), 8, 45),
}
