"""From a k-space frame to image, uncertainty and coils: the whole computation on one screen.

scale -> joint warm start (image and coils) -> MAP image -> held-out folds -> posterior samples ->
standard deviation -> back to the units of the input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from pogmdm_core.density import gridded_coil_images
from pogmdm_core.errors import ComputeError, ConfigError
from pogmdm_core.frame import GAUSSIAN_FACTORS, KSpaceFrame, Progress, ReconResult, SamplerStatus
from pogmdm_core.map_estimate import MapEstimate, level_for, map_estimate
from pogmdm_core.noise import estimate_frame_noise
from pogmdm_core.operators.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.operators.fourier import CartesianFourier, fourier_operator
from pogmdm_core.posterior import RunningMoments
from pogmdm_core.prior.model import Prior
from pogmdm_core.restarts import draw_with_restarts
from pogmdm_core.sampler import Diverged, sample
from pogmdm_core.settings import SamplerSettings, Settings
from pogmdm_core.uncertainty.combine import Uncertainty, combine
from pogmdm_core.uncertainty.folds import sampling_of, split
from pogmdm_core.uncertainty.held_out import HeldOut, held_out
from pogmdm_core.warm_start import WarmStart, acs_start, nlinv, smooth_phase_into_coils, zero_filled_start

_SCALE_QUANTILE = 0.999
_MODEL_ERROR = 3.0  # a warm start's residual above this times the noise is taken for a model error
_LEAST_NOISE = 1e-4  # of the image scale: keeps noise-free simulations well conditioned
_AUTO_BATCH_BYTES = 2**28
_TINY = torch.finfo(torch.float32).tiny

ProgressHook = Callable[[Progress], object]
StopHook = Callable[[], bool]


def zero_filled(frame: KSpaceFrame) -> torch.Tensor:
    """Root-sum-of-squares of the coil images without any prior, float32 `(y, x)`, input units, on the CPU.

    Zero-filled for Cartesian frames, otherwise gridded with density compensation.
    """
    return root_sum_of_squares(gridded_coil_images(frame, fourier_operator(frame))).cpu()


def reconstruct(
    frame: KSpaceFrame,
    prior: Prior,
    settings: Settings | None = None,
    progress: ProgressHook | None = None,
    should_stop: StopHook | None = None,
) -> ReconResult:
    """Estimate image, uncertainty and coil sensitivities jointly from undersampled k-space.

    Parameters
    ----------
    frame
        Whitened k-space; see `KSpaceFrame`.
    prior
        From `load_prior`. It is moved to the device of the settings.
    settings
        See `Settings`; None for the defaults.
    progress
        Called with a `Progress` after every step; ``print`` will do.
    should_stop
        Asked between steps; returning True ends the reconstruction with status CANCELLED and what
        is done by then.

    Returns
    -------
        Images in the units of `frame.kspace`. All of them are finite: divergence ends in the status.

    Raises
    ------
    ComputeError
        E501 when the device does not exist.
    ConfigError
        E127 when the sampler would start above the prior's trained noise levels.
    """
    settings = settings if settings is not None else Settings.model_validate({})
    device = choose_device(settings.device)
    method = settings.uncertainty.method
    n_samples = settings.sampler.n_samples if method in ("calibrated", "samples") else 0
    if n_samples and settings.sampler.start_level > prior.level_range[1]:
        raise ConfigError(
            127,
            f"sampler.start_level {settings.sampler.start_level:g} is above the highest noise level the prior "
            f"'{prior.name}' was trained on, {prior.level_range[1]:g}.",
            "Lower it or choose another prior.",
        )
    frame, prior = frame.to(device), prior.to(device)
    run = _Run(progress, should_stop)
    noise_std = frame.noise_std or estimate_frame_noise(frame)
    scale = image_scale(frame)
    if scale == 0:
        return _no_signal(frame, noise_std)
    model = EncodingModel(frame, scale)

    with run.timed("warm start"):
        start = _warm_start(model, settings, noise_std / scale, run)
    noise_level = _noise_level(model, start, noise_std / scale, run)
    with run.timed("MAP"):
        found = _map(model, prior, start, noise_level, settings, run)
    held = None
    if found is not None and method in ("calibrated", "folds"):
        with run.timed("folds"):
            held = _held_out(model, prior, start, found, noise_level, noise_std, settings, run)
    with run.timed("samples"):
        magnitudes = _magnitudes(model, prior, start, noise_level, n_samples, settings, run)

    moments = RunningMoments(frame.shape)
    for magnitude in magnitudes:
        moments.add(magnitude * scale)
    best = found if found is not None else start.image
    magnitude = best.abs().cpu() * scale
    estimate = _choose_estimate(found is not None, len(magnitudes))
    if method in ("calibrated", "folds"):
        factor = settings.uncertainty.sample_factors[sampling_of(frame).value]
        uncertainty = combine(best.abs().cpu(), held, magnitudes, noise_std / scale, factor).times(scale)
        run.warnings.extend(uncertainty.warnings)
    else:
        uncertainty = Uncertainty(moments.std, "samples" if moments.std is not None else "off")
    factors = GAUSSIAN_FACTORS
    if uncertainty.method in ("calibrated", "folds"):
        factors = dict(zip(GAUSSIAN_FACTORS, settings.uncertainty.interval_factors, strict=True))
    return ReconResult(
        image=moments.mean if estimate == "mean" else magnitude,
        std=uncertainty.std,
        mean=moments.mean if magnitudes else None,
        map=magnitude if found is not None else None,
        phase=(best * start.gauge).angle().cpu(),
        csm=(start.csm * start.gauge.conj()).cpu(),
        samples=torch.stack(magnitudes) * scale if magnitudes else None,
        status=run.status,
        detail=run.detail,
        estimate=estimate,
        noise_std=noise_std,
        noise_level=noise_level * scale,
        data_residual=model.residual_std(best, start.csm) * scale / max(noise_std, _TINY),
        scale=scale,
        n_samples=moments.count,
        n_steps=settings.sampler.n_steps if magnitudes else 0,
        encoding=model.fourier.backend,
        interval_factors=factors,
        uncertainty_method=uncertainty.method,
        uncertainty=uncertainty.scales,
        warnings=tuple(run.warnings),
        seconds=run.seconds,
    )


def _choose_estimate(has_map: bool, n_samples: int) -> str:
    """Which image to show: the MAP measures better than the mean of a few samples."""
    if has_map:
        return "map"
    return "mean" if n_samples else "warm_start"


def choose_device(name: str) -> torch.device:
    """Turn the setting `device` into a device; ``auto`` takes a GPU when there is one."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise ComputeError(501, f"device '{name}' is not there.", "Set device=auto or device=cpu.")
    return device


