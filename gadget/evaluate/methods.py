"""The methods that are compared: name to callable, case to image.

Protocol: comparators get the oracle (their free parameter is chosen on the reference, per case, on a grid that is
extended until the best is not at its edge); pogmdm gets its shipped presets as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from gadget.evaluate import peers, sigpy_peer
from gadget.evaluate.clock import cpu_seconds
from gadget.evaluate.metrics import scaled_psnr
from gadget.evaluate.oracle import best_on_grid
from gadget.evaluate.truth import Case
from gadget.settings.load import load
from gadget.settings.schema import GadgetSettings
from pogmdm_core import KSpaceFrame, ReconResult, load_prior, reconstruct, zero_filled
from pogmdm_core.errors import ConfigError
from pogmdm_core.estimate.joint_start import JointStart, smooth_phase_into_coils
from pogmdm_core.estimate.map_estimate import map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.total_variation import TotalVariation

TV_WEIGHTS = tuple(2.0**k * 1e-3 for k in range(-2, 5))  # of the image scale, seven: 2.5e-4 to 0.016
TV_TOLERANCE = 1e-5
TV_STEPS = 3000
NAMES = ("zf", "nlinv", "tv", "pogmdm", *peers.NAMES, sigpy_peer.NAME)


@dataclass(frozen=True)
class MethodResult:
    """What a method returns.

    Attributes
    ----------
    image
        Magnitude `(y, x)`, float32, any scale.
    std
        Standard deviation in the same units, or None.
    interval_factors
        Half-widths of intervals in units of `std`.
    csm
        Coil maps `(coil, y, x)` or None.
    seconds
        CPU time of this process and its children; of the whole oracle search where there is one.
    note
        What was chosen, how it ended.
    """

    image: np.ndarray
    std: np.ndarray | None = None
    interval_factors: Mapping[float, float] = field(default_factory=dict)
    csm: np.ndarray | None = None
    seconds: float = 0.0
    note: str = ""


def check(name: str) -> str:
    """Return the name if it is a method; ConfigError E141 for an unknown one, E104 for an unknown preset."""
    base, colon, preset = name.partition(":")
    if base not in NAMES or (colon and base != "pogmdm"):
        raise ConfigError(141, f"there is no method {name[:40]!r}.", f"Methods: {', '.join(NAMES)}, pogmdm:PRESET.")
    if base == "pogmdm":
        load(preset or None)
    return name


def fingerprint(name: str) -> str:
    """Everything a method's result hangs on besides its data, for the cache."""
    base, _, preset = name.partition(":")
    settings = load(preset if base == "pogmdm" and preset else None)
    used = settings.model_dump_json(include={"sampler", "map", "coils", "uncertainty", "prior", "output"})
    if base == "pogmdm":
        return f"{used} {load_prior(settings.prior).sha256}"
    if base in ("nlinv", "tv"):
        return f"{settings.coils.model_dump_json()} {TV_WEIGHTS} {TV_TOLERANCE} {TV_STEPS}"
    if base == sigpy_peer.NAME:
        return sigpy_peer.settings()
    return peers.version() if base in peers.NAMES else ""


def run(name: str, case: Case) -> MethodResult:
    """Run a method on a case."""
    begin = cpu_seconds()
    base, _, preset = name.partition(":")
    found = _TABLE[base](case, preset)
    return MethodResult(found.image, found.std, found.interval_factors, found.csm, cpu_seconds() - begin, found.note)


def _zero_filled(case: Case, _: str) -> MethodResult:
    return MethodResult(zero_filled(case.frame).numpy())


def _nlinv(case: Case, _: str) -> MethodResult:
    result = _warm_start(case.frame)
    return MethodResult(result.image.numpy(), csm=result.csm.numpy(), note="the warm start of pogmdm, default preset")


def _pogmdm(case: Case, preset: str) -> MethodResult:
    return reconstruct_as_shown(case.frame, load(preset or None))


def reconstruct_as_shown(frame: KSpaceFrame, settings: GadgetSettings) -> MethodResult:
    """Reconstruct with a preset's settings; the image is the one its first series would show."""
    result = reconstruct(frame, load_prior(settings.prior), settings)
    shown, image = result.shown(settings.output.estimate)
    return MethodResult(
        image.numpy(),
        None if result.std is None else result.std.numpy(),
        dict(result.interval_factors),
        result.csm.numpy(),
        note=" ".join((shown, result.status.value, result.detail, *result.warnings)).strip(),
    )


def _tv(case: Case, _: str) -> MethodResult:
    """Charbonnier TV on the warm start's maps, each weight run until the image changes by < 1e-5 per step."""
    warm = _warm_start(case.frame)
    image = warm.image * torch.exp(1j * warm.phase) / warm.scale
    start = smooth_phase_into_coils(JointStart(image, warm.csm, torch.ones_like(warm.csm[0])))
    model = EncodingModel(case.frame, warm.scale)
    state = {"x": start.image}
    unfinished = []

    def solve(weight: float) -> np.ndarray:
        # neighbours on the grid start from each other's solution
        found = map_estimate(model, TotalVariation(weight), start.csm, state["x"], 1.0, 0.0, TV_STEPS, TV_TOLERANCE)
        if found.change >= TV_TOLERANCE:
            unfinished.append(weight)
        state["x"] = found.image
        return np.asarray(found.image.abs().numpy() * warm.scale)

    # in units of the noise-free normal operator: on dense trajectories the data weigh more
    weights = [w * model.fourier.norm for w in TV_WEIGHTS]
    best, weight, n_tried, edge = best_on_grid(solve, weights, lambda x: scaled_psnr(x, case.reference))
    note = f"weight {weight:.3g} of the image scale, best of {n_tried} ({TV_TOLERANCE:g} per step)"
    note += f"; {len(unfinished)} weights not converged in {TV_STEPS} steps" if unfinished else ""
    return MethodResult(best, csm=warm.csm.numpy(), note=note + ("; at the edge of the grid" if edge else ""))


def _warm_start(frame: KSpaceFrame) -> ReconResult:
    return reconstruct(frame, load_prior(), load().joint_start_only())


def _peer(
    run_peer: Callable[[KSpaceFrame, Callable[[np.ndarray], float]], peers.PeerResult],
) -> Callable[[Case, str], MethodResult]:
    def method(case: Case, _: str) -> MethodResult:
        found = run_peer(case.frame, lambda x: scaled_psnr(x, case.reference))
        return MethodResult(found.image, csm=found.csm, note=found.note)

    return method


_TABLE: dict[str, Callable[[Case, str], MethodResult]] = {
    "zf": _zero_filled,
    "nlinv": _nlinv,
    "tv": _tv,
    "pogmdm": _pogmdm,
    **{name: _peer(partial(peers.run, name)) for name in peers.NAMES},
    sigpy_peer.NAME: _peer(sigpy_peer.run),
}


def is_finite(result: MethodResult) -> bool:
    """Whether there is an image to measure."""
    return bool(np.isfinite(result.image).all()) and math.isfinite(float(result.image.max())) and result.image.max() > 0
