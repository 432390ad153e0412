"""One self-contained HTML page: verdict, tables, pictures, calibration, protocol."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from gadget.evaluate import figures, peers, sigpy_peer
from gadget.evaluate.plan import Finding, Job, Plan
from gadget.evaluate.table import Row, differences, mean_by
from gadget.evaluate.truth import Case
from gadget.files.atomic import complete_file
from pogmdm_core import __version__

_STYLE = """
body{background:#0d1117;color:#e6edf3;font:15px/1.5 system-ui,sans-serif}
body{max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{font-weight:600}h2{margin-top:2.5rem;border-bottom:1px solid #30363d;padding-bottom:.3rem;font-weight:600}
h3{font-weight:500;color:#8b949e;margin-bottom:.4rem}table{border-collapse:collapse;margin:.6rem 0}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #21262d;font-variant-numeric:tabular-nums}
th{color:#8b949e;font-weight:500}th:first-child,td:first-child{text-align:left}
.best{color:#3fb950;font-weight:600}.bad{color:#f85149}
.tile{display:inline-block;background:#161b22;border:1px solid #30363d;
border-radius:8px;padding:.8rem 1.2rem;margin:.3rem .6rem .3rem 0}.tile b{display:block;font-size:1.6rem}
.tile span{color:#8b949e;font-size:.85rem}img{max-width:100%;border-radius:6px}p.small{color:#8b949e;font-size:.87rem}
"""
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
    parts = [
        f"<h1>pogmdm {escape(__version__)}: evaluation</h1>",
        _tiles(rows, plan.methods),
        _image_tables(rows, plan.methods),
        _uncertainty_table(rows),
        _gallery(plan, rows, findings, case_of),
        f"<h2>Protocol</h2><p class=small>{_PROTOCOL}</p>",
        f"<p class=small>BART: {escape(peers.version() or 'not installed')}; "
        f"sigpy: {escape(sigpy_peer.version() or 'not installed')}. All numbers: table.csv.</p>",
        _failures(rows),
    ]
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>pogmdm evaluation</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    with complete_file(plan.folder / "report.html", overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _tiles(rows: Sequence[Row], names: Sequence[str]) -> str:
    tiles = []
    for ours in (name for name in names if name.startswith("pogmdm")):
        for other in (name for name in names if not name.startswith("pogmdm")):
            gains = list(differences(rows, ours, other).values())
            if gains:
                colour = "best" if min(gains) > -0.1 else "bad"
                tiles.append(
                    f"<div class=tile><span>{escape(ours)} over {escape(other)}</span>"
                    f"<b>{np.mean(gains):+.2f} dB</b><span class={colour}>worst of {len(gains)}: "
                    f"{min(gains):+.2f} dB</span></div>"
                )
    return "<div>" + "".join(tiles) + "</div>"


def _image_tables(rows: Sequence[Row], names: Sequence[str]) -> str:
    parts = ["<h2>Images</h2><p class=small>PSNR dB / SSIM inside the object, mean over seeds</p>"]
    psnr, ssim, full, curve = (mean_by(rows, key) for key in ("psnr", "ssim", "psnr_full", "psnr_spline"))
    reached = mean_by(rows, "acceleration")
    for scan, truth in dict.fromkeys((str(row["scan"]), str(row["truth"])) for row in rows):
        patterns = dict.fromkeys(str(r["pattern"]) for r in rows if (r["scan"], r["truth"]) == (scan, truth))
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = []
        for pattern in patterns:
            values = {name: psnr.get((scan, truth, pattern, name)) for name in names}
            found = [value for value in values.values() if value is not None]
            r = reached.get((scan, truth, pattern, names[0]), float("nan"))
            cells = [f"<td>{escape(pattern)}, R {r:.2f}</td>"]
            for name in names:
                value, key = values[name], (scan, truth, pattern, name)
                if value is None:
                    cells.append("<td>-</td>")
                    continue
                more = f"full FOV {full[key]:.2f} dB; spline {curve.get(key, float('nan')):.2f} dB"
                best = " class=best" if value == max(found) else ""
                cells.append(f"<td{best} title='{more}'>{value:.2f} / {ssim[key]:.3f}</td>")
            body.append("<tr>" + "".join(cells) + "</tr>")
        parts.append(f"<h3>{escape(scan)}, {truth} truth</h3><table><tr><th></th>{head}</tr>{''.join(body)}</table>")
    return "".join(parts)


def _uncertainty_table(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if "sd_over_rmse" in row]
    if not measured:
        return ""
    head = "".join(f"<th>{label}</th>" for _, label, _ in _UNCERTAINTY)
    body = []
    for row in measured:
        label = f"{row['scan']}, {row['truth']}, {row['pattern']}, seed {row['seed']}, {row['method']}"
        cells = "".join(f"<td>{float(row[key]):{form}}</td>" for key, _, form in _UNCERTAINTY if key in row)
        body.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    curves = []
    for method in dict.fromkeys(str(row["method"]) for row in measured):
        own = [row for row in measured if row["method"] == method and "coverage_95" in row]
        shares = [float(np.mean([float(row[f"coverage_{p}"]) for row in own])) for p in (50, 80, 95)]
        curves.append((method, (0.5, 0.8, 0.95), shares))
    return (
        "<h2>Standard deviation</h2><p class=small>Against real truth the reference's own noise counts as error; "
        "judge calibration on synthetic truth.</p>"
        f"<table><tr><th></th>{head}</tr>{''.join(body)}</table>{_image(figures.calibration(curves))}"
    )


def _gallery(plan: Plan, rows: Sequence[Row], findings: Sequence[Finding], case_of: Callable[[Job], Case]) -> str:
    parts = ["<h2>Pictures</h2>"]
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
        parts.append(
            f"<h3>{escape(scan)}, {escape(truth)} truth, {escape(pattern)}, R {case.frame.acceleration:.2f}</h3>"
        )
        parts.append(_image(figures.comparison(case.reference, panels)))
        if maps:
            parts.append("<p class=small>Null space of the coil maps: what full data have outside their span, x 10</p>")
            parts.append(_image(figures.coil_residuals(case.coil_images, maps)))
    return "".join(parts)


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if "psnr" not in row]
    if not failed:
        return ""
    lines = (f"<li>{escape(', '.join(_key(row)))}: {escape(str(row['note']))}</li>" for row in failed)
    return f"<h2>Not there</h2><ul class=small>{''.join(lines)}</ul>"


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("scan", "truth", "pattern", "seed", "method"))


def _image(png: bytes) -> str:
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
