"""sigpy's JSENSE maps and its total variation, with the oracle on the weight; when sigpy is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata, util
from typing import Any

import numpy as np

from gadget.evaluate.oracle import best_on_grid
from gadget.evaluate.peers import PeerResult
from pogmdm_core import KSpaceFrame
from pogmdm_core.errors import ComputeError
from pogmdm_core.measurement.encoding import fourier_operator

NAME = "sigpy_jsense_tv"
_WEIGHTS = tuple(0.0005 * 2.0**k for k in range(7))  # of the largest pixel of the zero-filled image
_ITERATIONS = 100  # its default
_JSENSE_WEIGHT = 0.01  # best of 0 to 0.1 on three scans; without, its default, the maps are often not finite


def version() -> str:
    """Version of sigpy, empty when it is not installed."""
    return metadata.version("sigpy") if util.find_spec("sigpy") else ""


def settings() -> str:
    """What a result hangs on besides the data."""
    return f"{version()} {_WEIGHTS} {_ITERATIONS} {_JSENSE_WEIGHT}"


def run(frame: KSpaceFrame, score: Callable[[np.ndarray], float]) -> PeerResult:
    """Maps by JSENSE from the centre of k-space, then TV on them with the best weight of a grid.

    Parameters
    ----------
    score
        Oracle: image to a number, higher is better.

    Raises
    ------
    ComputeError
        E521 sigpy is not installed, or its maps are not finite.
    """
    if not version():
        raise ComputeError(521, "sigpy is not installed.", "pip install sigpy, or leave sigpy_jsense_tv out.")
    from sigpy.mri import app

    kspace, where = _as_sigpy(frame)
    shape: dict[str, Any] = {} if frame.mask is not None else {"img_shape": list(frame.shape)}
    maps = app.JsenseRecon(kspace, lamda=_JSENSE_WEIGHT, show_pbar=False, **where, **shape).run()
    if not np.isfinite(maps).all():
        raise ComputeError(521, "sigpy's JSENSE gave coil maps that are not finite.")

    def solve(weight: float) -> np.ndarray:
        found = app.TotalVariationRecon(kspace, maps, weight, max_iter=_ITERATIONS, show_pbar=False, **where).run()
        return np.abs(found)

    best = best_on_grid(solve, _WEIGHTS, score)
    edge = "; at the edge of the grid" if best.at_edge else ""
    note = f"weight {best.parameter:.3g}, {_ITERATIONS} iterations, best of {best.n_tried}{edge}"
    return PeerResult(best.image, np.asarray(maps), note)


def _as_sigpy(frame: KSpaceFrame) -> tuple[np.ndarray, dict[str, Any]]:
    """K-space of a zero-filled image of maximum 1, and what tells where it was sampled."""
    operator = fourier_operator(frame)
    largest = float(operator.adjoint(frame.kspace).norm(dim=0).max()) / operator.norm
    kspace = (frame.kspace / (largest or 1.0)).numpy()
    if frame.mask is not None:
        return kspace, {"weights": frame.mask.numpy().astype(np.float32)}
    return kspace, {"coord": frame.positions.numpy()[::-1].T.copy()}  # (sample, (ky, kx))
