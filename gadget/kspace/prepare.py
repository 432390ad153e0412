"""From readouts to what the reconstruction takes: whitened k-space, where it was sampled, noise level.

All steps are linear in the data, and the whitener is multiplied by one factor in the units of the
input, so that images keep the scale of the k-space they came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError
from gadget.kspace.cartesian import cartesian_grid, remove_oversampling
from gadget.kspace.noncartesian import sampled_frame
from gadget.kspace.phase_correction import phase_corrected
from gadget.kspace.whitening import Whitener
from gadget.scan.frames import AcquiredFrame, FrameKey
from gadget.scan.geometry import Encoding

if TYPE_CHECKING:
    import torch

    from gadget.settings.schema import GadgetSettings
    from pogmdm_core import KSpaceFrame
    from pogmdm_core.estimate.joint_start import JointStart


_ROUNDING = 12**-0.5  # standard deviation of what rounding to whole numbers takes or adds
_ANOTHER_SCALE = 5.0  # noise that a chain claims, over that of the quietest k-space


@dataclass(frozen=True)
class PreparedFrame:
    """A frame ready to be reconstructed.

    Attributes
    ----------
    frame
        K-space, mask or trajectory, and noise level for `pogmdm_core.reconstruct`.
    fov_mm
        Field of view `(y, x)` of its image grid, mm; may exceed the wanted one, then images are cropped.
    key, encoding, reference
        Of the readouts it was made of: indices, encoding space, and the header of the one nearest the k-space centre
        (off the grid: the middle one).
    whitened
        Whether the noise is white: by a noise scan, here or upstream.
    warnings
        Short upper-case words.
    whitened_upstream
        Whether a gadget before this one did it.
    trajectory
        The header's word for it, and off the grid how the positions were read.
    start
        Image and coils from its data alone, where they are known already.
    """

    frame: KSpaceFrame
    fov_mm: tuple[float, float]
    key: FrameKey
    encoding: Encoding
    reference: ismrmrd.AcquisitionHeader
    whitened: bool
    warnings: tuple[str, ...]
    whitened_upstream: bool = False
    trajectory: str = "cartesian"
    start: JointStart | None = None


def prepare(acquired: AcquiredFrame, whitener: Whitener | None, settings: GadgetSettings) -> PreparedFrame:
    """Whiten, place on the grid and remove readout oversampling, or decode the trajectory; compress channels.

    Parameters
    ----------
    acquired
        Screened readouts.
    whitener
        From the noise scan; None leaves the noise unknown, it is then estimated from the data.
    settings
        ``coils.n_virtual``, ``trajectory``, ``limits.max_coils`` and ``limits.max_accel`` are used.

    Raises
    ------
    DataError
        E304 too few lines, E307 samples outside the grid, E331 no sample falls on the grid, and those of
        `gadget.kspace.noncartesian.sampled_frame`.
    """
    data, more = phase_corrected(acquired)
    warnings, noise_std = [*acquired.warnings, *more], None
    noise_floor = _ROUNDING if acquired.are_whole_numbers else 0.0
    if whitener is not None:
        data = whitener.apply(data)
        noise_std = whitener.noise_std(float(acquired.heads[0].sample_time_us))
        noise_floor *= whitener.gain
        if whitener.n_dead:
            warnings.append("DEAD_CHANNELS")
        if whitener.is_short:
            warnings.append("NOISE_SCAN_SHORT")
    else:
        warnings.append("NOT_WHITENED")

    place = _on_grid if acquired.on_grid else _off_grid
    frame, fov_mm, more, reading, factor = place(acquired, data, noise_std, settings)
    frame = replace(frame, noise_floor=noise_floor * factor)
    warnings += more
    whitened_upstream = whitener is not None and whitener.upstream
    # whitening makes no whole numbers
    if whitened_upstream and (acquired.are_whole_numbers or _is_another_scale(frame)):
        logs.get().warning(
            "%s: noise.whiten=upstream, but the noise is not that of data which a NoiseAdjustGadget has whitened: "
            "without noise readouts it passes data on as they are. The level is estimated from the data",
            acquired.key,
        )
        warnings += ["NOT_WHITENED", "NOISE_SCALE_MISMATCH"]
        frame, whitener, whitened_upstream = replace(frame, noise_std=None), None, False
    n_coils, most = frame.n_coils, settings.limits.max_coils
    wanted = _virtual_channels(frame) if settings.coils.n_virtual == "auto" else settings.coils.n_virtual or n_coils
    if n_coils > min(most, wanted):
        frame = compressed(frame, min(most, wanted))
        if wanted > most:
            logs.get().warning("%s: %d channels are compressed to limits.max_coils = %d", acquired.key, n_coils, most)
            warnings.append("COMPRESSED")
    acceleration = frame.acceleration
    if not acquired.on_grid:  # of the field of view that is wanted: a larger one has more points, as few samples
        acceleration /= max(1.0, math.prod(fov_mm) / math.prod(acquired.encoding.recon.fov_mm[:2]))
    # off the grid few shots may be meant, as in real-time imaging, unless the header announces more
    if acceleration > settings.limits.max_accel and (acquired.on_grid or "INCOMPLETE" in warnings):
        raise DataError(
            304,
            f"{acquired.key}: one of {acceleration:.1f} points of the k-space grid was sampled, "
            f"limits.max_accel = {settings.limits.max_accel:g}.",
            "The scan was cut off, or its header is wrong; else raise the limit.",
        )
    return PreparedFrame(
        frame=frame,
        fov_mm=fov_mm,
        key=acquired.key,
        encoding=acquired.encoding,
        reference=acquired.reference,
        whitened=whitener is not None,
        warnings=tuple(warnings),
        whitened_upstream=whitened_upstream,
        trajectory=f"{acquired.trajectory_name} ({reading})" if reading else acquired.trajectory_name,
    )


def _is_another_scale(frame: KSpaceFrame) -> bool:
    """Whether the noise cannot be near what is claimed: averages, filters and bandwidths make a factor of two or so."""
    from pogmdm_core.measurement.noise_check import against_kspace

    level = against_kspace(frame)
    too_loud = frame.noise_std is not None and frame.noise_std > _ANOTHER_SCALE * level.quietest > 0
    return too_loud or "NOISE_SCALE_MISMATCH" in level.warnings


def _virtual_channels(frame: KSpaceFrame) -> int:
    """How many virtual channels hold the signal; all where it has none."""
    from pogmdm_core.measurement.noise import channels_with_signal
    from pogmdm_core.measurement.noise_check import against_kspace

    return channels_with_signal(_samples(frame), against_kspace(frame).std)


def _samples(frame: KSpaceFrame) -> torch.Tensor:
    """What was measured, `(coil, n)`."""
    return frame.kspace if frame.mask is None else frame.kspace[:, frame.mask]


def compressed(frame: KSpaceFrame, n_virtual: int) -> KSpaceFrame:
    """Keep the `n_virtual` combinations of whitened channels with most signal; noise stays white."""
    import torch

    from pogmdm_core.measurement.noise import compression_matrix

    matrix, _ = compression_matrix(_samples(frame), n_virtual)
    return replace(frame, kspace=torch.tensordot(matrix.to(torch.complex64), frame.kspace, dims=1))


_Made = tuple["KSpaceFrame", tuple[float, float], tuple[str, ...], str, float]


def _on_grid(acquired: AcquiredFrame, data: np.ndarray, noise_std: float | None, _: GadgetSettings) -> _Made:
    """Frame, field of view `(y, x)` in mm, warnings, nothing to say about where samples lie, and the noise's factor."""
    import torch

    from pogmdm_core import KSpaceFrame

    grid = remove_oversampling(cartesian_grid(acquired, data))
    mask = grid.n_averages > 0
    # the core knows one noise level: the mean power over samples, of which some are averages of more
    averaged = float(np.sqrt(np.mean(1 / grid.n_averages[mask]))) if mask.any() else 1.0
    if noise_std is not None:
        noise_std *= averaged
    kspace = torch.from_numpy(np.ascontiguousarray(grid.kspace))
    frame = KSpaceFrame.cartesian(kspace, torch.from_numpy(mask), noise_std)
    return frame, grid.fov_mm, grid.warnings, "", averaged


def _off_grid(acquired: AcquiredFrame, data: np.ndarray, noise_std: float | None, settings: GadgetSettings) -> _Made:
    """Frame, field of view `(y, x)` in mm, warnings, how positions were read, and the factor of samples and noise."""
    import torch

    from pogmdm_core import KSpaceFrame

    sampled, line = sampled_frame(acquired, data, settings.trajectory)
    logs.get().info("%s: %s", acquired.key, line)
    frame = KSpaceFrame.noncartesian(
        torch.from_numpy(sampled.samples),
        torch.from_numpy(sampled.k),
        sampled.shape,
        None if sampled.density is None else torch.from_numpy(sampled.density),
        None if noise_std is None else noise_std * sampled.scale,
        torch.from_numpy(sampled.shot),
    )
    return frame, sampled.fov_mm, sampled.warnings, sampled.reading, sampled.scale
