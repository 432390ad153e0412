"""What comes out of a reconstruction: a frozen value, shapes stated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pogmdm_core.estimate.joint_start import JointStart
from pogmdm_core.run import SamplerStatus

GAUSSIAN_FACTORS: Mapping[float, float] = {0.5: 0.6745, 0.8: 1.2816, 0.95: 1.9600}


@dataclass(frozen=True)
class ReconResult:
    """Images in the units of the input k-space (unitary transform), float32 `(y, x)`, on the CPU.

    Attributes
    ----------
    image
        The estimate to show (magnitude); `estimate` says which one it is.
    std
        Standard deviation of each pixel, units of `image`; None when nothing is known.
    mean, map
        Posterior mean of the magnitude; MAP magnitude. None when not computed.
    phase
        Phase of the complex estimate, radians in [-pi, pi].
    csm
        Coil sensitivities of the warm start, unit root-sum-of-squares, complex64 `(coil, y, x)`. Where the object is
        larger than the field of view (LARGER_FOV), what the coils see of both places in a pixel over `image`.
    samples
        Posterior samples (magnitude), `(sample, y, x)`, or None.
    status
        How it ended; `detail` says more in one line when it is not OK.
    estimate
        ``"map"``, ``"mean"`` or ``"warm_start"``.
    noise_std, noise_level
        Noise per real/imaginary part in input units, and the level actually used in the
        likelihood (at least the noise; larger when the warm start's residual shows a model error).
    prior_weight
        Weight of the prior against the data in the MAP image.
    data_residual
        Root of the mean squared k-space residual of the MAP image (else the warm start) over the noise: 1 means
        "to the noise".
    model_error
        The same near the centre of k-space, where it is largest: 0.7 to 1.2 where model and data agree. `std` is wider
        by the root of what is above 1.25, but for ``samples`` and where the coils are estimated anew for it.
    scale
        Intensity that corresponds to 1 inside the prior.
    start
        What the reconstruction began with, to be given to another one of the same frame. Of twice the field of view
        along one axis where the object is larger than it (LARGER_FOV).
    n_samples, n_steps
        Finished posterior samples and noise levels visited by each.
    interval_factors
        Half-width of the 50, 80 and 95 % interval of a pixel, in units of `std`; the Gaussian ones unless
        the uncertainty method brings measured ones.
    uncertainty_method
        ``"calibrated"``, ``"folds"``, ``"samples"`` or ``"off"``: what `std` really is.
    uncertainty
        What the uncertainty method measured on the way: root mean square errors inside the object as
        ``folds`` and ``samples`` say (units of `image`), and ``untested``, the share of the error that no
        held-out sample speaks for.
    backend
        How k-space was computed from images, e.g. ``"cartesian"`` or ``"toeplitz (finufft)"``.
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
    prior_weight: float = 1.0
    data_residual: float = 0.0
    model_error: float = 0.0
    scale: float = 1.0
    start: JointStart | None = None
    n_samples: int = 0
    n_steps: int = 0
    interval_factors: Mapping[float, float] = field(default_factory=lambda: GAUSSIAN_FACTORS)
    uncertainty_method: str = "off"
    uncertainty: Mapping[str, float] = field(default_factory=dict)
    backend: str = ""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def shown(self, wanted: str = "auto") -> tuple[str, torch.Tensor]:
        """Name and magnitude of what to show: ``map`` or ``mean`` where it is wanted and there, else `image`."""
        choices = {"map": self.map, "mean": self.mean}
        chosen = choices.get(wanted)
        return (self.estimate, self.image) if chosen is None else (wanted, chosen)