def image_scale(frame: KSpaceFrame) -> float:
    """Return the intensity taken as 1: the 99.9 % quantile of the zero-filled RSS image.

    Off the grid with computed density weights, so that supplied ones do not change the reconstruction.
    """
    flat = zero_filled(replace(frame, density=None)).flatten()
    rank = min(flat.numel() - 1, int(_SCALE_QUANTILE * flat.numel()))
    return float(flat.kthvalue(rank + 1).values)


class _Run:
    """What accompanies a reconstruction: progress, cancellation, timings, status and warnings."""

    def __init__(self, progress: ProgressHook | None, should_stop: StopHook | None) -> None:
        self._progress, self._should_stop = progress, should_stop
        self.seconds: dict[str, float] = {}
        self.status, self.detail = SamplerStatus.OK, ""
        self.warnings: list[str] = []

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - begin

    def reporter(self, stage: str, before: int = 0, total: int | None = None) -> Callable[[int, int], None] | None:
        if self._progress is None:
            return None
        hook = self._progress
        return lambda done, steps: (hook(Progress(stage, before + done, total or steps)), None)[1]

    def should_stop(self) -> bool:
        if self._should_stop is not None and self.status is not SamplerStatus.CANCELLED and self._should_stop():
            self.end(SamplerStatus.CANCELLED, "cancelled by the caller")
        return self.status is SamplerStatus.CANCELLED

    def end(self, status: SamplerStatus, detail: str) -> None:
        self.status, self.detail = status, detail


def _warm_start(model: EncodingModel, settings: Settings, eta: float, run: _Run) -> WarmStart:
    if settings.coils.init == "zero_filled":
        return zero_filled_start(model)
    if settings.coils.init == "acs":
        start = acs_start(model)
    else:
        # Cartesian scans gain from all steps; off the grid they amplify noise once the data are fitted
        enough = 0.0 if isinstance(model.fourier, CartesianFourier) else eta
        start = nlinv(
            model,
            settings.coils.newton_steps,
            noise_level=enough,
            report=run.reporter("warm start"),
            should_stop=run.should_stop,
        )
    start = smooth_phase_into_coils(start)
    if bool(torch.isfinite(torch.view_as_real(start.csm * start.image)).all()):
        return start
    run.end(SamplerStatus.DIVERGED, "the joint warm start diverged")
    return zero_filled_start(model)


