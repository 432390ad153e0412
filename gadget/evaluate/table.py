"""Results to rows, rows to CSV and to the comparison that is asked for."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gadget.files.atomic import complete_file

Row = Mapping[str, str | float]

COLUMNS = (
    "scan",
    "truth",
    "pattern",
    "seed",
    "acceleration",
    "method",
    "psnr",
    "ssim",
    "nmse",
    "psnr_spline",
    "psnr_full",
    "ssim_full",
    "nmse_full",
    "sd_over_rmse",
    "coverage_50",
    "coverage_80",
    "coverage_95",
    "rank_pixel",
    "rank_7x7",
    "crps",
    "null_space",
    "cpu_seconds",
    "note",
)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows; numbers with six significant digits, empty where not measured."""
    with complete_file(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(value) for key, value in row.items()})


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.6g}"


def differences(rows: Sequence[Row], ours: str, other: str, key: str = "psnr") -> dict[tuple[str, ...], float]:
    """Ours minus another method's value, by (scan, truth, pattern, seed), where both have one."""
    found: dict[str, dict[tuple[str, ...], float]] = {ours: {}, other: {}}
    for row in rows:
        if row["method"] in found and key in row:
            case = tuple(str(row[name]) for name in ("scan", "truth", "pattern", "seed"))
            found[str(row["method"])][case] = float(row[key])
    return {case: value - found[other][case] for case, value in found[ours].items() if case in found[other]}


def mean_by(rows: Sequence[Row], key: str) -> dict[tuple[str, str, str, str], float]:
    """Mean over seeds of one column by (scan, truth, pattern, method), where it was measured."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        if key in row and not np.isnan(float(row[key])):
            group = (str(row["scan"]), str(row["truth"]), str(row["pattern"]), str(row["method"]))
            groups.setdefault(group, []).append(float(row[key]))
    return {group: float(np.mean(values)) for group, values in groups.items()}
