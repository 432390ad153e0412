"""Results on disk, one file per (scan, pattern, seed, truth, method): what is there is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from gadget.evaluate.methods import MethodResult
from gadget.evaluate.plan import Job

_VERSION = 2  # raised when cases or methods change without their settings


def path_of(folder: Path, job: Job, scan_sha256: str, fingerprint: str) -> Path:
    """File of a result; the name changes with the scan's content, the method's settings and weights."""
    key = json.dumps([_VERSION, scan_sha256, job.pattern, job.seed, job.truth, job.method, fingerprint])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    words = "_".join((job.scan, job.pattern, str(job.seed), job.truth, job.method.replace(":", "-")))
    return folder / f"{words}_{digest}.npz"


def store(path: Path, result: MethodResult) -> None:
    """Write a result; it appears when it is complete."""
    arrays = {"image": result.image.astype(np.float32)}
    if result.std is not None:
        arrays["std"] = result.std.astype(np.float32)
    if result.csm is not None:
        arrays["csm"] = result.csm.astype(np.complex64)
    facts = {"seconds": result.seconds, "note": result.note, "factors": list(result.interval_factors.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(temporary, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def fetch(path: Path) -> MethodResult | None:
    """Read a result, or None when it is not there."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))
        return MethodResult(
            file["image"],
            file.get("std"),
            {float(p): float(f) for p, f in facts["factors"]},
            file.get("csm"),
            float(facts["seconds"]),
            str(facts["note"]),
        )
