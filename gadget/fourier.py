"""The centred Fourier transform of numpy arrays: zero frequency, like the centre of an image, at n // 2."""

from __future__ import annotations

from typing import Literal

import numpy as np

Norm = Literal["backward", "ortho", "forward"]


def centred_fft(image: np.ndarray, axes: tuple[int, ...], norm: Norm = "ortho") -> np.ndarray:
    """Transform over `axes`; unitary, unless `norm` (numpy's) says otherwise."""
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(image, axes), axes=axes, norm=norm), axes)


def centred_ifft(kspace: np.ndarray, axes: tuple[int, ...], norm: Norm = "ortho") -> np.ndarray:
    """Inverse of `centred_fft`."""
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes), axes=axes, norm=norm), axes)
