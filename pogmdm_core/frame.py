"""What goes into a reconstruction: a frozen value, shapes stated once.

Axis order everywhere: image ``(y, x)``, coil images ``(coil, y, x)``, Cartesian k-space
``(coil, ky, kx)`` with DC at index ``(ny // 2, nx // 2)``, non-Cartesian k-space ``(coil, sample)`` with
trajectories ``(2, sample)``, posterior samples lead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pogmdm_core import checks
from pogmdm_core.errors import DataError


@dataclass(frozen=True)
class KSpaceFrame:
    """Undersampled multi-coil k-space of one 2-D image. Build it with `cartesian` or `noncartesian`.

    Attributes
    ----------
    kspace
        Measured samples, complex64: `(coil, ky, kx)`, zero where not measured, or non-Cartesian
        `(coil, n)`. Should be whitened: equal, uncorrelated noise in all coils.
    mask
        True where measured, bool, `(ky, kx)`; None for non-Cartesian samples.
    shape
        Image matrix `(ny, nx)`.
    noise_std
        Standard deviation of the noise in each real and imaginary part of a k-space sample
        (unitary Fourier transform), same units as `kspace`; None when not known (it is then
        estimated from the outermost measured samples).
    trajectory
        Where the samples are, float64 `(2, n)`, rows kx and ky, cycles per field of view; None for Cartesian.
    density
        Density-compensation weights as supplied, float64 `(n,)`, any scale, or None.
    shot
        Readout (spoke, interleave) each sample belongs to, int64 `(n,)`. The standard deviation needs it: whole
        readouts are left out to be predicted. None leaves single samples out, which their neighbours on a readout
        give away, and it comes out too small.
    noise_floor
        What the noise is at least, as `noise_std`: that of rounding. Estimates from the samples do not go below it.
    doubled_axis
        Axis of a field of view twice as large as the scan's (0: y, 1: x), whose samples can only be every other line of
        this k-space (`pogmdm_core.measurement.folding`); None for a scan as it is.
    """

    kspace: torch.Tensor
    mask: torch.Tensor | None
    shape: tuple[int, int]
    noise_std: float | None = None
    trajectory: torch.Tensor | None = None
    density: torch.Tensor | None = None
    shot: torch.Tensor | None = None
    noise_floor: float = 0.0
    doubled_axis: int | None = None

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
            E305 wrong shapes, E330 non-finite samples, E331 nothing measured, E332 impossible noise.
        """
        kspace, mask = torch.as_tensor(kspace), torch.as_tensor(mask)
        if kspace.is_complex():
            kspace = kspace.to(torch.complex64)
        checks.cartesian_frame(kspace, mask, noise_std)
        kspace = torch.where(mask, kspace, torch.zeros((), dtype=kspace.dtype, device=kspace.device))
        return cls(kspace, mask, (mask.shape[0], mask.shape[1]), noise_std)

    @classmethod
    def noncartesian(
        cls,
        samples: torch.Tensor,
        traj: torch.Tensor,
        shape: tuple[int, int],
        density: torch.Tensor | None = None,
        noise_std: float | None = None,
        shot: torch.Tensor | None = None,
    ) -> KSpaceFrame:
        """Make a frame from samples anywhere in k-space.

        Parameters
        ----------
        samples
            `(coil, n)` complex. Scaling: ``sum_p x_p exp(-2 pi i k.p / N) / sqrt(ny nx)`` over the
            pixels p of an image, so that samples on grid points equal Cartesian ones.
        traj
            `(2, n)` real, rows kx and ky, cycles per field of view, |k| <= N/2.
        shape
            Image matrix `(ny, nx)`. For an object larger than the field of view enlarge both, and
            `traj` in proportion (cycles per the larger field of view).
        density
            `(n,)` weights >= 0, any scale: they shape the gridded image (`zero_filled`), never the
            reconstruction. None computes them.
        noise_std
            See the class.
        shot
            `(n,)` integers; see the class.

        Raises
        ------
        DataError
            E305 wrong shapes or weights, E323 positions not finite or outside the matrix, E330 non-finite
            samples, E331 nothing measured, E332 impossible noise.
        """
        samples, traj = torch.as_tensor(samples), torch.as_tensor(traj)
        density = None if density is None else torch.as_tensor(density)
        shot = None if shot is None else torch.as_tensor(shot)
        if samples.is_complex():
            samples = samples.to(torch.complex64)
        shape = (int(shape[0]), int(shape[1]))
        checks.noncartesian_frame(samples, traj, shape, density, noise_std, shot)
        return cls(
            samples,
            None,
            shape,
            noise_std,
            traj.to(torch.float64),
            None if density is None else density.to(torch.float64),
            None if shot is None else shot.to(torch.int64),
        )

    @property
    def n_coils(self) -> int:
        """Number of receive channels."""
        return int(self.kspace.shape[0])

    @property
    def is_cartesian(self) -> bool:
        """Whether samples lie on the grid."""
        return self.mask is not None

    @property
    def acceleration(self) -> float:
        """Grid points of the matrix per grid cell that holds a sample.

        Trajectories are comparable with masks. One that leaves the corners of k-space out is at 4/pi when it is fully
        sampled.
        """
        cells = self.sampled_cells
        return float(cells.numel() / cells.sum().item())

    @property
    def sampled_cells(self) -> torch.Tensor:
        """Grid cells of k-space that hold a sample, bool `(ky, kx)`: the mask of a Cartesian frame.

        Off the grid a cell is what lies within half a step of a grid point, so oversampled readouts, repeated positions
        and dense centres count once.
        """
        if self.mask is not None:
            return self.mask
        ny, nx = self.shape
        kx, ky = self.positions.round().long()
        cells = torch.zeros(self.shape, dtype=torch.bool, device=kx.device)
        cells[(ky + ny // 2) % ny, (kx + nx // 2) % nx] = True
        return cells

    @property
    def positions(self) -> torch.Tensor:
        """The trajectory of a non-Cartesian frame; E305 for Cartesian ones, which have a mask instead."""
        if self.trajectory is None:
            raise DataError(305, "a Cartesian frame has a mask, no trajectory.")
        return self.trajectory

    def subset(self, kept: torch.Tensor) -> KSpaceFrame:
        """Return the frame with some of its samples only.

        Parameters
        ----------
        kept
            True for samples to keep, bool, `(ky, kx)` or non-Cartesian `(n,)`.

        Raises
        ------
        DataError
            E305 wrong shape, E331 nothing is left.
        """
        kept = torch.as_tensor(kept, device=self.kspace.device)
        checks.kept_samples(kept, tuple(self.kspace.shape[1:]))
        if self.mask is not None:
            chosen = KSpaceFrame.cartesian(self.kspace, self.mask & kept, self.noise_std)
            return replace(chosen, noise_floor=self.noise_floor, doubled_axis=self.doubled_axis)
        chosen = KSpaceFrame.noncartesian(
            self.kspace[:, kept],
            self.positions[:, kept],
            self.shape,
            None if self.density is None else self.density[kept],
            self.noise_std,
            None if self.shot is None else self.shot[kept],
        )
        return replace(chosen, noise_floor=self.noise_floor)

    def centre(self, shape: tuple[int, int]) -> KSpaceFrame:
        """Return the samples of a non-Cartesian frame that an image of a smaller matrix `shape` has, for that image.

        Same field of view, same intensities: samples and their noise are scaled to that matrix's unitary transform.
        """
        (ny, nx), (kx, ky) = shape, self.positions
        inside = (kx.abs() <= (nx - 1) // 2) & (ky.abs() <= (ny - 1) // 2)
        kept, factor = self.subset(inside), math.sqrt(ny * nx / (self.shape[0] * self.shape[1]))
        noise_std = None if self.noise_std is None else self.noise_std * factor
        return replace(
            kept,
            kspace=kept.kspace * factor,
            shape=shape,
            noise_std=noise_std,
            noise_floor=self.noise_floor * factor,
        )

    def to(self, device: torch.device | str) -> KSpaceFrame:
        """Return the same frame on a device."""

        def moved(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part.to(device)

        return replace(
            self,
            kspace=self.kspace.to(device),
            mask=moved(self.mask),
            trajectory=moved(self.trajectory),
            density=moved(self.density),
            shot=moved(self.shot),
        )
