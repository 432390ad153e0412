"""A learned multi-scale filter bank: small free kernels on dyadic a-trous scales, tight frame.

Filter k has s x s learned taps c_k (zero mean, unit norm) on dilation d_k in {1, 2, 4, 8}:

C_k(w) = DTFT(c_k)(d_k w) * prod_{q = 1, 2, .., d_k / 2} H(q w_1) H(q w_2),   H(w) = cos(w / 2)^4
B_k = exp(gain_k) C_k,     K_k = B_k / sqrt(max(sum_j |B_j|^2, g0))

so every frequency that the bank sees is weighted alike. All symbols are functions of continuous
frequency: they can be sampled on any grid.

Source: Shensa 1992, doi:10.1109/78.157290 (a-trous); the rest is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pogmdm_core.prior.base import FilterBank

Scale = tuple[int, int, int]
DEFAULT_SCALES: tuple[Scale, ...] = ((1, 7, 10), (2, 7, 6), (4, 5, 4), (8, 5, 4))
QUALITY_SCALES: tuple[Scale, ...] = ((1, 7, 16), (2, 5, 12), (4, 5, 8), (8, 5, 4))


class MultiscaleBank(FilterBank):
    """Free filters on dyadic scales.

    Parameters
    ----------
    scales
        (dilation, kernel side, number of filters) per scale.
    tight_frame
        g0 in (0, 1), see the module.
    """

    kind = "multiscale"

    def __init__(self, scales: Sequence[Scale] = DEFAULT_SCALES, tight_frame: float = 0.02) -> None:
        super().__init__()
        self.scales = tuple((int(d), int(s), int(n)) for d, s, n in scales)
        self.tight_frame = tight_frame
        self.n_filters = sum(n for _, _, n in self.scales)
        self.kernels = torch.nn.ParameterList([_gabor_start(side, n) for _, side, n in self.scales])
        self.gain = torch.nn.Parameter(torch.zeros(self.n_filters))

    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild this bank."""
        return {"kind": self.kind, "scales": [list(s) for s in self.scales], "tight_frame": self.tight_frame}

    def filter_parameters(self) -> list[torch.nn.Parameter]:
        """Filter taps, for the optimiser's group of that name."""
        return list(self.kernels)

    def spectra(self, shape: tuple[int, int]) -> torch.Tensor:
        """Spectra of all filters on an n x m torus, complex `(n_filters, n, m)`."""
        groups = [_spectra_of_scale(k, scale[0], shape) for k, scale in zip(self.kernels, self.scales, strict=True)]
        spectra = torch.cat(groups) * self.gains()[:, None, None]
        coverage = (spectra.real**2 + spectra.imag**2).sum(0)
        return spectra / coverage.clamp_min(self.tight_frame).sqrt()

    def scale_groups(self) -> list[tuple[str, torch.Tensor]]:
        """See `FilterBank`."""
        scale = torch.repeat_interleave(torch.tensor([n for _, _, n in self.scales]))
        return [(f"x {dilation}", scale == i) for i, (dilation, _, _) in enumerate(self.scales)]

    def gains(self) -> torch.Tensor:
        """See `FilterBank`."""
        return self.gain.exp()

    @torch.no_grad()
    def project(self) -> None:
        """Make kernels zero-mean with unit norm (neither changes the spectra)."""
        for kernels in self.kernels:
            kernels.copy_(_zero_mean_unit_norm(kernels))


def _zero_mean_unit_norm(kernels: torch.Tensor) -> torch.Tensor:
    centred = kernels - kernels.mean(dim=(1, 2), keepdim=True)
    return centred / centred.square().sum(dim=(1, 2), keepdim=True).sqrt()


def _spectra_of_scale(kernels: torch.Tensor, dilation: int, shape: tuple[int, int]) -> torch.Tensor:
    """Spectra `(n, ny, nx)` of kernels `(n, s, s)`, centre of the kernel at the origin."""
    taps = _zero_mean_unit_norm(kernels)
    side = kernels.shape[-1]
    position = torch.arange(side, dtype=kernels.dtype, device=kernels.device) - side // 2
    factors = []
    for n in shape:
        w = 2 * math.pi * torch.fft.fftfreq(n, dtype=kernels.dtype, device=kernels.device)
        low_pass = torch.ones_like(w)
        reach = 1
        while reach < dilation:
            low_pass = low_pass * torch.cos(reach * w / 2) ** 4
            reach *= 2
        angle = -dilation * w[:, None] * position
        # an even grid samples Nyquist once: the real part keeps kernels real there
        nyquist = torch.isclose(w.abs(), torch.full_like(w, math.pi))
        imaginary = torch.where(nyquist[:, None], torch.zeros_like(angle), torch.sin(angle))
        factors.append(low_pass[:, None] * torch.complex(torch.cos(angle), imaginary))
    return factors[0] @ taps.to(factors[0].dtype) @ factors[1].T


def _gabor_start(side: int, n_filters: int) -> torch.nn.Parameter:
    """Even and odd Gabor kernels over orientations, two bands, `(n, s, s)`, zero mean, unit norm."""
    x = torch.arange(side, dtype=torch.float32) - side // 2
    yy, xx = torch.meshgrid(x, x, indexing="ij")
    envelope = torch.exp(-(xx**2 + yy**2) / (2 * (side / 4.5) ** 2))
    kernels = []
    n_pairs = -(-n_filters // 2)
    for i in range(n_pairs):
        theta = math.pi * i / n_pairs
        frequency = 2 * math.pi * (0.32 if i % 2 == 0 else 0.19)
        phase = frequency * (xx * math.cos(theta) + yy * math.sin(theta))
        kernels += [envelope * torch.cos(phase), envelope * torch.sin(phase)]
    return torch.nn.Parameter(_zero_mean_unit_norm(torch.stack(kernels[:n_filters])))
