"""Other people's software as subprocesses: BART, one thread, with the oracle on its free parameter.

BART is called from the user's PATH; nothing of it is shipped. Its version decides what it can do: Debian's 0.8 has
no regularised nlinv. Data are handed over as the same whitened frame all other methods get.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gadget.evaluate.clock import cpu_seconds
from gadget.evaluate.oracle import best_on_grid
from gadget.fourier import centred_fft, centred_ifft
from pogmdm_core import KSpaceFrame
from pogmdm_core.errors import ComputeError
from pogmdm_core.measurement.encoding import fourier_operator

NAMES = ("bart_nlinv", "bart_ecalib", "bart_pics_tv", "bart_pics_wavelet")
_NEWTON_STEPS = range(6, 13)
_LAMBDAS = tuple(0.0005 * 2.0**k for k in range(7))
_ITERATIONS = 400  # its usual 100 are not converged
_TIMEOUT_S = 900
_TRAJECTORY = ["-t", "trajectory"]


@dataclass(frozen=True)
class PeerResult:
    """Magnitude `(y, x)`, coil maps or None, and what the oracle chose."""

    image: np.ndarray
    csm: np.ndarray | None
    note: str


def installed() -> bool:
    """Whether `bart` is on the PATH."""
    return shutil.which("bart") is not None


@cache
def version() -> str:
    """Version line of BART, empty when it is not installed."""
    if not installed():
        return ""
    done = subprocess.run(["bart", "version"], capture_output=True, text=True, check=False, timeout=60)  # noqa: S607
    return done.stdout.strip()


def run(name: str, frame: KSpaceFrame, score: Callable[[np.ndarray], float]) -> PeerResult:
    """Run a peer.

    Parameters
    ----------
    name
        One of `NAMES`. Maps of ``pics`` are ecalib's; nlinv's (at the step the oracle chose) where that finds no
        calibration region, and off the grid.
    score
        Oracle: image to a number, higher is better.

    Raises
    ------
    ComputeError
        E521 not installed, failed, timed out, or not set up for this kind of data.
    """
    if not installed():
        raise ComputeError(521, "bart is not on the PATH.", "Install BART or leave its methods out.")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        _write_frame(base, frame)
        if name == "bart_nlinv":
            return _nlinv(base, frame, score)
        if name == "bart_ecalib":
            if frame.mask is None:
                raise ComputeError(521, f"{name} is not set up for samples off the grid.")
            return _ecalib(base, frame)
        return _pics(base, frame, score, "T:3:0" if name == "bart_pics_tv" else "W:3:0")


def nlinv_by_step(frame: KSpaceFrame) -> Iterator[tuple[int, np.ndarray, float, float]]:
    """Run nlinv with one number of Newton steps after the other: the number, magnitude, CPU and wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        _write_frame(base, frame)
        yield from _nlinv_steps(base, frame)


def _nlinv_steps(base: Path, frame: KSpaceFrame) -> Iterator[tuple[int, np.ndarray, float, float]]:
    where = ["-p", "pattern"] if frame.mask is not None else _TRAJECTORY
    for steps in _NEWTON_STEPS:
        wall, cpu = time.perf_counter(), cpu_seconds()
        _bart(base, "nlinv", f"-i{steps}", *where, "kspace", f"image{steps}", f"maps{steps}")
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        yield steps, np.abs(fit(read_cfl(base / f"image{steps}").squeeze(), frame.shape)), cpu, wall


def _nlinv(base: Path, frame: KSpaceFrame, score: Callable[[np.ndarray], float]) -> PeerResult:
    found = {steps: (score(image), image) for steps, image, _, _ in _nlinv_steps(base, frame)}
    best = max(found, key=lambda steps: found[steps][0])
    maps = read_cfl(base / f"maps{best}").squeeze()
    maps = maps.reshape(*maps.shape[:2], -1)
    csm = np.stack([fit(maps[..., coil], frame.shape) for coil in range(maps.shape[2])])
    return PeerResult(
        found[best][1],
        csm if len(csm) == frame.n_coils else None,
        f"-i {best}, best of {_NEWTON_STEPS.start} to {_NEWTON_STEPS.stop - 1}",
    )


