"""A fully sampled scan as the gadget prepares it, and the reference its undersampled versions are held against."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gadget.evaluate.metrics import Reference
from pogmdm_core import KSpaceFrame
from pogmdm_core.errors import DataError

if TYPE_CHECKING:
    from gadget.kspace.prepare import PreparedFrame
    from gadget.scan.frames import AcquiredFrame

_ID_BYTES = 2
_COMPLETE = 0.98  # of the grid: corners and a few lines may be missing


@dataclass(frozen=True)
class FullScan:
    """First frame of a scan.

    Attributes
    ----------
    name
        Stem of its file.
    sha256
        Of the file.
    frame
        Whitened k-space with its noise level.
    reference
        See `reference_of`.
    """

    name: str
    sha256: str
    frame: KSpaceFrame
    reference: Reference


def read_full_scan(path: Path, group: str = "dataset") -> FullScan:
    """Read, whiten and check a scan; DataError E350 when it is not Cartesian and fully sampled."""
    prepared = read_frame(path, group)
    frame = prepared.frame
    if frame.mask is None or float(frame.mask.float().mean()) < _COMPLETE:
        raise DataError(
            350,
            f"{path.name} is not a fully sampled Cartesian scan: R = {frame.acceleration:.2f}.",
            "evaluate undersamples by itself; give it the full scan.",
        )
    if frame.noise_std is None:
        from pogmdm_core.measurement.noise import estimate_frame_noise

        frame = replace(frame, noise_std=estimate_frame_noise(frame) or None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FullScan(path.stem, digest, frame, reference_of(frame))


def read_frame(path: Path, group: str = "dataset") -> PreparedFrame:
    """First frame of a scan as the gadget prepares it."""
    import ismrmrd

    from gadget.files.scan_file import open_scan
    from gadget.kspace.noise_scan import NoiseScan
    from gadget.kspace.prepare import prepare
    from gadget.scan.header import read_geometry
    from gadget.scan.sliding import buffer_for
    from gadget.settings.load import load
    from gadget.stream.wire import ACQUISITION

    settings = load()
    frames: list[AcquiredFrame] = []
    with open_scan(str(path), group) as scan:
        geometry = read_geometry(scan.header, settings.limits.max_matrix)
        buffer = buffer_for(geometry, settings)
        for message in scan.messages:
            if int.from_bytes(message[:_ID_BYTES], "little") == ACQUISITION:
                frames += buffer.add(ismrmrd.Acquisition.deserialize_from(io.BytesIO(message[_ID_BYTES:]).read))
        frames += buffer.flush()
    if not frames:
        raise DataError(331, f"{path.name} holds no image readouts.")
    whitener = NoiseScan(settings.noise.whiten, geometry.noise_bandwidth).whitener(frames[0], buffer.noise)
    return prepare(frames[0], whitener, settings)


def reference_of(frame: KSpaceFrame) -> Reference:
    """Root sum of squares of full data minus its noise floor, 2 noise_std^2 per coil, and the object's mask.

    The object is where the reference, smoothed with a Gaussian of 2 pixels, is above 6 % of its 99th percentile.
    """
    power = (np.abs(coil_images_of(frame).astype(np.complex128)) ** 2).sum(0)
    floor = 2 * (frame.noise_std or 0) ** 2 * frame.n_coils
    image = np.sqrt(np.clip(power - floor, 0, None))
    return Reference(image, object_mask(image), np.sqrt(power))


def coil_images_of(frame: KSpaceFrame) -> np.ndarray:
    """Coil images of full data, complex64 `(coil, y, x)`."""
    from pogmdm_core.measurement.fourier import centred_ifft

    return np.asarray(centred_ifft(frame.kspace).numpy())


def object_mask(image: np.ndarray) -> np.ndarray:
    """See `reference_of`; the reconstruction's own mask (`object_mask` of the core) is smoothed less."""
    import torch
    from scipy.ndimage import gaussian_filter

    from pogmdm_core.uncertainty.combine import above_air

    return np.asarray(above_air(torch.from_numpy(gaussian_filter(image, 2))).numpy())
