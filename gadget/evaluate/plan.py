"""What is to be evaluated, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gadget.evaluate.methods import MethodResult


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes
    ----------
    scans
        Fully sampled ISMRMRD files.
    patterns, methods, seeds, truths
        Names as in `gadget.evaluate.patterns`, `methods`, `truth`.
    folder
        Where the table, the page and the cache go.
    jobs
        Processes; each computes with one thread.
    group
        HDF5 group of the scans.
    """

    scans: tuple[Path, ...]
    patterns: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    truths: tuple[str, ...]
    folder: Path
    jobs: int = 1
    group: str = "dataset"


@dataclass(frozen=True)
class Job:
    """One result that is wanted."""

    scan: str
    pattern: str
    seed: int
    truth: str
    method: str

    def __str__(self) -> str:
        return f"{self.scan} {self.pattern} seed {self.seed} {self.truth} {self.method}"


@dataclass(frozen=True)
class Finding:
    """One result beside the case it belongs to; `error` says why there is no result."""

    job: Job
    result: MethodResult | None
    error: str = ""