def _noise_level(model: EncodingModel, start: WarmStart, eta: float, run: _Run) -> float:
    """Noise of the likelihood: the measured one unless the model plainly does not fit the data."""
    eta = max(eta, _LEAST_NOISE)
    residual = model.residual_std(start.image, start.csm)
    if residual > _MODEL_ERROR * eta:
        run.warnings.append("MODEL_ERROR")
        return residual
    return eta


def _estimate(
    model: EncodingModel,
    prior: Prior,
    csm: torch.Tensor,
    image: torch.Tensor,
    noise_level: float,
    settings: Settings,
    report: Callable[[int, int], None] | None,
    run: _Run,
) -> MapEstimate:
    sampler = settings.sampler
    level = sampler.map_level or level_for(noise_level)
    return map_estimate(
        model,
        prior,
        csm,
        image,
        noise_level,
        level,
        sampler.map_steps,
        sampler.map_tolerance,
        report,
        run.should_stop,
    )


def _map(
    model: EncodingModel, prior: Prior, start: WarmStart, noise_level: float, settings: Settings, run: _Run
) -> torch.Tensor | None:
    """MAP image, or None when it is switched off, time was up before it, or it diverged (the status says so)."""
    if settings.sampler.map_steps == 0 or run.status is SamplerStatus.CANCELLED:
        return None
    report = run.reporter("MAP")
    found = _estimate(model, prior, start.csm, start.image, noise_level, settings, report, run)
    if bool(torch.isfinite(torch.view_as_real(found.image)).all()):
        return found.image
    run.end(SamplerStatus.DIVERGED, f"the MAP estimate diverged within {found.n_steps} steps")
    return None


def _held_out(
    model: EncodingModel,
    prior: Prior,
    start: WarmStart,
    image: torch.Tensor,
    noise_level: float,
    noise_std: float,
    settings: Settings,
    run: _Run,
) -> HeldOut | None:
    """Folds of the scan, each reconstructed by the MAP estimate and its stopping rule, from the image of all data."""
    folds = split(model.frame, settings.uncertainty.n_folds, settings.sampler.seed)
    total = len(folds) * settings.sampler.map_steps
    numbers = iter(range(len(folds)))

    def without(part: EncodingModel) -> torch.Tensor:
        report = run.reporter("folds", next(numbers) * settings.sampler.map_steps, total)
        return _estimate(part, prior, start.csm, image, noise_level, settings, report, run).image

    return held_out(model, start.csm, image, noise_std / model.scale, folds, without, run.should_stop)


def _magnitudes(
    model: EncodingModel,
    prior: Prior,
    start: WarmStart,
    noise_level: float,
    n_samples: int,
    settings: Settings,
    run: _Run,
) -> list[torch.Tensor]:
    """Magnitudes of all posterior samples, drawn batch by batch, on the CPU, units of the scale."""
    sampler = settings.sampler
    batch = sampler.batch or max(1, _AUTO_BATCH_BYTES // (16 * model.adjoint_data.numel()))
    total = -(-n_samples // batch) * sampler.n_steps
    magnitudes: list[torch.Tensor] = []
    for number, first in enumerate(range(0, n_samples, batch)):
        if run.status is SamplerStatus.CANCELLED:
            break  # before the samples: not even a first step
        chosen = range(first, min(first + batch, n_samples))
        report = run.reporter("samples", number * sampler.n_steps, total)

        def draw(
            numbers: range, gentle: SamplerSettings, report: Callable[[int, int], None] | None = report
        ) -> list[torch.Tensor] | None:
            state = sample(
                model,
                prior,
                start.image,
                start.csm,
                noise_level,
                numbers,
                gentle,
                settings.coils,
                report,
                run.should_stop,
            )
            return None if state is None else list(state.x.abs().cpu())

        try:
            found = draw_with_restarts(draw, chosen, sampler, sampler.end_level or level_for(noise_level))
        except Diverged as error:
            run.end(SamplerStatus.DIVERGED, f"the sampler diverged at step {error.step} of {sampler.n_steps}")
            break
        if found is None:
            break
        magnitudes.extend(found)
    return magnitudes


def _no_signal(frame: KSpaceFrame, noise_std: float) -> ReconResult:
    """All-zero data give a zero image and a zero standard deviation, and say so."""
    zero = torch.zeros(frame.shape)
    csm = torch.full((frame.n_coils, *frame.shape), frame.n_coils**-0.5, dtype=torch.complex64)
    return ReconResult(
        image=zero,
        std=zero,
        mean=zero,
        map=zero,
        phase=zero,
        csm=csm,
        samples=None,
        status=SamplerStatus.NO_SIGNAL,
        detail="k-space is zero",
        noise_std=noise_std,
        warnings=("NO_SIGNAL",),
    )
