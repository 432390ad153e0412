"""Three ways to know the truth of a retrospective experiment.

``real``: the scan's own samples; the noisy full scan is the reference. Nothing is modelled, but the reference's
noise counts as error, and undersampled noise is part of it. ``synthetic``: the SENSE combination of the full data
with full-data maps, taken as exact, and fresh noise of the measured level: the truth of every pixel is known.
``single``: the root sum of squares seen by one ideal coil, with fresh noise (the single-coil experiment).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from gadget.evaluate.data import FullScan, coil_images_of, object_mask
from gadget.evaluate.metrics import Reference
from gadget.evaluate.patterns import undersample
from pogmdm_core import KSpaceFrame
from pogmdm_core.estimate.joint_start import nlinv
from pogmdm_core.measurement.encoding import EncodingModel

MODES = ("real", "synthetic", "single")


@dataclass(frozen=True)
class Case:
    """One experiment: undersampled data, reference, and the full coil images `(coil, y, x)` they came from."""

    frame: KSpaceFrame
    reference: Reference
    coil_images: np.ndarray


def make_case(scan: FullScan, mode: str, pattern: str, seed: int) -> Case:
    """Undersample a scan; noise is drawn anew for every (scan, pattern, seed), the same on every machine."""
    if mode == "real":
        images = coil_images_of(scan.frame)
        frame = undersample(torch.from_numpy(images), pattern, seed, scan.frame.noise_std)
        return Case(frame, scan.reference, images)
    images, truth = _exact(scan, mode)
    clean = undersample(torch.from_numpy(images), pattern, seed, scan.frame.noise_std)
    frame = _with_noise(clean, f"{scan.sha256} {mode} {pattern} {seed}")
    return Case(frame, Reference(truth, object_mask(truth), truth), images)


def _exact(scan: FullScan, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free coil images `(coil, y, x)` and true magnitude `(y, x)`."""
    if mode == "single":
        truth = scan.reference.plain.astype(np.float32)
        return truth[None].astype(np.complex64), truth
    model = EncodingModel(scan.frame)
    csm = nlinv(model).csm
    image = model.for_image(csm).combine(model.adjoint_data)
    return (csm * image).numpy(), image.abs().numpy()


def _with_noise(frame: KSpaceFrame, name: str) -> KSpaceFrame:
    if frame.noise_std is None:
        return frame
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.view_as_complex(torch.randn(*frame.kspace.shape, 2, generator=generator))
    kspace = frame.kspace + frame.noise_std * noise
    if frame.mask is not None:
        return KSpaceFrame.cartesian(kspace, frame.mask, frame.noise_std)
    return KSpaceFrame.noncartesian(kspace, frame.positions, frame.shape, None, frame.noise_std, frame.shot)
