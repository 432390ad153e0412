"""Rules on shapes, dtypes and values, called only at public boundaries."""

from __future__ import annotations

import math

import torch

from pogmdm_core.errors import DataError


def cartesian_frame(kspace: torch.Tensor, mask: torch.Tensor, noise_std: float | None) -> None:
    """Check the parts of a Cartesian `KSpaceFrame`; raises DataError E305, E330, E331 or E332."""
    if kspace.ndim != 3 or not kspace.is_complex():
        raise DataError(305, f"kspace must be complex (coil, ky, kx), got {kspace.dtype} {tuple(kspace.shape)}.")
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(kspace.shape[1:]):
        raise DataError(
            305,
            f"mask must be bool of shape {tuple(kspace.shape[1:])}, got {mask.dtype} {tuple(mask.shape)}.",
        )
    if min(kspace.shape) < 1:
        raise DataError(305, f"kspace is empty: {tuple(kspace.shape)}.")
    if not bool(mask.any()):
        raise DataError(331, "no k-space sample was measured (the mask is empty).")
    if not bool(torch.isfinite(torch.view_as_real(kspace[:, mask])).all()):
        raise DataError(330, "k-space holds NaN or infinite samples.", "Remove those readouts first.")
    if noise_std is not None and not (math.isfinite(noise_std) and noise_std > 0):
        raise DataError(332, f"noise_std must be a positive number, got {noise_std}.")
