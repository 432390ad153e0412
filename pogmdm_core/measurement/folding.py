"""A field of view twice as large as a scan's, whose samples are every other line of its k-space, and the way back.

Each pixel of the scan's field of view is two places of the larger one, n pixels apart along the axis; what a coil sees
of both adds up.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import root_sum_of_squares


def doubled(frame: KSpaceFrame, axis: int) -> KSpaceFrame:
    """Return the samples of a Cartesian frame as those of a field of view twice as large along an axis (0: y, 1: x)."""
    factor = 1 / amplitude(axis)
    shape = (2 * frame.shape[0], frame.shape[1]) if axis == 0 else (frame.shape[0], 2 * frame.shape[1])
    return replace(
        frame,
        kspace=between_lines(frame.kspace, axis) * factor,
        mask=None if frame.mask is None else between_lines(frame.mask, axis),
        shape=shape,
        noise_std=None if frame.noise_std is None else frame.noise_std * factor,
        noise_floor=frame.noise_floor * factor,
        doubled_axis=axis,
    )


def as_scanned(frame: KSpaceFrame) -> KSpaceFrame:
    """Undo `doubled`; other frames are returned as they are."""
    axis = frame.doubled_axis
    if axis is None or frame.mask is None:
        return frame
    mask, factor = own_lines(frame.mask, axis), amplitude(axis)
    return replace(
        frame,
        kspace=own_lines(frame.kspace, axis) * factor,
        mask=mask,
        shape=(mask.shape[0], mask.shape[1]),
        noise_std=None if frame.noise_std is None else frame.noise_std * factor,
        noise_floor=frame.noise_floor * factor,
        doubled_axis=None,
    )


def amplitude(axis: int | None) -> float:
    """What `as_scanned` multiplies samples and their noise with: unitary transforms of half as many pixels."""
    return 1.0 if axis is None else 2**0.5


def between_lines(values: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Lines of a grid `(..., ky, kx)` as every other line of one twice as long along the axis, if any; zero between."""
    if axis is None:
        return values
    shape = list(values.shape)
    shape[axis - 2] *= 2
    return values.new_zeros(shape).index_copy_(axis - 2, _own(values.shape[axis - 2], values.device), values)


def own_lines(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Undo `between_lines`."""
    return values.index_select(axis - 2, _own(values.shape[axis - 2] // 2, values.device))


def _own(n: int, device: torch.device) -> torch.Tensor:
    """Where n lines lie among 2 n; that of DC, n // 2, at n."""
    return 2 * torch.arange(n, device=device) + n % 2


def places(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Both places that share each pixel of the scan's field of view: `(..., y, x)` to `(2, ..., y, x)`, axis halved.

    The centre of the larger one, n, belongs to that of the scan's, n // 2.
    """
    n = values.shape[axis - 2] // 2
    return torch.stack(values.roll(n // 2 - n, axis - 2).chunk(2, axis - 2))


def shown(image: torch.Tensor, csm: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Magnitude that is shown of a complex image `(y, x)` with coils `(coil, y, x)`: folded where there is an axis."""
    return image.abs() if axis is None else root_sum_of_squares(places(csm * image, axis).sum(0))


def shown_magnitudes(
    magnitudes: torch.Tensor, image: torch.Tensor, csm: torch.Tensor, axis: int | None
) -> torch.Tensor:
    """What is shown of magnitudes `(..., y, x)` that have the phase of an image; see `shown`."""
    if axis is None:
        return magnitudes
    turns = places(torch.polar(torch.ones_like(image.real), image.angle()), axis)
    first, second = places(csm, axis) * turns[:, None]
    overlap = (first.conj() * second).sum(0).real
    one, other = places(magnitudes, axis)
    squared: torch.Tensor = one.square() + other.square() + 2 * overlap * one * other
    return squared.clamp_min(0).sqrt()
