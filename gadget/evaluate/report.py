"""One self-contained HTML page: verdict, tables, pictures, calibration, protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gadget.evaluate import figures, peers, sigpy_peer
from gadget.evaluate.plan import Finding, Job, Plan
from gadget.evaluate.table import Row, differences, mean_by
from gadget.evaluate.truth import Case
from gadget.report.shell import write_page
from pogmdm_core import __version__

_PROTOCOL = """Every method gets the same whitened samples. Comparators get an oracle: their free parameter (weight of
tv, Newton steps of bart_nlinv, weights of bart_pics and sigpy) is the one with the highest PSNR on the reference, per
case; a grid of weights is extended until the best is inside. pogmdm runs its shipped presets, tuned on nothing here. tv
shares pogmdm's coil maps and encoding and is run until the image changes by less than 1e-5 (relative) per step. PSNR,
SSIM and NMSE are inside the object mask against the noise-corrected root sum of squares after one least-squares scale;
full FOV (in the tooltip of a cell) is against the plain root sum of squares of everything, air included. The spline
value (tooltip) is after an intensity curve fitted on the other scans of the same method. R is measured: grid points per
grid cell that holds a sample. CPU seconds of oracles are those of the whole search."""
_UNCERTAINTY = (
    ("sd_over_rmse", "sd / rmse", ".2f"),
    ("coverage_50", "cover 50 %", ".2f"),
    ("coverage_80", "80 %", ".2f"),
    ("coverage_95", "95 %", ".2f"),
    ("rank_pixel", "rank, pixel", ".2f"),
    ("rank_7x7", "rank, 7x7", ".2f"),
    ("crps", "CRPS / peak", ".4f"),
)


def write_report(plan: Plan, rows: Sequence[Row], findings: Sequence[Finding], case_of: Callable[[Job], Case]) -> None:
    """Write ``report.html`` into the plan's folder."""
    write_page(
        plan.folder / "report.html",
        "evaluation.html",
        overwrite=True,
        title=f"pogmdm {__version__}: evaluation",
        methods=plan.methods,
        tiles=list(_tiles(rows, plan.methods)),
        image_tables=list(_image_tables(rows, plan.methods)),
        uncertainty=_uncertainty_table(rows),
        gallery=list(_gallery(plan, rows, findings, case_of)),
        protocol=_PROTOCOL,
        bart=peers.version(),
        sigpy=sigpy_peer.version(),
        failures=[f"{', '.join(_key(row))}: {row['note']}" for row in rows if "psnr" not in row],
    )


def _tiles(rows: Sequence[Row], names: Sequence[str]) -> Iterator[tuple[str, str, float, float, int]]:
    """Ours, another method, mean and worst gain in dB, and of how many cases."""
    for ours in (name for name in names if name.startswith("pogmdm")):
        for other in (name for name in names if not name.startswith("pogmdm")):
            gains = list(differences(rows, ours, other).values())
            if gains:
                yield ours, other, float(np.mean(gains)), min(gains), len(gains)


def _image_tables(rows: Sequence[Row], names: Sequence[str]) -> Iterator[dict[str, object]]:
    """A table per scan and kind of truth: title, and rows of (pattern, cells by method)."""
    psnr, ssim, full, curve = (mean_by(rows, key) for key in ("psnr", "ssim", "psnr_full", "psnr_spline"))
    reached = mean_by(rows, "acceleration")
    for scan, truth in dict.fromkeys((str(row["scan"]), str(row["truth"])) for row in rows):
        patterns = dict.fromkeys(str(r["pattern"]) for r in rows if (r["scan"], r["truth"]) == (scan, truth))
        body = []
        for pattern in patterns:
            keys = [(scan, truth, pattern, name) for name in names]
            best = max((psnr[key] for key in keys if key in psnr), default=None)
            cells = [
                {
                    "psnr": psnr[key],
                    "ssim": ssim[key],
                    "is_best": psnr[key] == best,
                    "more": f"full FOV {full[key]:.2f} dB; spline {curve.get(key, float('nan')):.2f} dB",
                }
                if key in psnr
                else None
                for key in keys
            ]
            body.append((f"{pattern}, R {reached.get(keys[0], float('nan')):.2f}", cells))
        yield {"title": f"{scan}, {truth} truth", "rows": body}


def _uncertainty_table(rows: Sequence[Row]) -> dict[str, object] | None:
    measured = [row for row in rows if "sd_over_rmse" in row]
    if not measured:
        return None
    curves = []
    for method in dict.fromkeys(str(row["method"]) for row in measured):
        own = [row for row in measured if row["method"] == method and "coverage_95" in row]
        shares = [float(np.mean([float(row[f"coverage_{p}"]) for row in own])) for p in (50, 80, 95)]
        curves.append((method, (0.5, 0.8, 0.95), shares))
    return {
        "labels": [label for _, label, _ in _UNCERTAINTY],
        "rows": [
            (
                f"{row['scan']}, {row['truth']}, {row['pattern']}, seed {row['seed']}, {row['method']}",
                [f"{float(row[key]):{form}}" for key, _, form in _UNCERTAINTY if key in row],
            )
            for row in measured
        ],
        "picture": figures.calibration(curves),
    }


def _gallery(
    plan: Plan, rows: Sequence[Row], findings: Sequence[Finding], case_of: Callable[[Job], Case]
) -> Iterator[dict[str, object]]:
    """Pictures of every case of the first seed."""
    psnr = {_key(row): float(row["psnr"]) for row in rows if "psnr" in row}
    share = {_key(row): float(row["null_space"]) for row in rows if "null_space" in row}
    first = [f for f in findings if f.job.seed == plan.seeds[0] and f.result is not None]
    for scan, truth, pattern in dict.fromkeys((f.job.scan, f.job.truth, f.job.pattern) for f in first):
        own = [f for f in first if (f.job.scan, f.job.truth, f.job.pattern) == (scan, truth, pattern)]
        case = case_of(own[0].job)
        panels, maps = [], []
        for finding in own:
            job, result = finding.job, finding.result
            if result is None:
                continue
            name = (job.scan, job.truth, job.pattern, str(job.seed), job.method)
            panels.append((f"{job.method}\n{psnr[name]:.2f} dB", result.image, result.std))
            if result.csm is not None and name in share:
                maps.append((f"{job.method}\n{100 * share[name]:.2f} % outside", result.csm))
        yield {
            "title": f"{scan}, {truth} truth, {pattern}, R {case.frame.acceleration:.2f}",
            "comparison": figures.comparison(case.reference, panels),
            "residuals": figures.coil_residuals(case.coil_images, maps) if maps else None,
        }


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("scan", "truth", "pattern", "seed", "method"))
