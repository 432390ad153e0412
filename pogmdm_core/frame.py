"""What goes into a reconstruction and what comes out: frozen values, shapes stated once.

Axis order everywhere: image ``(y, x)``, coil images ``(coil, y, x)``, Cartesian k-space
``(coil, ky, kx)`` with DC at index ``(ny // 2, nx // 2)``, posterior samples lead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch

from pogmdm_core import checks

GAUSSIAN_FACTORS: Mapping[float, float] = {0.5: 0.6745, 0.8: 1.2816, 0.95: 1.9600}


@dataclass(frozen=True)
class KSpaceFrame:
    """Undersampled multi-coil k-space of one 2-D image. Build it with `cartesian`.

    Attributes
    ----------
    kspace
        Measured samples, complex64, `(coil, ky, kx)`; zero where not measured. Should be
        whitened: equal, uncorrelated noise in all coils.
    mask
        True where measured, bool, `(ky, kx)`.
    shape
        Image matrix `(ny, nx)`.
    noise_std
        Standard deviation of the noise in each real and imaginary part of a k-space sample
        (unitary Fourier transform), same units as `kspace`; None when not known (it is then
        estimated from the outermost measured samples).
    """

    kspace: torch.Tensor
    mask: torch.Tensor
    shape: tuple[int, int]
    noise_std: float | None = None

    @classmethod
    def cartesian(cls, kspace: torch.Tensor, mask: torch.Tensor, noise_std: float | None = None) -> KSpaceFrame:
        """Make a frame from samples on the Cartesian grid.

        Parameters
        ----------
        kspace
            `(coil, ky, kx)` complex, centred, unitary scaling; values outside `mask` are ignored.
        mask
            `(ky, kx)` bool.
        noise_std
            See the class.

        Raises
        ------
        DataError
            E305 wrong shapes, E330 non-finite samples, E331 nothing measured.
        """
        kspace, mask = torch.as_tensor(kspace), torch.as_tensor(mask)
        if kspace.is_complex():
            kspace = kspace.to(torch.complex64)
        checks.cartesian_frame(kspace, mask, noise_std)
        kspace = torch.where(mask, kspace, torch.zeros((), dtype=kspace.dtype, device=kspace.device))
        return cls(kspace, mask, (mask.shape[0], mask.shape[1]), noise_std)

    @property
    def n_coils(self) -> int:
        """Number of receive channels."""
        return int(self.kspace.shape[0])

    @property
    def acceleration(self) -> float:
        """Grid points per measured point."""
        return float(self.mask.numel() / self.mask.sum().item())

    def to(self, device: torch.device | str) -> KSpaceFrame:
        """Return the same frame on a device."""
        return KSpaceFrame(self.kspace.to(device), self.mask.to(device), self.shape, self.noise_std)


class SamplerStatus(str, Enum):
    """How a reconstruction ended. Only OK and NO_SIGNAL are complete results."""

    OK = "ok"
    NO_SIGNAL = "no_signal"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Progress:
    """One progress report; ``str()`` of it is a line for a log."""

    stage: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total}"


@dataclass(frozen=True)
class ReconResult:
    """Images in the units of the input k-space (unitary transform), float32 `(y, x)`, on the CPU.

    Attributes
    ----------
    image
        The estimate to show (magnitude); `estimate` says which one it is.
    std
        Standard deviation over posterior samples, units of `image`; None with fewer than 2 samples.
    mean, map
        Posterior mean of the magnitude; MAP magnitude. None when not computed.
    phase
        Phase of the complex estimate, radians in [-pi, pi].
    csm
        Coil sensitivities of the warm start, unit root-sum-of-squares, complex64 `(coil, y, x)`.
    samples
        Posterior samples (magnitude), `(sample, y, x)`, or None.
    status
        How it ended; `detail` says more in one line when it is not OK.
    estimate
        ``"map"``, ``"mean"`` or ``"warm_start"``.
    noise_std, noise_level
        Noise per real/imaginary part in input units, and the level actually used in the
        likelihood (at least the noise; larger when the warm start's residual shows a model error).
    data_residual
        Root of the mean squared k-space residual of the MAP image (else the warm start) over the noise: 1 means
        "to the noise".
    scale
        Intensity that corresponds to 1 inside the prior.
    n_samples, n_steps
        Finished posterior samples and noise levels visited by each.
    interval_factors
        Half-width of the 50, 80 and 95 % interval of a pixel, in units of `std`; the Gaussian ones unless
        the uncertainty method brings measured ones.
    uncertainty
        What the uncertainty method measured on the way, e.g. the scales it combined.
    warnings
        Short upper-case words, e.g. ``NO_SIGNAL``.
    seconds
        Wall time per stage.
    """

    image: torch.Tensor
    std: torch.Tensor | None
    mean: torch.Tensor | None
    map: torch.Tensor | None
    phase: torch.Tensor
    csm: torch.Tensor
    samples: torch.Tensor | None
    status: SamplerStatus
    detail: str = ""
    estimate: str = "map"
    noise_std: float = 0.0
    noise_level: float = 0.0
    data_residual: float = 0.0
    scale: float = 1.0
    n_samples: int = 0
    n_steps: int = 0
    interval_factors: Mapping[float, float] = field(default_factory=lambda: GAUSSIAN_FACTORS)
    uncertainty: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
