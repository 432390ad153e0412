"""Denoising PSNR of every shipped prior beside total variation and BM3D, as a Markdown table.

    python benchmarks/denoising.py --images DIR_OR_FILES... --scans DIR --settings training/default.yaml -o table.md

Groups: (a) per anatomy, the subjects held out from training (same split, same central 128 x 128 crops);
(b) root-sum-of-squares images of fully sampled scans never trained on (noisy themselves), cut into tiles inside
the object. Images are scaled to a 99.9 % quantile of 1, white Gaussian noise is added, PSNR has peak 1 and is
averaged over crops. Total variation: scikit-image's Chambolle, for each image and level the best weight of the grid
level * 1.2^j, j = -8..8 (oracle). BM3D (PyPI `bm3d`, licensed for non-commercial use) is told the level; at more than
a second per crop and level it runs on some crops of each group, and differences to it are on those crops only.
The priors are periodic and a crop is not: rows "mirrored" continue the noisy crop by 48 mirrored pixels on each side
before denoising (as TV and BM3D treat borders themselves), rows "periodic" denoise it as it is (as training validates).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle

from gadget.evaluate.data import read_full_scan
from gadget.training.image_files import read_images
from gadget.training.train import _read_settings
from pogmdm_core import Prior, load_prior
from pogmdm_core.prior.training import VALIDATION_LEVELS, TrainingImage, split_by_subject, validation_crops
from pogmdm_core.prior.weights import shipped_weights

SCANS = ("larson_knee1", "espirit_brain8", "pulseq_brain16")
OUTSIDE = (0.003, 0.8, 1.5)
SIDE = 128
MIRROR = 48
TV_STEPS = range(-8, 9)


@dataclass
class Group:
    """Clean images `(y, x)` judged together."""

    name: str
    crops: list[np.ndarray]


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - truth) ** 2)))


def held_out_groups(images: list[TrainingImage], share: float, seed: int, limit: int) -> list[Group]:
    _, held_out = split_by_subject(images, share, seed)
    groups = []
    for anatomy in sorted({i.anatomy for i in held_out}):
        crops = validation_crops([i for i in held_out if i.anatomy == anatomy], limit)
        different = list({crop.numpy().tobytes(): crop.numpy() for crop in crops}.values())
        groups.append(Group(f"{anatomy}, held-out subjects", different))
    return groups


def scan_group(path: Path, limit: int) -> Group:
    reference = read_full_scan(path).reference
    rows, columns = (np.flatnonzero(reference.mask.any(axis)) for axis in (1, 0))
    image = reference.image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    image = image / np.quantile(image, 0.999)
    starts = [_starts(n) for n in image.shape]
    tiles = [image[y : y + SIDE, x : x + SIDE] for y in starts[0] for x in starts[1]]
    return Group(f"{path.stem}, never trained on", tiles[:limit])


def _starts(length: int) -> list[int]:
    """Where tiles begin so that they cover the length, overlapping where they must; one when it is short."""
    count, room = max(1, -(-length // SIDE)), max(0, length - SIDE)
    return [room // 2] if count == 1 else [round(i) for i in np.linspace(0, room, count)]


def noisy_versions(crops: list[np.ndarray], level: float, seed: int) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return [c + level * torch.randn(c.shape, generator=generator).numpy() for c in crops]


def tv_oracle(noisy: np.ndarray, truth: np.ndarray, level: float) -> float:
    """Best PSNR over the grid of weights, by climbing: the PSNR has one maximum in the weight."""
    known: dict[int, float] = {}

    def at(j: int) -> float:
        if j not in known:
            known[j] = psnr(denoise_tv_chambolle(noisy, weight=level * 1.2**j), truth)
        return known[j]

    best = 0
    while True:
        better = max((j for j in (best - 1, best, best + 1) if j in TV_STEPS), key=at)
        if better == best:
            return at(best)
        best = better


def by_prior(prior: Prior, noisy: Iterable[np.ndarray], level: float, pad: int) -> list[np.ndarray]:
    found = []
    for image in noisy:
        wide = torch.from_numpy(np.pad(image, pad, mode="symmetric"))
        found.append(prior.denoise(wide, level).numpy()[pad : pad + image.shape[0], pad : pad + image.shape[1]])
    return found


def measure(
    groups: list[Group], priors: dict[str, Prior], bm3d: Callable[..., np.ndarray] | None, n_bm3d: int
) -> dict[str, dict[str, np.ndarray]]:
    """PSNR per group and method, `(level, crop)`; NaN where a method did not run."""
    tables = {}
    for group in groups:
        shape = (len(VALIDATION_LEVELS), len(group.crops))
        table = {name: np.full(shape, np.nan) for name in ("noisy", "TV, oracle", "BM3D", *_rows_of(priors))}
        for i, level in enumerate(VALIDATION_LEVELS):
            noisy = noisy_versions(group.crops, level, 1000 + i)
            table["noisy"][i] = list(map(psnr, noisy, group.crops))
            table["TV, oracle"][i] = [tv_oracle(n, c, level) for n, c in zip(noisy, group.crops, strict=True)]
            for name, prior in priors.items():
                for row, pad in zip(_rows_of([name]), (MIRROR, 0), strict=True):
                    table[row][i] = list(map(psnr, by_prior(prior, noisy, level, pad), group.crops))
            if bm3d is not None:
                for j in _spread(len(noisy), n_bm3d):
                    table["BM3D"][i, j] = psnr(bm3d(noisy[j], sigma_psd=level), group.crops[j])
        tables[group.name] = table
        print(f"{group.name}: {len(group.crops)} crops, {time.perf_counter() - START:.0f} s", file=sys.stderr)  # noqa: T201
    return tables


def _rows_of(names: Iterable[str]) -> list[str]:
    return [f"{name} {border}" for name in names for border in ("mirrored", "periodic")]


def _spread(n: int, count: int) -> list[int]:
    return sorted({round(v) for v in np.linspace(0, n - 1, min(n, count))})


def markdown(tables: dict[str, dict[str, np.ndarray]], note: str) -> str:
    lines = [note, ""]
    summaries = {}
    for group, table in tables.items():
        shared = np.isfinite(table["BM3D"][0])
        summaries[group] = _summary(table, shared)
        title = f"{group} ({len(shared)} crops, BM3D on {shared.sum()})"
        lines += _rows(title, summaries[group])
    names = next(iter(tables.values())).keys()
    mean = {name: tuple(np.mean([s[name][i] for s in summaries.values()], 0) for i in range(3)) for name in names}
    return "\n".join(lines + _rows("mean over the groups", mean))


Summary = dict[str, tuple[np.ndarray, ...]]


def _summary(table: dict[str, np.ndarray], shared: np.ndarray) -> Summary:
    """Per method and level: PSNR, difference to TV, difference to BM3D on the crops it ran on."""
    missing = np.full(len(VALIDATION_LEVELS), np.nan)
    summary = {}
    for name, values in table.items():
        ran = np.isfinite(values[0])
        level_mean = values[:, ran].mean(1) if ran.any() else missing
        to_tv = (values - table["TV, oracle"])[:, ran].mean(1) if ran.any() else missing
        to_bm3d = (values - table["BM3D"])[:, shared].mean(1) if shared.any() else missing
        summary[name] = (level_mean, to_tv, to_bm3d)
    return summary


def _rows(title: str, summary: Summary) -> list[str]:
    levels = " | ".join(f"{level:g}" for level in VALIDATION_LEVELS)
    lines = [f"### {title}", "", f"| method | {levels} | mean | - TV (least) | - BM3D (least) |"]
    lines.append("|---|" + "---|" * (len(VALIDATION_LEVELS) + 3))
    for name, (values, to_tv, to_bm3d) in summary.items():
        if np.isfinite(values).all():
            cells = [f"{v:.2f}" for v in (*values, values.mean())]
            cells += ["" if not d.any() else f"{d.mean():+.2f} ({d.min():+.2f})" for d in (to_tv, to_bm3d)]
            lines.append(f"| {name} | {' | '.join(cells)} |".replace("+nan (+nan)", ""))
    return [*lines, ""]


def outside(groups: list[Group], priors: dict[str, Prior]) -> str:
    """Gain over doing nothing at levels outside the trained range: mean and worst crop, dB."""
    names = " | ".join(f"{level:g}" for level in OUTSIDE)
    lines = ["### Outside the trained range: gain over the noisy image, mean (worst crop), dB", ""]
    lines += [f"| prior | trained | {names} |", "|---|---|" + "---|" * len(OUTSIDE)]
    crops = [crop for group in groups for crop in group.crops]
    for name, prior in priors.items():
        row = []
        for i, level in enumerate(OUTSIDE):
            noisy = noisy_versions(crops, level, 2000 + i)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                clean = by_prior(prior, noisy, level, MIRROR)
            gains = np.array(list(map(psnr, clean, crops))) - np.array(list(map(psnr, noisy, crops)))
            row.append(f"{gains.mean():+.2f} ({gains.min():+.2f})")
        low, high = prior.level_range
        lines.append(f"| {name} | {low:g} to {high:g} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("POGMDM_DATA", root.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=Path, default=[data / "train"], help="training images")
    parser.add_argument("--scans", type=Path, default=data / "mrd", help="folder with SCAN_full.h5")
    parser.add_argument("--settings", type=Path, default=root / "training" / "default.yaml")
    parser.add_argument("--weights", nargs="+", default=list(shipped_weights()), help="names or files")
    parser.add_argument("--crops", type=int, default=24, help="at most this many per group (default: %(default)s)")
    parser.add_argument("--bm3d", type=int, default=3, metavar="N", help="BM3D on N of them (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="6 crops per group, BM3D on one")
    parser.add_argument("-o", "--output", type=Path, help="also write the tables here")
    args = parser.parse_args()
    if args.quick:
        args.crops, args.bm3d = 6, min(1, args.bm3d)
    torch.set_num_threads(1)
    file = _read_settings(args.settings)
    images = read_images(args.images, file.sources)
    groups = held_out_groups(images, file.training.validation_share, file.training.seed, args.crops)
    groups += [scan_group(args.scans / f"{name}_full.h5", args.crops) for name in SCANS]
    priors = {}
    for name in args.weights:
        prior = load_prior(name)
        priors[f"`{Path(name).stem}` {prior.sha256[:8]}"] = prior
    bm3d, note = None, "BM3D: left out (--bm3d 0)."
    if args.bm3d:
        try:
            bm3d = importlib.import_module("bm3d").bm3d
            note = f"PSNR in dB. BM3D and the column `- BM3D`: {args.bm3d} crops of each group."
        except ImportError as error:
            note = f"BM3D: left out ({error}; pip install bm3d)."
    text = markdown(measure(groups, priors, bm3d, args.bm3d), note) + "\n" + outside(groups, priors)
    print(text)  # noqa: T201
    if args.output:
        args.output.write_text(text, encoding="utf-8")


START = time.perf_counter()
if __name__ == "__main__":
    main()