def _pics(base: Path, frame: KSpaceFrame, score: Callable[[np.ndarray], float], regularisation: str) -> PeerResult:
    csm, source = _maps(base, frame, score)
    where = [] if frame.mask is not None else _TRAJECTORY
    write_cfl(base / "maps", np.moveaxis(csm, 0, -1)[:, :, None, :])

    def solve(weight: float) -> np.ndarray:
        chosen = ["-S", "-R", f"{regularisation}:{weight:g}", "-i", str(_ITERATIONS), *where]
        _bart(base, "pics", *chosen, "kspace", "maps", "x")
        return np.abs(read_cfl(base / "x")).squeeze()

    best = best_on_grid(solve, _LAMBDAS, score)
    edge = "; at the edge of the grid" if best.at_edge else ""
    note = f"-R {regularisation}:{best.parameter:g} -i {_ITERATIONS}, best of {best.n_tried}{edge}; maps of {source}"
    return PeerResult(best.image, csm, note)


def _maps(base: Path, frame: KSpaceFrame, score: Callable[[np.ndarray], float]) -> tuple[np.ndarray, str]:
    """Coil maps `(coil, y, x)` and where they are from: ESPIRiT where there is a calibration region, else nlinv."""
    reason = "off the grid"
    if frame.mask is not None:
        try:
            return _espirit_maps(base, frame), "ecalib -m1 -c0"
        except ComputeError as error:  # too few lines at the centre
            reason = str(error.args[0])
    found = _nlinv(base, frame, score)
    if found.csm is None:
        raise ComputeError(521, f"bart has no coil maps here: neither of ecalib ({reason}) nor of nlinv.")
    rss = np.sqrt((np.abs(found.csm) ** 2).sum(0))
    return found.csm / np.maximum(rss, 1e-6 * rss.max()), f"nlinv {found.note}"


def _ecalib(base: Path, frame: KSpaceFrame) -> PeerResult:
    """ESPIRiT maps, and for an image the zero-filled coil images combined with them."""
    csm = _espirit_maps(base, frame)
    coil_images = fourier_operator(frame).adjoint(frame.kspace).numpy()
    return PeerResult(np.abs((csm.conj() * coil_images).sum(0)), csm, "maps alone, -m1 -c0")


def _espirit_maps(base: Path, frame: KSpaceFrame) -> np.ndarray:
    _bart(base, "ecalib", "-m1", "-c0", "kspace", "maps")
    maps = read_cfl(base / "maps")[:, :, 0, :].reshape(*frame.shape, -1)
    return np.ascontiguousarray(np.moveaxis(maps[..., : frame.n_coils], -1, 0))


def _write_frame(base: Path, frame: KSpaceFrame) -> None:
    """K-space `(y, x, 1, coil)` and its pattern, or samples `(1, n, 1, coil)` and positions `(3, n)` in (y, x, 0)."""
    kspace = frame.kspace.numpy()
    if frame.mask is not None:
        write_cfl(base / "kspace", kspace.transpose(1, 2, 0)[:, :, None, :])
        write_cfl(base / "pattern", frame.mask.numpy().astype(np.complex64))
        return
    kx, ky = frame.positions.numpy()
    write_cfl(base / "kspace", kspace.T[None, :, None, :])
    write_cfl(base / "trajectory", np.stack([ky, kx, np.zeros_like(kx)]).astype(np.complex64))


def _bart(base: Path, *arguments: str) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = ["bart", *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=base, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as late:
        raise ComputeError(521, f"bart {arguments[0]} took more than {_TIMEOUT_S} s.") from late
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ComputeError(521, f"bart {arguments[0]} failed with status {done.returncode}: {last[:120]}.")


def fit(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bring what nlinv answers off the grid, where it has its own idea of the matrix, to `shape`, complex.

    More pixels are a larger field of view, of which the centre counts. Fewer are the same field of view, for nlinv goes
    by the largest position that was sampled: zeros around its k-space.
    """
    if image.ndim != 2:
        raise ComputeError(521, f"bart answered with an image of {image.shape}, expected {shape}.")
    cropped = _centre(image, tuple(map(min, image.shape, shape)))
    if cropped.shape == shape:
        return cropped
    axes = (0, 1)
    spectrum = centred_fft(cropped, axes, norm="backward")
    padded = np.zeros(shape, spectrum.dtype)
    _centre(padded, cropped.shape)[...] = spectrum
    return centred_ifft(padded, axes, norm="backward")


def _centre(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    first = [n // 2 - wanted // 2 for n, wanted in zip(array.shape, shape, strict=True)]
    return array[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]


def write_cfl(base: Path, array: np.ndarray) -> None:
    """Write an array in BART's format: a header of 16 sizes, complex64 in column-major order."""
    shape = list(array.shape) + [1] * (16 - array.ndim)
    base.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(base.with_suffix(".cfl"))


def read_cfl(base: Path) -> np.ndarray:
    """Read what BART wrote, 16 axes."""
    shape = [int(n) for n in base.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(base.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")
