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
            f"mask must be bool (ky, kx) = {tuple(kspace.shape[1:])} for kspace of (coil, ky, kx) = "
            f"{tuple(kspace.shape)}, got {mask.dtype} {tuple(mask.shape)}.",
        )
    if min(kspace.shape) < 1:
        raise DataError(305, f"kspace is empty: {tuple(kspace.shape)}.")
    if not bool(mask.any()):
        raise DataError(331, "no k-space sample was measured (the mask is empty).")
    if not bool(torch.isfinite(torch.view_as_real(kspace[:, mask])).all()):
        raise DataError(330, "k-space holds NaN or infinite samples.", "Remove those readouts first.")
    _noise(noise_std)


def noncartesian_frame(
    samples: torch.Tensor,
    trajectory: torch.Tensor,
    shape: tuple[int, int],
    density: torch.Tensor | None,
    noise_std: float | None,
    shot: torch.Tensor | None,
) -> None:
    """Check the parts of a non-Cartesian `KSpaceFrame`; raises DataError E305, E323, E330, E331 or E332."""
    if samples.ndim != 2 or not samples.is_complex():
        raise DataError(305, f"samples must be complex (coil, n), got {samples.dtype} {tuple(samples.shape)}.")
    n = samples.shape[1]
    if tuple(trajectory.shape) != (2, n) or not trajectory.is_floating_point():
        raise DataError(
            305,
            f"trajectory must be real (2, {n}), rows kx and ky, for samples (coil, n) = {tuple(samples.shape)}, got "
            f"{trajectory.dtype} {tuple(trajectory.shape)}.",
        )
    if samples.shape[0] < 1 or len(shape) != 2 or min(shape) < 1:
        raise DataError(305, f"{samples.shape[0]} channels cannot be reconstructed on a matrix of {tuple(shape)}.")
    if n == 0:
        raise DataError(331, "no k-space sample was measured.")
    if not bool(torch.isfinite(trajectory).all()):
        raise DataError(323, "the trajectory holds NaN or infinite positions.", "Remove those samples first.")
    for name, k, size in (("kx", trajectory[0], shape[1]), ("ky", trajectory[1], shape[0])):
        furthest = float(k.abs().max())
        if furthest > size / 2 * (1 + 1e-4):
            raise DataError(
                323,
                f"the trajectory reaches |{name}| = {furthest:.6g} cycles per field of view; "
                f"a matrix of {size} holds {size / 2:g}.",
                "Enlarge the matrix, or drop those samples.",
            )
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()):
        raise DataError(330, "k-space holds NaN or infinite samples.", "Remove those readouts first.")
    if density is not None:
        if tuple(density.shape) != (n,) or not density.is_floating_point():
            raise DataError(
                305,
                f"density must be real ({n},) for samples of (coil, n) = {tuple(samples.shape)}, got {density.dtype} "
                f"{tuple(density.shape)}.",
            )
        if not bool((torch.isfinite(density) & (density >= 0)).all()) or not bool((density > 0).any()):
            raise DataError(305, "density weights must be finite, not negative, and not all zero.")
    if shot is not None and (tuple(shot.shape) != (n,) or shot.is_floating_point() or shot.is_complex()):
        raise DataError(
            305,
            f"shot must be integers ({n},) for samples of (coil, n) = {tuple(samples.shape)}, got {shot.dtype} "
            f"{tuple(shot.shape)}.",
        )
    _noise(noise_std)


def kept_samples(kept: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Check a selection of samples; raises DataError E305."""
    if kept.dtype != torch.bool or tuple(kept.shape) != shape:
        raise DataError(305, f"kept must be bool of shape {shape}, got {kept.dtype} {tuple(kept.shape)}.")


def operand(name: str, x: torch.Tensor, domain: tuple[int, ...]) -> None:
    """Check what an operator is applied to; raises DataError E305."""
    if tuple(x.shape[-len(domain) :]) != domain:
        raise DataError(305, f"{name} is applied to (..., {_listed(domain)}), got {tuple(x.shape)}.")


def product(left: str, domain: tuple[int, ...], right: str, range_: tuple[int, ...]) -> None:
    """Check that an operator can be applied to what another one gives; raises DataError E305."""
    if domain != range_:
        raise DataError(
            305, f"{left} is applied to (..., {_listed(domain)}), but {right} gives (..., {_listed(range_)})."
        )


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _noise(noise_std: float | None) -> None:
    if noise_std is not None and not (math.isfinite(noise_std) and noise_std > 0):
        raise DataError(332, f"noise_std must be a positive number, got {noise_std}.")
