"""Wrong coils, wrong readouts, objects larger than the field of view: what becomes of image and standard deviation.

    python benchmarks/model_faults.py SCAN_full.h5 SCAN_full.h5 ... [--preset fast] [--only delay,wrap]

Every fully sampled Cartesian scan is taken as exact (its SENSE combination with maps from all its data), so that the
true image is known; faults are put in, noise of the measured level is added, and it is undersampled by lines (R = 4,
8 % centre) unless the fault says otherwise:

- `4 % centre`, `no centre`, `R 2, no centre`: few or no lines that tell the coils;
- `drift`: a gain that moves by 5 % over k-space; `gains`, `phases`: of every line by 5 %, by 0.1 radian;
- `ghost`: odd lines by 0.2 radian; `delay 0.5`, `delay 1`: spokes (R = 6) start too late along x by so many samples;
- `wrap 15`, `wrap 30`: the field of view holds so many per cent less than the object; `wrap 0`: 6 % more.

A row: PSNR inside the object, residual over noise near the centre of k-space, standard deviation over true error (both
root mean squares), coverage of 95 % intervals, rank correlation over 7x7 windows, labels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gadget.evaluate.data import FullScan, object_mask, read_full_scan
from gadget.evaluate.metrics import Reference, scaled_psnr, uncertainty_metrics
from gadget.evaluate.patterns import lines, mask, trajectory
from gadget.evaluate.truth import make_case
from gadget.settings.load import load
from pogmdm_core import KSpaceFrame, load_prior, reconstruct
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.measurement.noncartesian import NonCartesianFourier

Case = tuple[str, KSpaceFrame, Reference]


class Scanner:
    """Samples exact coil images `(coil, y, x)` with fresh noise."""

    def __init__(self, noise_std: float, seed: int) -> None:
        self._noise_std, self._generator = noise_std, torch.Generator().manual_seed(seed)

    def _noisy(self, samples: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(*samples.shape, 2, generator=self._generator)
        return samples + self._noise_std * torch.view_as_complex(noise)

    def on_grid(self, kspace: torch.Tensor, sampled: torch.Tensor) -> KSpaceFrame:
        return KSpaceFrame.cartesian(self._noisy(kspace), sampled, self._noise_std)

    def spokes(self, coil_images: torch.Tensor, delay: float) -> KSpaceFrame:
        ny, nx = (int(n) for n in coil_images.shape[-2:])
        told, shot = trajectory("radial6", (ny, nx))
        true = told.clone()
        for number in shot.unique():
            at = torch.nonzero(shot == number).squeeze(1)
            along = told[0, at[-1]] - told[0, at[0]]
            length = torch.linalg.vector_norm(told[:, at[-1]] - told[:, at[0]])
            true[0, at] = (told[0, at] + delay * along / length).clamp(-nx / 2, nx / 2 - 1e-6)
        samples = NonCartesianFourier(true, (ny, nx)).forward(coil_images)
        return KSpaceFrame.noncartesian(self._noisy(samples), told, (ny, nx), None, self._noise_std, shot)


def faults(scan: FullScan) -> Iterator[Case]:
    """Every fault of one scan, with the truth."""
    exact = make_case(scan, "synthetic", "cartesian4", 0)
    coil_images, truth, noise_std = torch.from_numpy(exact.coil_images), exact.reference, scan.frame.noise_std
    assert noise_std is not None  # noqa: S101 - read_full_scan whitens
    ny, nx = (int(n) for n in coil_images.shape[-2:])
    scanner, full, usual = Scanner(noise_std, 3), centred_fft(coil_images), mask("cartesian4", (ny, nx), 0)
    generator = torch.Generator().manual_seed(7)
    line = torch.arange(ny)

    yield "none", scanner.on_grid(full, usual), truth
    yield "4 % centre", scanner.on_grid(full, mask("cartesian4_acs4", (ny, nx), 0)), truth
    yield "no centre", scanner.on_grid(full, lines(ny, 4, 0.0, 0)[:, None].repeat(1, nx)), truth
    yield "R 2, no centre", scanner.on_grid(full, (line % 2 == 0)[:, None].repeat(1, nx)), truth
    factors = {
        "drift": 1 + 0.05 * torch.sin(3 * math.pi * line / ny),
        "gains": 1 + 0.05 * torch.randn(ny, generator=generator),
        "phases": torch.polar(torch.ones(ny), 0.1 * torch.randn(ny, generator=generator)),
        "ghost": torch.polar(torch.ones(ny), 0.2 * (line % 2)),
    }
    for name, factor in factors.items():
        yield name, scanner.on_grid(full * factor[:, None], usual), truth
    for delay in (0.0, 0.5, 1.0):
        yield f"delay {delay:g}", scanner.spokes(coil_images, delay), truth
    for percent in (0, 15, 30):
        yield (f"wrap {percent}", *_wrapped(scanner, exact.coil_images, truth.mask, percent))


def _wrapped(
    scanner: Scanner, coil_images: np.ndarray, inside: np.ndarray, percent: int
) -> tuple[KSpaceFrame, Reference]:
    """The same object on a field of view that is shorter along y; what folds is added to what is there."""
    rows = np.flatnonzero(inside.any(1))
    centre, extent = (rows[0] + rows[-1] + 1) // 2, rows[-1] - rows[0] + 1
    n = 2 * round(extent * ((1 - percent / 100) if percent else 1.06) / 2)
    folded = np.zeros((len(coil_images), n, coil_images.shape[2]), np.complex64)
    for y in range(coil_images.shape[1]):
        folded[:, (y - centre + n // 2) % n] += coil_images[:, y]
    seen = np.linalg.norm(folded, axis=0)
    frame = scanner.on_grid(centred_fft(torch.from_numpy(folded)), mask("cartesian4", (n, folded.shape[2]), 0))
    return frame, Reference(seen, object_mask(seen), seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--only", default="", help="faults whose names hold one of these words, by commas")
    args = parser.parse_args()
    settings = load(preset=args.preset)
    prior = load_prior(settings.prior)
    print("| scan | fault | PSNR | model error | std / error | 95 % covers | rank 7x7 | labels |")  # noqa: T201
    print("|---|---|---|---|---|---|---|---|")  # noqa: T201
    for path in args.scans:
        scan = read_full_scan(path)
        for name, frame, truth in faults(scan):
            if not any(word in name for word in args.only.split(",")):
                continue
            result = reconstruct(frame, prior, settings)
            cells = ["", "", ""]
            if result.std is not None:
                found = uncertainty_metrics(result.image.numpy(), result.std.numpy(), truth, result.interval_factors)
                cells = [f"{found[key]:.2f}" for key in ("sd_over_rmse", "coverage_95", "rank_7x7")]
            row = [
                scan.name,
                name,
                f"{scaled_psnr(result.image.numpy(), truth):.2f}",
                f"{result.model_error:.2f}",
                *cells,
            ]
            print("|", " | ".join([*row, " ".join(result.warnings)]), "|", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
