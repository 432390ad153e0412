"""Cartesian readouts onto the k-space grid; others are `gadget.kspace.noncartesian`'s."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ismrmrd
import numpy as np

from gadget.errors import DataError
from gadget.fourier import centred_fft, centred_ifft
from gadget.kspace.readout import centre_sample, is_reversed
from gadget.scan.frames import AcquiredFrame
from gadget.scan.geometry import n_wanted

_MAX_LOST = 0.05  # share of the samples that may fall outside the grid


@dataclass(frozen=True)
class Grid:
    """K-space on a grid, DC at `(ny // 2, nx // 2)`.

    Attributes
    ----------
    kspace
        complex64 `(coil, ny, nx)`, mean of what was measured, 0 elsewhere.
    n_averages
        How often each point was measured, int `(ny, nx)`.
    fov_mm
        Field of view `(y, x)`, mm.
    wanted_fov_x_mm
        Field of view along the readout that the header wants.
    warnings
        Short upper-case words.
    """

    kspace: np.ndarray
    n_averages: np.ndarray
    fov_mm: tuple[float, float]
    wanted_fov_x_mm: float
    warnings: tuple[str, ...] = ()


def cartesian_grid(acquired: AcquiredFrame, data: np.ndarray) -> Grid:
    """Place readouts by row, centre sample, discarded samples and direction; average repeats.

    Parameters
    ----------
    acquired
        Where the samples belong.
    data
        Their values (whitened perhaps), complex64 `(readout, coil, sample)`.

    Raises
    ------
    DataError
        E307 when more than 5 % of the samples fall outside the encoded matrix.
    """
    encoded, recon = acquired.encoding.encoded, acquired.encoding.recon
    n_samples = data.shape[2]
    nx, fov_x = encoded.matrix[0], encoded.fov_mm[0]
    cropped = n_wanted(nx, fov_x, recon.fov_mm[0])
    if n_samples == cropped < nx and all(centre_sample(h, cropped) == n_samples // 2 for h in acquired.heads):
        nx, fov_x = cropped, recon.fov_mm[0]  # a gadget upstream has removed the oversampling
    ny = encoded.matrix[1]
    kspace = np.zeros((data.shape[1], ny, nx), np.complex64)
    n_averages = np.zeros((ny, nx), np.int32)
    n_measured = n_placed = 0
    for readout, live, row, head in zip(data, _live(acquired), acquired.rows, acquired.heads, strict=True):
        first, measured = sample_columns(head, nx)
        values = readout
        if is_reversed(head):
            values, live = readout[:, ::-1], live[::-1]
        measured = _without_padding(live, measured)
        low = max(measured.start, -first)
        high = min(measured.stop, nx - first)
        n_measured += measured.stop - measured.start
        n_placed += max(0, high - low)
        if low >= high:
            continue
        kspace[:, row, first + low : first + high] += values[:, low:high]
        n_averages[row, first + low : first + high] += 1
    if n_measured - n_placed > _MAX_LOST * n_measured:
        raise DataError(
            307,
            f"{n_measured - n_placed} of {n_measured} samples fall outside the grid: readouts have {n_samples}, "
            f"encodedSpace.matrixSize.x is {nx}.",
            "Correct the header or center_sample where the file was made.",
        )
    kspace /= np.maximum(n_averages, 1)
    warnings = ("OUTSIDE_READOUT",) if n_placed < n_measured else ()
    return Grid(kspace, n_averages, (encoded.fov_mm[1], fov_x), recon.fov_mm[0], warnings)


def _live(acquired: AcquiredFrame) -> np.ndarray:
    """Where some channel is not exactly 0, bool `(readout, sample)`, before anything is done to the samples.

    Of whole numbers single samples may be 0, too: there it is where some line of the same direction is not 0.
    """
    live = np.any(acquired.data != 0, axis=1)
    if acquired.are_whole_numbers:
        backwards = np.array([is_reversed(head) for head in acquired.heads])
        for lines in (backwards, ~backwards):
            live[lines] = live[lines].any(axis=0)
    return live


def _without_padding(live: np.ndarray, measured: slice) -> slice:
    """Leave out exact zeros at either end: padding, whatever the discard counts say.

    Receivers never give exact zeros, and zeros taken for samples make the noise look far too small. A readout of
    nothing but zeros is kept: that is a dead receiver, or a simulation.
    """
    found = np.flatnonzero(live[measured])
    if found.size == 0:
        return measured
    return slice(measured.start + int(found[0]), measured.start + int(found[-1]) + 1)


def sample_columns(head: ismrmrd.AcquisitionHeader, nx: int) -> tuple[int, slice]:
    """Where the samples of a readout lie, in order of increasing k.

    Parameters
    ----------
    head
        Header of the readout.
    nx
        Columns of the grid.

    Returns
    -------
        Column of sample 0 (may be negative), and the range of samples that were measured.
    """
    pre, post = head.discard_pre, head.discard_post
    if is_reversed(head):
        pre, post = post, pre
    return nx // 2 - centre_sample(head, nx), slice(pre, head.number_of_samples - post)


def remove_oversampling(grid: Grid) -> Grid:
    """Crop the readout to the wanted field of view in image space (unitary transforms).

    Exact where every row with data is complete. Rows measured in part (asymmetric echo) would
    lose their mask, so then nothing is done here and the image is cropped at the end.
    """
    n_averages = grid.n_averages
    nx = n_averages.shape[1]
    keep = n_wanted(nx, grid.fov_mm[1], grid.wanted_fov_x_mm)
    if keep == nx or not (n_averages == n_averages[:, :1]).all():
        return grid
    start = nx // 2 - keep // 2
    lines = centred_ifft(grid.kspace, (-1,))[..., start : start + keep]
    return replace(
        grid,
        kspace=centred_fft(lines, (-1,)).astype(np.complex64),
        n_averages=n_averages[:, start : start + keep],
        fov_mm=(grid.fov_mm[0], grid.fov_mm[1] * keep / nx),
    )
