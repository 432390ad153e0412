"""Learn the factors of the calibrated standard deviation, and show what it is worth on scans it was not learned from.

    python benchmarks/calibration.py SCAN_full.h5 SCAN_full.h5 ... [--patterns cartesian4,gaussian8] [--seeds 0,1,2]
        [--raw langevin,paper]

Every scan is undersampled with every pattern and seed, with its own noisy samples as truth (real) and with an exact
truth and fresh noise (synthetic), and reconstructed with a shipped preset. Leave one scan out: the factor by which
samples are too narrow (geometric mean of true error over spread, per way of sampling), that by which folds of spokes
and interleaves predict too large an error, and the half-widths of the 50, 80 and 95 % intervals (mean over cases of the
quantiles of |error| / standard deviation) come from the other scans. Beside it, what the samples say by themselves:
their mean, their spread, Gaussian intervals; with --raw also of other samplers. The last lines are the factors from all
scans: what `pogmdm_core.settings` ships.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gadget.evaluate.data import FullScan, read_full_scan
from gadget.evaluate.metrics import Reference, least_squares_scale, uncertainty_metrics
from gadget.evaluate.truth import Case, make_case
from gadget.settings.load import load
from pogmdm_core import ReconResult, load_prior, reconstruct
from pogmdm_core.result import GAUSSIAN_FACTORS
from pogmdm_core.uncertainty.leave_out import Sampling, sampling_of

PROBABILITIES = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Outcome:
    """One reconstruction with all sample and fold factors at 1.

    `std` `(y, x)` is scaled by the geometric mean of both scales; `spread` is that of the raw samples,
    `folds` what held-out k-space predicts; `raw` measures the samples without either.
    """

    scan: str
    label: str
    sampling: str
    image: np.ndarray
    std: np.ndarray
    raw: dict[str, float]
    spread: float
    folds: float
    reference: Reference
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def scale(self) -> float:
        mask = self.reference.mask
        return least_squares_scale(self.image[mask], self.reference.image[mask])

    @property
    def error(self) -> np.ndarray:
        """|error| inside the object."""
        mask = self.reference.mask
        return np.abs(self.scale * self.image - self.reference.image)[mask]

    @property
    def held_out_ratio(self) -> float:
        """What held-out k-space predicts over the true root mean square error."""
        return float(self.scale * self.folds / np.sqrt(np.mean(self.error**2)))

    @property
    def too_narrow(self) -> float:
        """True root mean square error over the spread of the samples."""
        return float(np.sqrt(np.mean(self.error**2)) / (self.scale * self.spread))


def raw_metrics(result: ReconResult, reference: Reference) -> dict[str, float]:
    """Metrics of the mean of the samples and their standard deviation, as they are."""
    assert result.samples is not None and result.mean is not None  # noqa: S101 - a benchmark
    return uncertainty_metrics(result.mean.numpy(), result.samples.std(0).numpy(), reference, GAUSSIAN_FACTORS)


def run_raw(case: Case, sampler: str) -> dict[str, float]:
    """Metrics of another sampler: ``langevin`` with the default prior, or the preset ``paper``."""
    if sampler == "paper":
        settings = load(preset="paper")
    else:
        settings = load(overrides={"uncertainty.method": "samples", "sampler.method": sampler, "map.steps": 0})
    return raw_metrics(reconstruct(case.frame, load_prior(settings.prior), settings), case.reference)


def run(case: Case, scan: FullScan, label: str, preset: str) -> Outcome:
    ones = {f"uncertainty.{which}_factors.{kind.value}": 1.0 for which in ("sample", "fold") for kind in Sampling}
    settings = load(preset=preset, overrides={"uncertainty.method": "calibrated", **ones})
    result = reconstruct(case.frame, load_prior(settings.prior), settings)
    assert result.std is not None  # noqa: S101 - a benchmark
    return Outcome(
        scan.name,
        label,
        sampling_of(case.frame).value,
        result.image.numpy(),
        result.std.numpy(),
        raw_metrics(result, case.reference),
        result.uncertainty["samples"],
        result.uncertainty["folds"],
        case.reference,
        result.warnings,
        dict(result.seconds),
    )


@dataclass(frozen=True)
class Factors:
    """Sample and fold factors by way of sampling, and half-widths of the intervals."""

    samples: dict[str, float]
    folds: dict[str, float]
    widths: tuple[float, ...] = ()


def learn(outcomes: Sequence[Outcome]) -> Factors:
    """Factors are geometric means. That of the folds is learned for shots only: see `pogmdm_core.settings`."""
    samples, folds = {}, {}
    for kind in {outcome.sampling for outcome in outcomes}:
        of_kind = [outcome for outcome in outcomes if outcome.sampling == kind]
        samples[kind] = math.exp(float(np.mean([math.log(o.too_narrow) for o in of_kind])))
        folds[kind] = math.exp(float(np.mean([math.log(o.held_out_ratio) for o in of_kind]))) if kind == "shots" else 1
    found = Factors(samples, folds)
    widths = []
    for probability in PROBABILITIES:
        quantiles = [
            np.quantile(o.error / calibrated(o, found)[o.reference.mask] / o.scale, probability) for o in outcomes
        ]
        widths.append(float(np.mean(quantiles)))
    return Factors(samples, folds, tuple(widths))


def calibrated(outcome: Outcome, factors: Factors) -> np.ndarray:
    """Put the factors in: they enter the geometric mean of two scales."""
    return outcome.std * math.sqrt(factors.samples[outcome.sampling] / factors.folds[outcome.sampling])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--patterns", default="cartesian4,gaussian8")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--truths", default="real,synthetic")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--raw", default="", help="other samplers: langevin, paper")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    others: list[dict[str, dict[str, float]]] = []
    for path in args.scans:
        scan = read_full_scan(path)
        for pattern in args.patterns.split(","):
            for seed in map(int, args.seeds.split(",")):
                for truth in args.truths.split(","):
                    case = make_case(scan, truth, pattern, seed)
                    outcomes.append(run(case, scan, f"{scan.name} {pattern} seed {seed} {truth}", args.preset))
                    others.append({name: run_raw(case, name) for name in args.raw.split(",") if name})
                    sys.stderr.write(f"{outcomes[-1].label}: {sum(outcomes[-1].seconds.values()):.0f} s\n")
    out = sys.stdout
    shown = ("sd_over_rmse", "coverage_50", "coverage_80", "coverage_95", "rank_7x7")
    heads = ["case", "folds/rmse", "rmse/samples", "sd/rmse", "50 %", "80 %", "95 %", "rank 7x7"]
    raw_names = ["renoise", *others[0]]
    heads += [f"raw {name}: {what}" for name in raw_names for what in ("sd/rmse", "95 %", "rank")]
    out.write("| " + " | ".join([*heads, "warnings"]) + " |\n" + "|---" * (len(heads) + 1) + "|\n")
    rows = []
    for outcome, other in zip(outcomes, others, strict=True):
        factors = learn([o for o in outcomes if o.scan != outcome.scan])
        found = uncertainty_metrics(
            outcome.image,
            calibrated(outcome, factors),
            outcome.reference,
            dict(zip(PROBABILITIES, factors.widths, strict=True)),
        )
        values = [outcome.held_out_ratio, outcome.too_narrow, *(found[name] for name in shown)]
        for raw in ({"renoise": outcome.raw} | other).values():
            values += [raw[name] for name in ("sd_over_rmse", "coverage_95", "rank_7x7")]
        rows.append(values)
        words = " ".join(w for w in outcome.warnings if w == "STD_LOWER_BOUND") or "-"
        out.write(f"| {outcome.label} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {words} |\n")
    out.write("| mean | " + " | ".join(f"{v:.3f}" for v in np.mean(rows, axis=0)) + " | |\n")
    out.write(f"\nfrom all scans: {learn(outcomes)}\n")


if __name__ == "__main__":
    main()
