"""Wrong noise scans, and what becomes of the image and its standard deviation.

    python benchmarks/noise_scale.py SCAN_full.h5 SCAN_full.h5 ... [--preset fast] [--seed 0]

Every fully sampled Cartesian scan is undersampled by lines (R = 4, 8 % centre) and reconstructed as the gadget does,
with its noise readouts as they are and in twelve wrong ways: of another gain, another dwell time, channels in another
order, and none at all behind a chain that says it has whitened. The reference is the root sum of squares of the full
data, prepared in the same way, less the floor that its true noise makes. A row: PSNR inside the object, standard
deviation over true error, coverage of 95 % intervals, noise used over the true one, warnings.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np

from gadget.evaluate.data import coil_images_of, object_mask
from gadget.evaluate.metrics import Reference, scaled_psnr, uncertainty_metrics
from gadget.evaluate.patterns import lines
from gadget.files.scan_file import open_scan
from gadget.kspace.noise_scan import NoiseScan
from gadget.kspace.prepare import PreparedFrame, prepare
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry
from gadget.settings.load import load
from gadget.stream.budget import ByteBudget
from gadget.stream.wire import ACQUISITION
from pogmdm_core import load_prior, reconstruct


def gain(factor: float) -> Callable[[ismrmrd.Acquisition], None]:
    def change(acq: ismrmrd.Acquisition) -> None:
        acq.data[:] *= factor

    return change


def dwell(factor: float) -> Callable[[ismrmrd.Acquisition], None]:
    def change(acq: ismrmrd.Acquisition) -> None:
        acq.sample_time_us *= factor

    return change


def reversed_channels(acq: ismrmrd.Acquisition) -> None:
    acq.data[:] = acq.data[::-1].copy()


WRONG: dict[str, Callable[[ismrmrd.Acquisition], None] | None] = {
    "as it is": gain(1),
    **{f"gain x {g:g}": gain(g) for g in (1.5, 10, 100, 1000)},
    **{f"gain / {g:g}": gain(1 / g) for g in (1.5, 10, 100, 1000)},
    "dwell x 4": dwell(4),
    "dwell / 4": dwell(0.25),
    "channels reversed": reversed_channels,
    "none, upstream": None,
}


@dataclass(frozen=True)
class Prepared:
    """A frame, and its true noise per real/imaginary part, root mean square over channels, units of the frame."""

    frame: PreparedFrame
    noise: float


def prepared(path: Path, wrong: Callable[[ismrmrd.Acquisition], None] | None, seed: int | None) -> Prepared:
    """The scan with its noise readouts changed, or left out; undersampled unless `seed` is None."""
    settings = load(overrides={"noise.whiten": "auto" if wrong else "upstream"})
    with open_scan(str(path)) as scan:
        geometry = read_geometry(scan.header)
        buffer = AcquisitionBuffer(geometry, "auto", ByteBudget())
        encoding = geometry.encodings[0]
        kept = None if seed is None else lines(encoding.encoded.matrix[1], 4, 0.08, seed)
        frames, true_noise = [], []
        for message in scan.messages:
            if int.from_bytes(message[:2], "little") != ACQUISITION:
                continue
            acq = ismrmrd.Acquisition.deserialize_from(io.BytesIO(message[2:]).read)
            if acq.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
                true_noise.append((acq.data.copy(), acq.sample_time_us))
                if wrong is None:
                    continue
                wrong(acq)
            elif kept is not None and not kept[encoding.row(acq.idx.kspace_encode_step_1)]:
                continue
            frames += buffer.add(acq)
        frames += buffer.flush()
    whitener = NoiseScan(settings.noise.whiten, geometry.noise_bandwidth).whitener(frames[0], buffer.noise)
    assert whitener is not None  # noqa: S101 - a benchmark
    found = prepare(frames[0], whitener, settings)
    noise = whitener.apply(np.concatenate([data for data, _ in true_noise], axis=1)[None])[0]
    dwell_us = frames[0].heads[0].sample_time_us
    ratio = true_noise[0][1] / dwell_us / (geometry.noise_bandwidth or 1.0) if dwell_us else 1.0
    return Prepared(found, float(np.sqrt(np.mean(np.abs(noise) ** 2) * ratio / 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = load(preset=args.preset)
    prior = load_prior(settings.prior)
    sys.stdout.write("scan | noise scan | PSNR dB | std / error | 95 % cover | noise / right | warnings\n")
    for path in args.scans:
        for name, wrong in WRONG.items():
            found, full = prepared(path, wrong, args.seed), prepared(path, wrong, None)
            frame = full.frame.frame
            power = (np.abs(coil_images_of(frame)) ** 2).sum(0) - 2 * full.noise**2 * frame.n_coils
            image = np.sqrt(np.clip(power, 0, None))
            reference = Reference(image, object_mask(image), image)
            result = reconstruct(found.frame.frame, prior, settings)
            assert result.std is not None  # noqa: S101 - a benchmark
            told = uncertainty_metrics(result.image.numpy(), result.std.numpy(), reference, {0.95: 1.96})
            sys.stdout.write(
                f"{path.stem} | {name} | {scaled_psnr(result.image.numpy(), reference):.1f} | "
                f"{told['sd_over_rmse']:.2f} | {told['coverage_95']:.2f} | "
                f"{result.noise_std / found.noise:.2f} | {' '.join((*found.frame.warnings, *result.warnings))}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
