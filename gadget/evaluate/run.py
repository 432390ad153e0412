"""All wanted results: from the cache or computed, several at a time; then rows, CSV and the page."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from gadget.errors import ConfigError, coded
from gadget.evaluate import cache, methods, patterns
from gadget.evaluate.data import FullScan, read_full_scan
from gadget.evaluate.intensity import spline_psnr
from gadget.evaluate.metrics import image_metrics, null_space_residual, uncertainty_metrics
from gadget.evaluate.plan import Finding, Job, Plan
from gadget.evaluate.table import Row, write_csv
from gadget.evaluate.truth import MODES, Case, make_case
from pogmdm_core.errors import PogmdmError


def evaluate(plan: Plan) -> list[Row]:
    """Compute what is missing, write ``table.csv`` and ``report.html``; returns the rows.

    A method that fails on a case gives a row that says so. Raises ConfigError E140, E141, E142 for names that do
    not exist, E143 for libraries that are missing, and what reading a scan raises.
    """
    _check(plan)
    from gadget.evaluate.report import write_report

    scans = {path.stem: path for path in plan.scans}
    if len(scans) < len(plan.scans):
        raise ConfigError(142, "two scans have the same name.", "Rename one: results are filed by name.")
    for path in plan.scans:
        _scan(path, plan.group)  # refuses what cannot be evaluated before anything is computed
    jobs = [
        Job(name, patterns.resolve(pattern), seed, truth, method)
        for name in scans
        for truth in plan.truths
        for pattern in plan.patterns
        for seed in plan.seeds
        for method in plan.methods
    ]
    findings = list(_compute(plan, scans, jobs))
    findings.sort(key=lambda finding: jobs.index(finding.job))
    rows = _rows(plan, scans, findings)
    write_csv(plan.folder / "table.csv", rows)
    write_report(plan, rows, findings, lambda job: _case(scans[job.scan], plan.group, job))
    return rows


def _check(plan: Plan) -> None:
    absent = [name for name in ("scipy", "skimage") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(143, f"evaluate needs {' and '.join(absent)}.", "pip install 'pogmdm-gadget[evaluate]'")
    for pattern in plan.patterns:
        patterns.resolve(pattern)
    for method in plan.methods:
        methods.check(method)
    for truth in plan.truths:
        if truth not in MODES:
            raise ConfigError(142, f"there is no truth {truth[:40]!r}.", f"Truths: {', '.join(MODES)}.")


def _compute(plan: Plan, scans: dict[str, Path], jobs: Sequence[Job]) -> Iterator[Finding]:
    missing = []
    for job in jobs:
        stored = cache.fetch(_path(plan.folder, scans[job.scan], plan.group, job))
        if stored is None:
            missing.append(job)
        else:
            yield Finding(job, stored)
    say = _progress(len(missing), len(jobs))
    arguments = [(plan.folder, scans[job.scan], plan.group, job) for job in missing]
    if plan.jobs == 1 or len(missing) < 2:
        for argument in arguments:
            finding = _one(*argument)
            say(finding)
            yield finding
        return
    workers = min(plan.jobs, len(missing))
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        for future in as_completed([pool.submit(_one, *argument) for argument in arguments]):
            say(future.result())
            yield future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _one(folder: Path, scan: Path, group: str, job: Job) -> Finding:
    """Compute and store one result; what goes wrong with a method becomes a row."""
    path = _path(folder, scan, group, job)
    try:
        result = methods.run(job.method, _case(scan, group, job))
    except (PogmdmError, ArithmeticError, RuntimeError, ValueError, OSError) as error:
        return Finding(job, None, str(coded(error)))
    if not methods.is_finite(result):
        return Finding(job, None, f"no finite image: {result.note}")
    cache.store(path, result)
    return Finding(job, result)


@lru_cache(maxsize=8)
def _scan(path: Path, group: str) -> FullScan:
    return read_full_scan(path, group)


@lru_cache(maxsize=16)
def _named_case(path: Path, group: str, truth: str, pattern: str, seed: int) -> Case:
    return make_case(_scan(path, group), truth, pattern, seed)


def _case(path: Path, group: str, job: Job) -> Case:
    return _named_case(path, group, job.truth, job.pattern, job.seed)


@lru_cache(maxsize=32)
def _fingerprint(method: str) -> str:
    return methods.fingerprint(method)


def _path(folder: Path, scan: Path, group: str, job: Job) -> Path:
    return cache.path_of(folder / "cache", job, _scan(scan, group).sha256, _fingerprint(job.method))


def _progress(n_missing: int, n_all: int) -> Callable[[Finding], None]:
    begin, done = time.monotonic(), 0
    if n_missing < n_all:
        sys.stderr.write(f"{n_all - n_missing} of {n_all} results are in the cache\n")

    def say(finding: Finding) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - begin) / done * (n_missing - done)
        took = f"{finding.result.seconds:.0f} s CPU" if finding.result else finding.error
        sys.stderr.write(f"{done}/{n_missing} {finding.job}: {took}, about {left / 60:.0f} min left\n")
        sys.stderr.flush()

    return say


def _rows(plan: Plan, scans: dict[str, Path], findings: Sequence[Finding]) -> list[Row]:
    rows: list[Row] = []
    for finding in findings:
        job = finding.job
        case = _case(scans[job.scan], plan.group, job)
        row: dict[str, str | float] = {
            "scan": job.scan,
            "truth": job.truth,
            "pattern": job.pattern,
            "seed": str(job.seed),
            "acceleration": case.frame.acceleration,
            "method": job.method,
        }
        result = finding.result
        if result is None:
            rows.append({**row, "note": finding.error})
            continue
        row |= image_metrics(result.image, case.reference)
        others = [
            (other.result.image, _case(scans[other.job.scan], plan.group, other.job).reference)
            for other in findings
            if other.result is not None
            and other.job.scan != job.scan
            and (other.job.method, other.job.pattern, other.job.truth) == (job.method, job.pattern, job.truth)
        ]
        row["psnr_spline"] = spline_psnr(result.image, case.reference, others)
        if result.std is not None:
            row |= uncertainty_metrics(result.image, result.std, case.reference, result.interval_factors)
        if result.csm is not None and job.truth != "single":
            row["null_space"] = null_space_share(result.csm, case)
        rows.append({**row, "cpu_seconds": result.seconds, "note": result.note})
    return rows


def null_space_share(csm: np.ndarray, case: Case) -> float:
    """What fully sampled coil images have outside the span of maps, over all they have, inside the object."""
    mask = case.reference.mask
    outside = null_space_residual(csm, case.coil_images)[mask]
    return float(np.linalg.norm(outside) / np.linalg.norm(np.linalg.norm(case.coil_images, axis=0)[mask]))
