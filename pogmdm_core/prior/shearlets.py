"""The paper's filter bank: 20 cone-adapted shearlets from a low-pass h, a fan filter P and gains gamma.

Notation: `low_pass` is h in R^9, `fan` is P in R^(17x17), `gain` is gamma in R^20_+. Two scales
(coarse, fine), five shears k = -2..2 per scale, two cones (the second is the transposed first).
The kernels are finite impulse responses; wrapping them around an n x m torus gives the spectra on
any grid, square or not.

Source: Lim 2010 (discrete shearlet transform, doi:10.1109/TIP.2010.2041410); Nagler, Zach & Pock,
arXiv 2501.08662, section 3.2.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pogmdm_core.prior.base import FilterBank

N_SHEARLETS = 20
_SHEARS = (-2, -1, 0, 1, 2)
_LEN_LOW = 9
_LEN_FAN = 17


def _cross_correlate_full(signal: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Full 2-D cross-correlation of `(a, b)` with `(c, d)`, giving `(a+c-1, b+d-1)`."""
    pad = (kernel.shape[0] - 1, kernel.shape[1] - 1)
    return F.conv2d(signal[None, None], kernel[None, None], padding=pad)[0, 0]


def _upsample(signal: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """Insert factor-1 zeros between neighbours along one axis."""
    shape = list(signal.shape)
    shape[axis] = (shape[axis] - 1) * factor + 1
    out = signal.new_zeros(shape)
    index = torch.arange(0, shape[axis], factor, device=signal.device)
    return out.index_copy(axis, index, signal)


def _convolve_columns(signal: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Full convolution of every row of `(r, c)` with a 1-D kernel (along the columns)."""
    return _cross_correlate_full(signal, kernel.flip(0)[None, :])


def shearlet_kernels(low_pass: torch.Tensor, fan: torch.Tensor) -> list[torch.Tensor]:
    """Build the ten kernels of the first cone; differentiable in both arguments.

    Parameters
    ----------
    low_pass
        h, real `(9,)`.
    fan
        P, real `(17, 17)`.

    Returns
    -------
        Coarse k = -2..2, then fine k = -2..2; `(89, 137)` and `(89, 121)`, origin at the centre.
    """
    sign = torch.tensor([(-1.0) ** n for n in range(_LEN_LOW)], dtype=low_pass.dtype, device=low_pass.device)
    row = low_pass[None, :]
    coarse_low = _cross_correlate_full(_upsample(row, 2, 1), row)[0]
    fine_high = sign * low_pass
    coarse_high = _cross_correlate_full(_upsample(fine_high[None, :], 2, 1), row)[0]

    kernels = []
    for high in (coarse_high, fine_high):
        band = _cross_correlate_full(_upsample(fan, 4, 0), torch.outer(coarse_low, high))
        half_pixel = _convolve_columns(_upsample(band, 2, 1), low_pass)
        for shear in _SHEARS:
            sheared = _shift_rows(half_pixel, shear)
            smooth = _convolve_columns(sheared, low_pass.flip(0))
            centre = smooth.shape[1] // 2
            kernels.append(2 * smooth[:, centre % 2 :: 2])
    return kernels


def _shift_rows(signal: torch.Tensor, shear: int) -> torch.Tensor:
    """Shift row r by shear * (centre - r), with room for the largest shear on both sides."""
    rows, columns = signal.shape
    centre = rows // 2
    room = max(_SHEARS) * centre
    offset = shear * (centre - torch.arange(rows, device=signal.device)) + room
    target = offset[:, None] + torch.arange(columns, device=signal.device)[None, :]
    return signal.new_zeros(rows, columns + 2 * room).scatter(1, target, signal)


def wrap_kernel(kernel: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Wrap a kernel with its origin at the centre around an `(ny, nx)` torus, origin at [0, 0]."""
    rows, columns = kernel.shape
    y = (torch.arange(rows, device=kernel.device) - rows // 2) % shape[0]
    x = (torch.arange(columns, device=kernel.device) - columns // 2) % shape[1]
    target = (y[:, None] * shape[1] + x[None, :]).reshape(-1)
    return kernel.new_zeros(shape[0] * shape[1]).index_add(0, target, kernel.reshape(-1)).reshape(shape)


class ShearletBank(FilterBank):
    """The 20 filters; learned are `low_pass`, `fan` and `gain` (9 + 289 + 20 numbers).

    Parameters
    ----------
    tight_frame
        When given, g0 in (0, 1): spectra are divided by sqrt(max(sum |K|^2, g0)), so that all
        frequencies the bank sees are weighted alike (`method.md` 4.4). None keeps the paper's bank.
    """

    kind = "shearlet"
    n_filters = N_SHEARLETS

    def __init__(self, tight_frame: float | None = None) -> None:
        super().__init__()
        self.tight_frame = tight_frame
        self.low_pass = torch.nn.Parameter(start_low_pass())
        self.fan = torch.nn.Parameter(start_fan())
        self.gain = torch.nn.Parameter(torch.ones(N_SHEARLETS))

    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild this bank."""
        return {"kind": self.kind, "tight_frame": self.tight_frame}

    def filter_parameters(self) -> list[torch.nn.Parameter]:
        """Filter taps, for the optimiser's group of that name."""
        return [self.low_pass, self.fan]

    def spectra(self, shape: tuple[int, int]) -> torch.Tensor:
        """Spectra of all filters on an n x m torus, complex `(20, n, m)`, gain included."""
        cone = shearlet_kernels(self.low_pass, self.fan)
        wrapped = [wrap_kernel(k, shape) for k in cone] + [wrap_kernel(k.T, shape) for k in cone]
        spectra: torch.Tensor = torch.fft.fft2(torch.stack(wrapped)) * self.gain[:, None, None]
        if self.tight_frame is not None:
            coverage = (spectra.real**2 + spectra.imag**2).sum(0)
            spectra = spectra / coverage.clamp_min(self.tight_frame).sqrt()
        return spectra

    def scale_groups(self) -> list[tuple[str, torch.Tensor]]:
        """See `FilterBank`: two cones of five coarse and five fine shears each."""
        coarse = torch.arange(self.n_filters) % 10 < 5
        return [("coarse", coarse), ("fine", ~coarse)]

    @torch.no_grad()
    def project(self) -> None:
        """Put the parameters back on the paper's constraints: sum h = 1, ||P||_1 = 1, gamma >= 0."""
        self.low_pass.sub_((self.low_pass.sum() - 1) / _LEN_LOW)
        self.fan.copy_(project_l1_sphere(self.fan))
        self.gain.clamp_(min=0)


def project_simplex(values: torch.Tensor) -> torch.Tensor:
    """Project the last axis onto the probability simplex (sort-based, Held, Wolfe & Crowder 1974)."""
    ordered = values.sort(dim=-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    excess = (ordered.cumsum(-1) - 1) / count
    n_active = (ordered > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, n_active - 1)).clamp_min(0)


def project_l1_sphere(values: torch.Tensor) -> torch.Tensor:
    """Project onto {||v||_1 = 1}; zeros count as positive so that no mass is lost there."""
    sign = torch.where(values < 0, -1.0, 1.0).to(values.dtype)
    return sign * project_simplex(values.abs().reshape(-1)).reshape(values.shape)


def start_low_pass() -> torch.Tensor:
    """Maximally flat symmetric 9-tap low-pass with sum 1 (Herrmann 1971).

    In y = sin^2(w/2) it is (1 - y)^2 (1 + 2 y + 3 y^2): two zeros at the Nyquist frequency and
    three flat orders at zero frequency.
    """

    def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv1d(a[None, None], b.flip(0)[None, None], padding=len(b) - 1)[0, 0]

    y = torch.tensor([-0.25, 0.5, -0.25], dtype=torch.float64)
    one_minus_y = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    flat = 3 * times(y, y)
    flat[1:4] += 2 * y
    flat[2] += 1
    taps = times(times(one_minus_y, one_minus_y), flat)
    return (taps / taps.sum()).float()


def start_fan() -> torch.Tensor:
    """Kaiser-windowed 17 x 17 fan filter (passes |w_x| > |w_y|), scaled to l1 norm 1."""
    fine = 256
    w = torch.fft.fftfreq(fine, dtype=torch.float64).abs()
    passes = 0.5 * (1 + torch.sign(w[None, :] - w[:, None]))
    ideal = torch.fft.fftshift(torch.fft.ifft2(passes).real)
    inside = slice(fine // 2 - _LEN_FAN // 2, fine // 2 + _LEN_FAN // 2 + 1)
    window = torch.kaiser_window(_LEN_FAN, periodic=False, beta=4.0, dtype=torch.float64)
    fan = ideal[inside, inside] * torch.outer(window, window)
    found: torch.Tensor = (fan / fan.abs().sum()).float()
    return found
