"""From the grid an image was reconstructed on to the matrix and field of view the header wants.

Crop (or pad) to the wanted field of view on the same pixels, then resample to the wanted matrix:
band-limited for the complex image (zero-filling in k-space), linear for what must stay
non-negative. The centre pixel n // 2 stays the centre pixel.
"""

from __future__ import annotations

import numpy as np

from gadget.fourier import centred_fft, centred_ifft
from gadget.scan.geometry import Space


def to_recon_complex(image: np.ndarray, fov_mm: tuple[float, float], recon: Space) -> np.ndarray:
    """Map complex images `(..., y, x)` to the recon matrix, band-limited, intensities kept."""
    image = _to_fov(image, fov_mm, recon)
    shape = _matrix(recon)
    old = image.shape[-2:]
    if old == shape:
        return image
    axes = (-2, -1)
    spectrum = centred_fft(image, axes, norm="backward")
    spectrum = _crop_or_pad(spectrum, shape) * (shape[0] * shape[1] / (old[0] * old[1]))
    return centred_ifft(spectrum, axes, norm="backward")


def to_recon_linear(image: np.ndarray, fov_mm: tuple[float, float], recon: Space) -> np.ndarray:
    """Map real images `(..., y, x)` to the recon matrix by linear interpolation: never below the minimum."""
    image = _to_fov(image, fov_mm, recon)
    for axis, size in zip((-2, -1), _matrix(recon), strict=True):
        image = _linear(image, size, axis)
    return image


def _matrix(recon: Space) -> tuple[int, int]:
    return recon.matrix[1], recon.matrix[0]


def _to_fov(image: np.ndarray, fov_mm: tuple[float, float], recon: Space) -> np.ndarray:
    ny, nx = image.shape[-2:]
    wanted = (recon.fov_mm[1], recon.fov_mm[0])
    shape = tuple(max(1, round(n * w / f)) for n, w, f in zip((ny, nx), wanted, fov_mm, strict=True))
    return _crop_or_pad(image, shape)


def _crop_or_pad(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Keep the centre n // 2 in the centre of the last two axes."""
    for axis, size in zip((-2, -1), shape, strict=True):
        n = image.shape[axis]
        shift = size // 2 - n // 2
        if size < n:
            image = np.take(image, range(-shift, -shift + size), axis=axis)
        elif size > n:
            pad = [(0, 0)] * image.ndim
            pad[axis] = (shift, size - n - shift)
            image = np.pad(image, pad)
    return image


def _linear(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    n = image.shape[axis]
    if n == size:
        return image
    position = np.clip((np.arange(size) - size // 2) * (n / size) + n // 2, 0, n - 1)
    low = np.minimum(position.astype(int), n - 2)
    weight = (position - low).reshape((-1,) + (1,) * (-axis - 1))
    return (1 - weight) * np.take(image, low, axis=axis) + weight * np.take(image, low + 1, axis=axis)
