"""Reconstruct undersampled scans with `pogmdm run` and compare with their fully sampled versions.

    python benchmarks/real_data.py --data DIR [--preset default] [--out DIR] [SCAN ...]

SCAN is the stem of a pair ``SCAN_R4.h5`` / ``SCAN_full.h5``. Everything goes through the command line and
the wire protocol; only the reference is computed here. Metrics inside the object mask (smoothed reference
above 6 % of its 99th percentile) against the whitened root sum of squares of the full scan, corrected for
its noise floor, after one least-squares scale. BART's nlinv joins when `bart` is on the PATH, at every
Newton step from 6 to 12: the best is what ours is held against.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from gadget.buffer import AcquisitionBuffer
from gadget.grid import to_recon_linear
from gadget.header import read_geometry
from gadget.prepare import PreparedFrame, make_whitener, prepare
from gadget.settings import load
from pogmdm_core import zero_filled
from pogmdm_core.operators.fourier import centred_ifft

DEFAULT_SCANS = ("pulseq_brain16", "espirit_brain8", "pulseq_phantom16", "larson_knee1")


@dataclass
class Reference:
    """Noise-corrected magnitude and object mask, `(y, x)`."""

    image: np.ndarray
    mask: np.ndarray


def read_frame(path: Path) -> PreparedFrame:
    """First frame of a scan, whitened, as the gadget prepares it."""
    settings = load()
    with ismrmrd.Dataset(str(path), "dataset", create_if_needed=False) as data:
        geometry = read_geometry(data.read_xml_header(), 1024)
        buffer = AcquisitionBuffer(geometry, settings.trigger, settings.limits.max_buffer_bytes)
        frames = []
        for i in range(data.number_of_acquisitions()):
            frames += list(buffer.add(data.read_acquisition(i)))
        frames += list(buffer.flush())
    whitener = make_whitener(buffer.noise, frames[0].data.shape[1], "auto", geometry.noise_bandwidth)
    return prepare(frames[0], whitener, settings)


def to_header_grid(image: np.ndarray, frame: PreparedFrame) -> np.ndarray:
    return to_recon_linear(image, frame.fov_mm, frame.acquired.encoding.recon)


def read_reference(path: Path) -> Reference:
    frame = read_frame(path)
    power = (centred_ifft(frame.frame.kspace).abs() ** 2).sum(0).numpy()
    floor = 2 * (frame.frame.noise_std or 0) ** 2 * frame.frame.n_coils
    image = to_header_grid(np.sqrt(np.clip(power - floor, 0, None)), frame)
    smooth = gaussian_filter(image, 2)
    return Reference(image, smooth > 0.06 * np.quantile(smooth, 0.99))


def metrics(image: np.ndarray, reference: Reference) -> tuple[float, float, float, float]:
    """PSNR (dB, peak inside the mask), SSIM (mean over the mask), NMSE, and the scale that was applied."""
    ref, mask = reference.image, reference.mask
    scale = float((image[mask] * ref[mask]).sum() / (image[mask] ** 2).sum())
    error = scale * image - ref
    peak = float(ref[mask].max())
    psnr = 10 * np.log10(peak**2 / np.mean(error[mask] ** 2))
    _, ssim = structural_similarity(scale * image, ref, data_range=peak, full=True)
    return float(psnr), float(ssim[mask].mean()), float((error[mask] ** 2).sum() / (ref[mask] ** 2).sum()), scale


def rank_correlation(std: np.ndarray, error: np.ndarray, mask: np.ndarray, window: int = 7) -> float:
    """Spearman correlation of windowed root mean squares of std and error inside the mask."""
    a, b = (np.sqrt(uniform_filter(v.astype(np.float64) ** 2, window))[mask] for v in (std, error))
    return float(spearmanr(a, b)[0])


def nlinv(frame: PreparedFrame, steps: int) -> np.ndarray:
    """Run BART's joint reconstruction of the same whitened data, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        kspace = frame.frame.kspace.numpy().transpose(1, 2, 0)[:, :, None, :]
        _write_cfl(base / "k", kspace)
        _write_cfl(base / "p", frame.frame.mask.numpy().astype(np.complex64))
        command = ["bart", "nlinv", f"-i{steps}", "-p", str(base / "p"), str(base / "k"), str(base / "x")]
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        subprocess.run(command, check=True, capture_output=True, env=environment)  # noqa: S603
        return to_header_grid(np.abs(_read_cfl(base / "x")).squeeze(), frame)


def _write_cfl(base: Path, array: np.ndarray) -> None:
    shape = list(array.shape) + [1] * (16 - array.ndim)
    base.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(base.with_suffix(".cfl"))


def _read_cfl(base: Path) -> np.ndarray:
    shape = [int(n) for n in base.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(base.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")


def run(scan: Path, out: Path, preset: str) -> dict[str, np.ndarray]:
    """`pogmdm run` with all maps; series by name."""
    output = out / f"{scan.stem}_{preset}.h5"
    command = [sys.executable, "-m", "gadget.cli", "run", str(scan), "-o", str(output), "--preset", preset]
    command += ["--set", "output.maps=image,mean,map,std", "--overwrite", "--png", str(out / scan.stem)]
    subprocess.run(command, check=True)  # noqa: S603
    names = {1: "image", 2: "mean", 4: "map", 10: "std"}
    with ismrmrd.Dataset(str(output), "dataset", create_if_needed=False) as data:
        return {name: data.read_image(f"image_{number}", 0).data[0, 0] for number, name in names.items()}


def compare(name: str, data: Path, out: Path, preset: str) -> None:
    scan = data / f"{name}_R4.h5"
    reference = read_reference(data / f"{name}_full.h5")
    begin = time.monotonic()
    images = run(scan, out, preset)
    seconds = time.monotonic() - begin
    frame = read_frame(scan)
    rows = {"zero-filled": to_header_grid(zero_filled(frame.frame).numpy(), frame)}
    if shutil.which("bart"):
        found = {f"BART nlinv -i{n}": nlinv(frame, n) for n in range(6, 13)}
        best = max(found, key=lambda key: metrics(found[key], reference)[0])
        rows[best + " (best)"] = found[best]
    rows |= {"ours, MAP": images["map"], "ours, mean": images["mean"]}
    lines = [
        f"\n{name}: {reference.image.shape}, R = {frame.frame.acceleration:.2f}, {preset}, {seconds:.0f} s in all",
        "| method | PSNR dB | SSIM | NMSE |",
        "|---|---|---|---|",
    ]
    for label, image in rows.items():
        psnr, ssim, nmse, _ = metrics(image, reference)
        lines.append(f"| {label} | {psnr:.2f} | {ssim:.3f} | {nmse:.4f} |")
    for label in ("map", "mean"):
        scale = metrics(images[label], reference)[3]
        error, std = scale * images[label] - reference.image, scale * images["std"]
        ratio = np.sqrt(np.mean(std[reference.mask] ** 2) / np.mean(error[reference.mask] ** 2))
        rank = rank_correlation(std, error, reference.mask)
        lines.append(
            f"7x7 rank correlation of std with |error of {label}|: {rank:.2f}; rms std / rms error {ratio:.2f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", default=list(DEFAULT_SCANS))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("POGMDM_DATA", "../shared/data")) / "mrd")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out", type=Path, default=Path("demo/real"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.scans:
        compare(name, args.data, args.out, args.preset)


if __name__ == "__main__":
    main()
