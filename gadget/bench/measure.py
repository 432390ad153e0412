"""What is timed: the pieces of a reconstruction, whole presets, and BART's nlinv beside them, in one process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from gadget.bench.scans import BenchScan
from gadget.evaluate import peers
from gadget.evaluate.clock import cpu_seconds
from gadget.evaluate.metrics import Reference, scaled_psnr, uncertainty_metrics
from gadget.settings.load import load
from pogmdm_core import KSpaceFrame, load_prior, reconstruct
from pogmdm_core.estimate.joint_start import acs_start
from pogmdm_core.estimate.samplers.base import SamplerState
from pogmdm_core.estimate.samplers.coil_update import update_coils
from pogmdm_core.estimate.samplers.renoise import data_step
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.reconstruction import image_scale

_REPEATS = 5
_LEVEL = 0.05
_DIRECT_ROWS = 8  # of an image: a direct evaluation is too slow for all of them


@dataclass(frozen=True)
class Timing:
    """One line of the table: seconds are medians of one call; `note` says what else there is to say."""

    scan: str
    what: str
    wall_s: float
    cpu_s: float
    psnr_db: float | None = None
    note: str = ""


def measure(scan: BenchScan, presets: Sequence[str], device: str, with_peers: bool = True) -> Iterator[Timing]:
    """Time everything for one scan.

    Parameters
    ----------
    presets
        ``image`` (the preset fast without its uncertainty), and names of presets.
    device
        As the setting `device`.
    with_peers
        Whether BART's nlinv is run, too, where it is installed.
    """
    frame, reference = scan.simulate()
    yield from _pieces(scan.label, frame, torch.device(device))
    for preset in presets:
        yield _preset(scan.label, preset, device, frame, reference)
    if with_peers and peers.installed():
        for steps, image, cpu_s, wall_s in peers.nlinv_by_step(frame):
            psnr = scaled_psnr(image, reference)
            yield Timing(scan.label, f"BART nlinv -i{steps}", wall_s, cpu_s, psnr, peers.version())


def _pieces(label: str, frame: KSpaceFrame, device: torch.device) -> Iterator[Timing]:
    frame = frame.to(device)
    model = EncodingModel(frame, image_scale(frame))
    start = acs_start(model)
    for name in ("default", "paper"):
        prior = load_prior(name).to(device)
        assert isinstance(prior, ProductPrior)  # noqa: S101 - the shipped ones are
        score, spectra = partial(prior.score, level=_LEVEL), prior.bank.spectra(frame.shape).detach()
        one, ten = (start.image.expand(n, *frame.shape).contiguous() for n in (1, 10))
        whole = _timed(label, f"score, prior {name}", device, partial(score, one))
        floor = _timed(label, f"its Fourier transforms, prior {name}", device, partial(_transforms, spectra))
        yield replace(whole, note=f"{whole.wall_s / floor.wall_s:.2f} times its transforms")
        yield floor
        yield _timed(label, f"score of 10 images, prior {name}", device, partial(score, ten))
        if name == "paper":
            yield _direct(label, prior, frame.shape, device, whole)
    operator, batch = model.for_image(start.csm), start.image.expand(10, *frame.shape)
    yield _timed(label, "normal operator", device, lambda: operator.normal(start.image))
    yield _timed(label, "data step", device, lambda: data_step(start.image, start.csm, model, _LEVEL, 0.01, 4))
    yield _timed(
        label, "data step, 10 samples", device, lambda: data_step(batch, start.csm[None], model, _LEVEL, 0.01, 4)
    )
    yield _timed(
        label,
        "coil step",
        device,
        lambda: update_coils(SamplerState(start.image[None], start.csm[None]), model, 1.0, "dirichlet"),
    )


def _transforms(spectra: torch.Tensor) -> None:
    """Both transforms of every filter's responses: what a score costs at least."""
    for response in spectra:
        torch.fft.fft2(torch.fft.ifft2(response))


def _direct(label: str, prior: ProductPrior, shape: tuple[int, int], device: torch.device, fast: Timing) -> Timing:
    """Evaluate all mixture components at every response of a few rows, scaled to the whole complex image."""
    u = torch.randn(prior.bank.n_filters, 2 * _DIRECT_ROWS * shape[1], device=device) * 0.1
    part = _timed(label, "", device, lambda: prior.experts.score(u, _LEVEL), repeats=1)
    factor = shape[0] / _DIRECT_ROWS
    note = f"{part.wall_s * factor / fast.wall_s:.0f} times the score above, from {_DIRECT_ROWS} rows"
    return Timing(
        label, "direct evaluation of its 125 components", part.wall_s * factor, part.cpu_s * factor, None, note
    )


def _preset(label: str, preset: str, device: str, frame: KSpaceFrame, reference: Reference) -> Timing:
    name, overrides = ("fast", {"uncertainty.method": "off"}) if preset == "image" else (preset, {})
    settings = load(preset=name, overrides={"device": device, **overrides})
    prior = load_prior(settings.prior)
    begin, cpu = time.perf_counter(), cpu_seconds()
    result = reconstruct(frame, prior, settings)
    wall_s, cpu_s = time.perf_counter() - begin, cpu_seconds() - cpu
    notes = [f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items() if seconds >= 0.05]
    if result.std is not None:
        found = uncertainty_metrics(result.image.numpy(), result.std.numpy(), reference, result.interval_factors)
        notes.append(f"std/error {found['sd_over_rmse']:.2f}")
    notes.append(f"peak memory {_peak_bytes() / 2**20:.0f} MB so far")
    what = "image alone" if preset == "image" else f"preset {preset}"
    return Timing(label, what, wall_s, cpu_s, scaled_psnr(result.image.numpy(), reference), ", ".join(notes))


def _timed(label: str, what: str, device: torch.device, call: Callable[[], object], repeats: int = _REPEATS) -> Timing:
    """Median of a few calls after a first one, which compiles and fills caches."""
    walls, cpus = [], []
    for _ in range(repeats + 1):
        begin, cpu = time.perf_counter(), cpu_seconds()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - begin)
        cpus.append(cpu_seconds() - cpu)
    return Timing(label, what, statistics.median(walls[1:]), statistics.median(cpus[1:]))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
