"""Small simulated multi-coil scans with known truth, whitened, Cartesian."""

from dataclasses import dataclass

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.fourier import centred_fft


@dataclass(frozen=True)
class SimulatedScan:
    """A frame and what it was made from: image `(y, x)`, coils `(coil, y, x)`."""

    frame: KSpaceFrame
    image: torch.Tensor
    csm: torch.Tensor


def blobs(shape: tuple[int, int]) -> torch.Tensor:
    """Smooth object with crisp edges and a fine grating, 0 to about 1, real `(y, x)`."""
    y = torch.linspace(-1, 1, shape[0])[:, None]
    x = torch.linspace(-1, 1, shape[1])[None, :]

    def disc(cy, cx, ry, rx):
        return torch.sigmoid(0.6 * min(shape) * (1 - torch.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)))

    row = torch.arange(shape[0])[:, None]
    grating = 0.1 * torch.cos(2 * torch.pi * 0.28 * row) * disc(0.2, -0.3, 0.3, 0.25)
    return grating + 0.6 * disc(0, 0, 0.75, 0.7) + 0.4 * disc(0.2, 0.2, 0.3, 0.2) - 0.4 * disc(-0.3, -0.1, 0.2, 0.3)


def smooth_coils(n_coils: int, shape: tuple[int, int]) -> torch.Tensor:
    """Smooth complex coils around the object with unit root-sum-of-squares."""
    y = torch.linspace(-1, 1, shape[0])[:, None]
    x = torch.linspace(-1, 1, shape[1])[None, :]
    coils = []
    for c in range(n_coils):
        angle = torch.tensor(2 * torch.pi * c / n_coils)
        distance = (y - 1.2 * torch.sin(angle)) ** 2 + (x - 1.2 * torch.cos(angle)) ** 2
        coils.append(torch.polar(torch.exp(-distance / 2.5), angle + 0.6 * x * torch.cos(angle) + 0.4 * y))
    csm = torch.stack(coils)
    return csm / torch.linalg.vector_norm(csm, dim=0)


def line_mask(shape: tuple[int, int], acceleration: int, n_centre: int) -> torch.Tensor:
    """Every `acceleration`-th row plus `n_centre` central rows."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[shape[0] // 2 % acceleration :: acceleration] = True
    first = shape[0] // 2 - n_centre // 2
    mask[first : first + n_centre] = True
    return mask


def simulate(
    shape: tuple[int, int] = (48, 40),
    n_coils: int = 4,
    acceleration: int = 2,
    n_centre: int = 8,
    noise_std: float = 0.005,
    seed: int = 0,
    factor: float = 1.0,
    tell_noise: bool = True,
) -> SimulatedScan:
    """Scan the object; `noise_std` per real/imaginary part; everything times `factor`."""
    image = blobs(shape) * torch.exp(0.3j * torch.linspace(-1, 1, shape[1]))[None, :]
    csm = smooth_coils(n_coils, shape)
    mask = line_mask(shape, acceleration, n_centre)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.view_as_complex(torch.randn(n_coils, *shape, 2, generator=generator))
    kspace = factor * (centred_fft(csm * image) + noise_std * noise)
    known = factor * noise_std if tell_noise and noise_std else None
    return SimulatedScan(KSpaceFrame.cartesian(kspace, mask, known), image, csm)
