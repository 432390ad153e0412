"""Analytic k-space of a head phantom seen by smooth coils, at any k, without a pixel grid.

The object is a sum of ellipses whose Fourier transform is known in closed form (a Bessel function).
Each coil profile is a short Fourier series with period `PERIOD` fields of view, so multiplying the
object by a profile shifts and adds the object's transform: the coil-weighted signal is exact too.
The simulated scan is therefore not the transform of an image on the reconstruction's own grid,
which would flatter any reconstruction (the "inverse crime").

Positions are in fields of view, centre 0, edge +-0.5; k is in cycles per field of view.

Source: Guerquin-Kern et al. 2012, doi:10.1109/TMI.2011.2174158 (analytic phantoms with coils).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pogmdm_core.errors import ConfigError

PERIOD = 2.0
_COIL_ORDER = 3
_PHASE_ORDER = 1
_FIT_GRID = 33
_FIT_RIDGE = 1e-6
_CHUNK = 2**11
_BLOCK = 2**13

# amplitude, centre x, centre y, half axis a, half axis b, angle in degrees; amplitudes add up.
# In the manner of Shepp and Logan, with tissue contrasts closer to a T1-weighted head.
_HEAD = (
    (0.80, 0.000, 0.000, 0.3450, 0.4600, 0.0),  # scalp
    (-0.65, 0.000, -0.004, 0.3270, 0.4390, 0.0),  # skull
    (0.40, 0.000, -0.006, 0.3080, 0.4180, 0.0),  # grey matter
    (0.20, -0.135, -0.010, 0.1180, 0.2950, 6.0),  # white matter, right
    (0.20, 0.135, -0.010, 0.1180, 0.2950, -6.0),  # white matter, left
    (-0.45, -0.070, 0.010, 0.0350, 0.1250, 14.0),  # ventricles
    (-0.45, 0.070, 0.010, 0.0350, 0.1250, -14.0),
    (-0.15, -0.105, 0.060, 0.0450, 0.0620, -20.0),  # deep grey matter
    (-0.15, 0.105, 0.060, 0.0450, 0.0620, 20.0),
    (0.25, 0.000, 0.215, 0.0230, 0.0230, 0.0),  # bright round lesion
    (0.12, -0.170, -0.215, 0.0400, 0.0280, 30.0),  # faint lesion
    (-0.30, 0.000, -0.270, 0.0050, 0.1100, 0.0),  # fissure
    (0.30, -0.050, 0.340, 0.0115, 0.0058, 0.0),  # three small dots, as in Shepp-Logan
    (0.30, 0.000, 0.340, 0.0058, 0.0058, 0.0),
    (0.30, 0.050, 0.340, 0.0058, 0.0115, 0.0),
)
_N_TEXTURE = 60


@dataclass(frozen=True)
class Phantom:
    """A continuous object, its smooth phase, and the coils around it. Build it with `head`.

    Attributes
    ----------
    ellipses
        `(ellipse, 6)` float64: amplitude, centre x, centre y, half axes a and b (fields of view),
        angle (radians).
    coils
        Fourier series of the coil profiles, `(coil, 2H+1, 2H+1)` complex128; entry
        ``[c, H+m, H+n]`` belongs to exp(2 pi i (m y + n x) / PERIOD).
    phase
        Fourier series of the object's phase factor (magnitude about 1), `(2H+1, 2H+1)` complex128.
    edge
        Standard deviation, in fields of view, of the Gaussian that softens all edges. It belongs to
        the object: tissue borders are no steps. 0 switches it off.
    """

    ellipses: torch.Tensor
    coils: torch.Tensor
    phase: torch.Tensor
    edge: float

    @classmethod
    def head(cls, n_coils: int = 8, seed: int = 0, level: float = 0.0, edge: float = 0.0015) -> Phantom:
        """Make a head-like phantom in a ring of coils, with intensities scaled to a maximum of 1.

        Parameters
        ----------
        n_coils
            Number of receive coils, 1 to 128.
        seed
            Chooses the small structures, the object's phase and the ring's rotation.
        level
            Position of the slice through the head, -1 to 1; 0 is the largest. Slices of one seed
            share coils and phase and differ in size and in their small structures.
        edge
            See the class.

        Returns
        -------
            A phantom whose noise-free root-sum-of-squares image (`truth`) has a maximum of about 1
            (exactly 1 on 64 x 64; Gibbs ringing makes it depend a little on the matrix).

        Raises
        ------
        ConfigError
            E110 for a number of coils, a level or an edge out of range.
        """
        if not 1 <= n_coils <= 128:
            raise ConfigError(110, f"the phantom has {n_coils} coils; 1 to 128 are possible.")
        if not abs(level) <= 1 or not 0 <= edge < 0.1:
            raise ConfigError(110, f"the phantom's level {level} or edge {edge} is out of range.")
        shared = torch.Generator().manual_seed(seed)
        turn = float(torch.rand((), generator=shared, dtype=torch.float64))
        bend = torch.randn(5, generator=shared, dtype=torch.float64)
        own = torch.Generator().manual_seed(seed * 1009 + round(1e4 * (level + 1)))
        coils = _fit_series(_ring_profiles(n_coils, turn), _COIL_ORDER)
        phase = _fit_series(_smooth_phase(bend)[None], _PHASE_ORDER)[0]
        phantom = cls(_head_ellipses(level, own), coils, phase, edge)
        largest = float(phantom.truth((64, 64)).max())
        return cls(phantom.ellipses, coils / largest, phase, edge)

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return int(self.coils.shape[0])

    def kspace(self, k: torch.Tensor) -> torch.Tensor:
        """Signal of every coil: the continuous Fourier integral over the field of view.

        Parameters
        ----------
        k
            Sampling positions `(2, n)`, kx then ky (the column order of an ISMRMRD trajectory), in
            cycles per field of view, any real values.

        Returns
        -------
            `(coil, n)` complex128. Multiply by sqrt(ny * nx) for the scaling of a unitary discrete
            transform on an image matrix of ny x nx pixels per field of view.
        """
        series = _convolve(self.coils, self.phase)
        order = series.shape[-1] // 2
        steps = torch.arange(-order, order + 1, dtype=torch.float64) / PERIOD
        my, mx = (m.reshape(-1) for m in torch.meshgrid(steps, steps, indexing="ij"))
        weights = series.reshape(self.n_coils, -1)
        lookup = self._spectrum_lookup(k.to(torch.float64), order)
        out = torch.empty(self.n_coils, k.shape[1], dtype=torch.complex128)
        for start in range(0, k.shape[1], _CHUNK):
            part = k[:, start : start + _CHUNK].to(torch.float64)
            shifted = lookup(part[0][None] - mx[:, None], part[1][None] - my[:, None])
            out[:, start : start + part.shape[1]] = weights @ shifted
        return out

    def cartesian(self, shape: tuple[int, int], oversampling: int = 1) -> torch.Tensor:
        """Fully sampled, noise-free k-space on the grid of a matrix, unitary scaling.

        Parameters
        ----------
        shape
            Image matrix `(ny, nx)`.
        oversampling
            Readout (x) oversampling factor; the readout then has ``oversampling * nx`` samples and
            covers that many fields of view.

        Returns
        -------
            `(coil, ny, oversampling * nx)` complex128 with DC at ``[:, ny // 2, n_samples // 2]``.
            A unitary inverse transform gives images with the intensities of `truth`.
        """
        ny, nx = shape
        n_read = oversampling * nx
        ky = (torch.arange(ny, dtype=torch.float64) - ny // 2)[:, None].expand(ny, n_read)
        kx = ((torch.arange(n_read, dtype=torch.float64) - n_read // 2) / oversampling)[None].expand(ny, n_read)
        samples = self.kspace(torch.stack([kx.reshape(-1), ky.reshape(-1)]))
        return samples.reshape(-1, ny, n_read) * math.sqrt(ny * nx / oversampling)

    def coil_profiles(self, shape: tuple[int, int]) -> torch.Tensor:
        """Coil profiles at pixel centres, `(coil, y, x)` complex128, without the object's phase."""
        return _evaluate_series(self.coils, shape)

    def image(self, shape: tuple[int, int]) -> torch.Tensor:
        """Object at pixel centres, with hard edges and with its phase, `(y, x)` complex128."""
        y, x = (p.reshape(-1) for p in torch.meshgrid(*_positions(shape), indexing="ij"))
        out = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
        for amplitude, x0, y0, a, b, angle in self.ellipses.tolist():
            u = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
            v = (y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)
            out += amplitude * ((u / a) ** 2 + (v / b) ** 2 <= 1)
        return out.reshape(shape) * _evaluate_series(self.phase[None], shape)[0]

    def truth(self, shape: tuple[int, int]) -> torch.Tensor:
        """What a fully sampled, noise-free scan shows: root sum of squares of the coil images.

        Band-limited to the matrix, so it carries the Gibbs ringing any reconstruction is entitled to;
        this, not `image`, is what to compare with. `(y, x)` float64.
        """
        samples = torch.fft.ifftshift(self.cartesian(shape), dim=(-2, -1))
        coil_images = torch.fft.fftshift(torch.fft.ifft2(samples, norm="ortho"), dim=(-2, -1))
        found: torch.Tensor = coil_images.abs().square().sum(0).sqrt()
        return found

    def _spectrum_lookup(self, k: torch.Tensor, order: int) -> _Lookup:
        """Choose between direct evaluation and, when k lies on the series' lattice, a table."""
        cells = k * PERIOD
        on_lattice = k.numel() > 0 and bool(((cells - cells.round()).abs() < 1e-9).all())
        if not on_lattice:
            return _Lookup(self, None, (0, 0))
        low = [int(c.min().round()) - order for c in cells]
        high = [int(c.max().round()) + order for c in cells]
        n_x, n_y = high[0] - low[0] + 1, high[1] - low[1] + 1
        if n_x * n_y > k.shape[1] * (2 * order + 1) ** 2:
            return _Lookup(self, None, (0, 0))
        x = torch.arange(n_x, dtype=torch.float64) + low[0]
        y = torch.arange(n_y, dtype=torch.float64) + low[1]
        table = self._spectrum(*(g / PERIOD for g in torch.meshgrid(x, y, indexing="xy")))
        return _Lookup(self, table, (low[0], low[1]))

    def _spectrum(self, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
        """Fourier transform of the object without phase and coils; any shape in, complex128 out."""
        out = torch.empty(kx.numel(), dtype=torch.complex128)
        parts = zip(*(torch.split(t.reshape(-1), _BLOCK) for t in (kx, ky, out)), strict=True)
        for kx_part, ky_part, out_part in parts:
            out_part.copy_(self._spectrum_block(kx_part, ky_part))
        return out.reshape(kx.shape)

    def _spectrum_block(self, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
        """Sum over all ellipses at points few enough to stay in the processor's cache."""
        out = torch.zeros(kx.shape, dtype=torch.complex128)
        for amplitude, x0, y0, a, b, angle in self.ellipses.tolist():
            u = a * (kx * math.cos(angle) + ky * math.sin(angle))
            v = b * (ky * math.cos(angle) - kx * math.sin(angle))
            # 2 J1(q) / q -> 1 at q = 0, where 0 / 0 is avoided; the next term is q^2 / 8.
            # hypot and polar are evaluated in place of sqrt, sin and cos, which torch hands to a threaded
            # library that is 50 times slower on blocks of this size while other processes are busy.
            q = torch.hypot(u, v).mul_(2 * math.pi).clamp_min_(1e-9)
            jinc = torch.special.bessel_j1(q).div_(q).mul_(2 * math.pi * amplitude * a * b)
            out += torch.polar(jinc, (-2 * math.pi) * (kx * x0 + ky * y0))
        if self.edge > 0:
            out *= torch.exp(-2 * (math.pi * self.edge) ** 2 * (kx.square() + ky.square()))
        return out


@dataclass(frozen=True)
class _Lookup:
    """The object's spectrum at given points, computed directly or read from a lattice table."""

    phantom: Phantom
    table: torch.Tensor | None
    origin: tuple[int, int]

    def __call__(self, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            return self.phantom._spectrum(kx, ky)
        x = (kx * PERIOD).round().long() - self.origin[0]
        y = (ky * PERIOD).round().long() - self.origin[1]
        return self.table[y, x]


def random_noise_mixer(n_coils: int, generator: torch.Generator) -> torch.Tensor:
    """Matrix that turns white noise into noise correlated between channels.

    Returns
    -------
        M, `(coil, coil)` complex128, with covariance M M^H of mean diagonal 1: neighbouring channels
        correlate by a few tenths and channel variances differ, as in a real array.
    """
    real, imag = torch.randn(2, n_coils, n_coils, generator=generator, dtype=torch.float64)
    gain = 0.7 + 0.6 * torch.rand(n_coils, generator=generator, dtype=torch.float64)
    eye = torch.eye(n_coils, dtype=torch.complex128)
    mixer = gain[:, None] * (eye + 0.35 * torch.complex(real, imag) / math.sqrt(2 * n_coils))
    return mixer / mixer.abs().square().sum(1).mean().sqrt()


def receiver_noise(mixer: torch.Tensor, n: int, std: float, generator: torch.Generator) -> torch.Tensor:
    """Draw noise samples `(coil, n)` complex128.

    `std` is the standard deviation of each real and imaginary part, root mean square over channels.
    """
    real, imag = torch.randn(2, mixer.shape[0], n, generator=generator, dtype=torch.float64)
    return std * (mixer @ torch.complex(real, imag))


def _positions(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres (y, x) in fields of view; pixel n // 2 is at 0."""
    y, x = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape)
    return y, x


def _head_ellipses(level: float, generator: torch.Generator) -> torch.Tensor:
    """Ellipses of one slice `(ellipse, 6)`: the fixed head, scaled by the slice, plus small structures."""
    head = torch.tensor(_HEAD, dtype=torch.float64)
    head[:, 5] = torch.deg2rad(head[:, 5])
    # Small structures: uniform over the brain's ellipse, with both signs so that the mean stays.
    r, turn, along, across, angle, sign = torch.rand(6, _N_TEXTURE, generator=generator, dtype=torch.float64)
    radius, turn = 0.93 * r.sqrt(), 2 * math.pi * turn
    texture = torch.stack(
        [
            (0.04 + 0.08 * across) * torch.where(sign < 0.5, -1.0, 1.0),
            0.295 * radius * turn.cos(),
            0.400 * radius * turn.sin(),
            0.004 + 0.022 * along,
            0.003 + 0.007 * across,
            math.pi * angle,
        ],
        dim=1,
    )
    ellipses = torch.cat([head, texture])
    ellipses[:, 1:5] *= math.sqrt(1 - 0.5 * level**2)
    return ellipses


def _ring_profiles(n_coils: int, turn: float) -> torch.Tensor:
    """Profiles of loop coils on a ring around the object, on the fit grid, `(coil, y, x)` complex128.

    On-axis Biot-Savart decay of a loop, with a phase that turns around the loop's centre.
    """
    y, x = torch.meshgrid(*[torch.linspace(-0.5, 0.5, _FIT_GRID, dtype=torch.float64)] * 2, indexing="ij")
    profiles = []
    for coil in range(n_coils):
        angle = 2 * math.pi * (coil + turn) / n_coils
        dx, dy = x - 0.85 * math.cos(angle), y - 0.85 * math.sin(angle)
        decay = (1 + (dx**2 + dy**2) / 0.5**2) ** -1.5
        profiles.append(torch.polar(decay, torch.atan2(dy, dx) - 2 * angle))
    return torch.stack(profiles)


def _smooth_phase(bend: torch.Tensor) -> torch.Tensor:
    """Phase factor with slow bends, on the fit grid, `(y, x)` complex128, magnitude 1."""
    y, x = torch.meshgrid(*[torch.linspace(-0.5, 0.5, _FIT_GRID, dtype=torch.float64)] * 2, indexing="ij")
    angle = 0.8 * bend[0] + 0.9 * (bend[1] * x + bend[2] * y) + 0.6 * (bend[3] * x * y + bend[4] * (x**2 - y**2))
    return torch.polar(torch.ones_like(angle), angle)


def _basis(positions: torch.Tensor, order: int) -> torch.Tensor:
    """Harmonics of the series at positions (fields of view), `(position, 2 * order + 1)`."""
    harmonic = torch.arange(-order, order + 1, dtype=torch.float64)
    angle = (2 * math.pi / PERIOD) * positions[:, None] * harmonic[None]
    return torch.polar(torch.ones_like(angle), angle)


def _fit_series(profiles: torch.Tensor, order: int) -> torch.Tensor:
    """Least-squares Fourier series of profiles on the fit grid, `(coil, 2H+1, 2H+1)`.

    The period exceeds the field of view, so the fit is free outside it; a small ridge keeps the
    coefficients, hence the noise-free signal outside, bounded.
    """
    basis = _basis(torch.linspace(-0.5, 0.5, _FIT_GRID, dtype=torch.float64), order)
    eye = torch.eye(basis.shape[1], dtype=torch.complex128)
    solve = torch.linalg.solve(basis.mH @ basis + _FIT_RIDGE * _FIT_GRID * eye, basis.mH)
    found: torch.Tensor = solve @ profiles.to(torch.complex128) @ solve.mT
    return found


def _evaluate_series(series: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Values of Fourier series at pixel centres, `(coil, y, x)`."""
    y, x = _positions(shape)
    order = series.shape[-1] // 2
    return _basis(y, order) @ series @ _basis(x, order).mT


def _convolve(coils: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """Series of the product of coil profiles and phase factor (full 2-D convolution)."""
    n = coils.shape[-1] + phase.shape[-1] - 1
    out = torch.zeros(coils.shape[0], n, n, dtype=torch.complex128)
    for i in range(phase.shape[0]):
        for j in range(phase.shape[1]):
            out[:, i : i + coils.shape[1], j : j + coils.shape[2]] += phase[i, j] * coils
    return out
