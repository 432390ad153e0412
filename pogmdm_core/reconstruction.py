"""From a k-space frame to image, uncertainty and coils: the whole computation on one screen.

scale -> joint warm start (image and coils) -> MAP image, judged on held-out folds -> posterior samples ->
standard deviation -> back to the units of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pogmdm_core.errors import ComputeError, ConfigError, HeaderError
from pogmdm_core.estimate.joint_start import (
    WarmStart,
    acs_start,
    nlinv,
    smooth_phase_into_coils,
    zero_filled_start,
)
from pogmdm_core.estimate.map_estimate import level_for
from pogmdm_core.estimate.samplers.loop import Diverged, sample
from pogmdm_core.estimate.samplers.restarts import draw_with_restarts
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.density import gridded_coil_images
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.measurement.fourier import fourier_operator
from pogmdm_core.measurement.noise_check import MODEL_ERROR, TOO_LOUD, NoiseLevel, against_fit, against_kspace
from pogmdm_core.posterior import RunningMoments
from pogmdm_core.prior.model import Prior
from pogmdm_core.result import GAUSSIAN_FACTORS, ReconResult
from pogmdm_core.run import ProgressHook, Run, SamplerStatus, StopHook
from pogmdm_core.settings import SamplerSettings, Settings
from pogmdm_core.uncertainty.combine import Uncertainty, combine
from pogmdm_core.uncertainty.judged_map import judged_map
from pogmdm_core.uncertainty.leave_out import sampling_of

_SCALE_QUANTILE = 0.999
_MIN_MATRIX = 8  # along each axis, as the gadget demands of headers
_MISFIT = 1.2  # residual over noise; a fit to the noise leaves 0.85 to 1.1 of it
_LEAST_NOISE = 1e-4  # of the image scale: keeps noise-free simulations well conditioned
_AUTO_BATCH_BYTES = 2**28
_TINY = torch.finfo(torch.float32).tiny


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
    start: WarmStart | None = None,
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
    start
        `ReconResult.start` of the same frame, to spare the joint start; None makes one.

    Returns
    -------
        Images in the units of `frame.kspace`. All of them are finite: divergence ends in the status.

    Raises
    ------
    ComputeError
        E501 when the device does not exist.
    HeaderError
        E216 when the image has less than 8 pixels along an axis: the filters would wrap around it.
    ConfigError
        E127 when the sampler would start above the prior's trained noise levels.
    """
    settings = settings if settings is not None else Settings.model_validate({})
    if min(frame.shape) < _MIN_MATRIX:
        ny, nx = frame.shape
        raise HeaderError(
            216,
            f"the image matrix is {nx}x{ny}; the prior's filters need {_MIN_MATRIX} pixels along each axis.",
            "Zero-fill the matrix in the header's reconSpace and encodedSpace.",
        )
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
    run = Run(progress, should_stop)
    noise = against_kspace(frame)
    scale = image_scale(frame)
    if scale == 0:
        return _no_signal(frame, noise.std)
    model = EncodingModel(frame, scale)

    with run.timed("warm start"):
        start = _warm_start(model, settings, noise.std / scale, run) if start is None else start.to(device)
    noise = _judged_noise(model, start, noise, settings)
    run.warnings.extend(noise.warnings)
    noise_level = _noise_level(model, start, noise.std / scale, run)
    found = judged_map(model, prior, start, noise_level, noise.std / scale, settings, run)
    with run.timed("samples"):
        magnitudes = _magnitudes(model, prior, start, noise_level, n_samples, settings, run)

    moments = RunningMoments(frame.shape)
    for magnitude in magnitudes:
        moments.add(magnitude * scale)
    best = found.image if found is not None else start.image
    magnitude = best.abs().cpu() * scale
    estimate = _choose_estimate(found is not None, len(magnitudes))
    if method in ("calibrated", "folds"):
        sampling, learned = sampling_of(frame), settings.uncertainty
        wrong = (learned.sample_factors[sampling.value], learned.fold_factors[sampling.value])
        held = None if found is None else found.held
        if held is not None and noise.is_measured and noise.std > TOO_LOUD * held.noise_std * scale:
            run.warnings.append("NOISE_TOO_LOUD")
        uncertainty = combine(best.abs().cpu(), held, magnitudes, *wrong).times(scale)
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
        noise_std=noise.std,
        noise_level=noise_level * scale,
        prior_weight=1.0 if found is None else found.weight,
        data_residual=model.residual_std(best, start.csm) * scale / max(noise.std, _TINY),
        scale=scale,
        start=start.to(torch.device("cpu")),
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


def _warm_start(model: EncodingModel, settings: Settings, eta: float, run: Run) -> WarmStart:
    if settings.coils.init == "zero_filled":
        return zero_filled_start(model)
    if settings.coils.init == "acs":
        start = acs_start(model)
    else:
        start = nlinv(
            model,
            settings.coils.newton_steps,
            noise_level=eta,
            report=run.reporter("warm start"),
            should_stop=run.should_stop,
        )
    start = smooth_phase_into_coils(start)
    if bool(torch.isfinite(torch.view_as_real(start.csm * start.image)).all()):
        return start
    run.end(SamplerStatus.DIVERGED, "the joint warm start diverged")
    return zero_filled_start(model)


def _judged_noise(model: EncodingModel, start: WarmStart, noise: NoiseLevel, settings: Settings) -> NoiseLevel:
    """Hold the noise against the fit of the joint start; other starts fit too well or too badly to tell."""
    if settings.coils.init != "nlinv":
        return noise
    residual = model.residual_std(start.image, start.csm) * model.scale
    return against_fit(noise, residual, start.image.numel(), model.n_measured)


def _noise_level(model: EncodingModel, start: WarmStart, eta: float, run: Run) -> float:
    """Noise of the likelihood: that of the receivers, unless no image explains the data to it."""
    eta = max(eta, _LEAST_NOISE)
    residual = model.residual_std(start.image, start.csm)
    if residual > MODEL_ERROR * eta:
        run.warnings.append("MODEL_ERROR")
    return residual if residual > _MISFIT * eta else eta


def _magnitudes(
    model: EncodingModel,
    prior: Prior,
    start: WarmStart,
    noise_level: float,
    n_samples: int,
    settings: Settings,
    run: Run,
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
