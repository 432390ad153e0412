"""From a k-space frame to image, uncertainty and coils: the whole computation on one screen.

scale -> joint start (image and coils) -> MAP image, judged on held-out k-space -> posterior samples ->
standard deviation -> back to the units of the input.

Noise, in three words that mean the same everywhere:

``noise_std``
    Of the receivers: per real and imaginary part of a k-space sample (unitary transform), as measured or estimated.
``noise_level``
    Of the likelihood (the paper's eta): `noise_std`, or more where no image explains the data to it.
``level``
    Of an image under the prior (the paper's zeta): per real and imaginary part of a pixel, what a sample still carries.

Inside, all three are in units of the image scale; what goes in and what comes out is in units of the k-space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from pogmdm_core.errors import ComputeError, ConfigError, HeaderError
from pogmdm_core.estimate.joint_start import JointStart, joint_start
from pogmdm_core.estimate.samplers.draw import draw_magnitudes
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.density import gridded_coil_images
from pogmdm_core.measurement.encoding import EncodingModel, fourier_operator, root_sum_of_squares
from pogmdm_core.measurement.folding import amplitude, as_scanned, shown, shown_magnitudes
from pogmdm_core.measurement.noise_check import MODEL_ERROR, TOO_LOUD, NoiseLevel, against_fit, against_kspace
from pogmdm_core.prior.base import Prior
from pogmdm_core.result import GAUSSIAN_FACTORS, ReconResult
from pogmdm_core.run import ProgressHook, Run, SamplerStatus, StopHook
from pogmdm_core.settings import HELD_OUT_METHODS, Settings
from pogmdm_core.uncertainty.combine import Uncertainty, combine
from pogmdm_core.uncertainty.judged_map import JudgedMap, coils_are_judged, judged_map
from pogmdm_core.uncertainty.leave_out import sampling_of
from pogmdm_core.uncertainty.model_error import FITS, model_error, widening
from pogmdm_core.wrapped import Wrapped, unwrapped

_SCALE_QUANTILE = 0.999
_MIN_MATRIX = 8  # along each axis, as the gadget demands of headers
_MISFIT = 1.2  # residual over noise; a fit to the noise leaves 0.85 to 1.1 of it
_LEAST_NOISE = 1e-4  # of the image scale: keeps noise-free simulations well conditioned
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
    start: JointStart | None = None,
    early: Callable[[ReconResult], object] | None = None,
) -> ReconResult:
    """Estimate image, uncertainty and coil sensitivities jointly from undersampled k-space.

    Parameters
    ----------
    frame
        Whitened k-space; see `KSpaceFrame`.
    prior
        From `load_prior`. A copy is used where the device of the settings is another.
    settings
        See `Settings`; None for the defaults.
    progress
        Called with a `Progress` after every step; ``print`` will do.
    should_stop
        Asked between steps; returning True ends the reconstruction with status CANCELLED and what
        is done by then.
    start
        `ReconResult.start` of the same frame, to spare the joint start; None makes one.
    early
        Called once with what is known when the MAP image is final, long before its standard deviation: with
        ``map.prior_weight`` given right after it, else when held-out k-space has chosen the weight.

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
    method = settings.uncertainty.method
    n_samples = settings.sampler.n_samples if method in ("calibrated", "samples") else 0
    _refuse(frame, prior, settings, n_samples)
    device = choose_device(settings.device)
    frame, prior = frame.to(device), prior.to(device)
    run = Run(progress, should_stop)
    with run.timed("setting up"):
        noise = against_kspace(frame)
        scale = image_scale(frame)
        if scale == 0:
            return _no_signal(frame, noise.std)
        model = EncodingModel(frame, scale)

    with run.timed("warm start"):
        wrapped = None
        if start is not None:
            start = start.to(device)
            if start.image.shape != frame.shape:
                wrapped = Wrapped.again(frame, start)
        else:
            start = joint_start(model, settings.coils, noise.std / scale, run)
            if settings.coils.wrapped == "auto" and settings.coils.init == "nlinv" and frame.doubled_axis is None:
                wrapped = unwrapped(model, start, max(noise.std / scale, _LEAST_NOISE), settings.coils, run)
    if wrapped is not None:
        return _of_larger_field(wrapped, prior, settings, run, early)
    noise = _judged_noise(model, start, noise, settings)
    run.warnings.extend(noise.warnings)
    noise_level = _noise_level(model, start, noise.std / scale, run)

    def so_far(best: torch.Tensor, found: JudgedMap | None, magnitudes: Sequence[torch.Tensor]) -> ReconResult:
        squares = model.residual_squares(best, start.csm)
        misfit = model_error(frame, squares, max(noise.std / scale, _LEAST_NOISE))
        if found is not None and misfit > FITS and "MODEL_ERROR" not in run.warnings:
            run.warnings.append("MODEL_ERROR")
        return replace(
            _in_input_units(model, start, best, magnitudes, found is not None),
            status=run.status,
            detail=run.detail,
            noise_std=noise.std,
            noise_level=noise_level * scale,
            prior_weight=1.0 if found is None else found.weight,
            data_residual=float(squares.mean()) ** 0.5 * scale / max(noise.std, _TINY),
            model_error=misfit,
            warnings=tuple(run.warnings),
            seconds=dict(run.seconds),
        )

    settled = None if early is None else lambda found: early(so_far(found.image, found, ()))
    found = judged_map(model, prior, start, noise_level, noise.std / scale, settings, run, settled)
    with run.timed("samples"):
        magnitudes = draw_magnitudes(model, prior, start, noise_level, n_samples, settings, run)
    best = found.image if found is not None else start.image
    uncertainty = _uncertainty(model, start.csm, best, found, magnitudes, noise, settings, run)
    result = so_far(best, found, magnitudes)
    # held-out estimates with coils of their own know what residual wrong coils leave
    is_blind = uncertainty.method in HELD_OUT_METHODS and not coils_are_judged(frame, settings)
    wider = widening(result.model_error) if is_blind else 1.0
    return replace(
        result,
        std=None if uncertainty.std is None else wider * uncertainty.std,
        n_steps=settings.sampler.n_steps if magnitudes else 0,
        interval_factors=_interval_factors(uncertainty, settings),
        uncertainty_method=uncertainty.method,
        uncertainty=uncertainty.scales,
    )


def _of_larger_field(
    wrapped: Wrapped, prior: Prior, settings: Settings, run: Run, early: Callable[[ReconResult], object] | None
) -> ReconResult:
    """The rest of a run whose object is larger than the field of view."""

    def told(result: ReconResult) -> ReconResult:
        seconds = {stage: result.seconds.get(stage, 0.0) + run.seconds.get(stage, 0.0) for stage in result.seconds}
        return replace(wrapped.folded(result), warnings=("LARGER_FOV", *result.warnings), seconds=seconds)

    sooner = None if early is None else lambda result: early(told(result))
    return told(reconstruct(wrapped.frame, prior, settings, run.progress, run.should_stop, wrapped.start, sooner))


def _refuse(frame: KSpaceFrame, prior: Prior, settings: Settings, n_samples: int) -> None:
    """Raise E216 or E127 for what cannot be reconstructed, see `reconstruct`."""
    if min(frame.shape) < _MIN_MATRIX:
        ny, nx = frame.shape
        raise HeaderError(
            216,
            f"the image matrix is {nx}x{ny}; the prior's filters need {_MIN_MATRIX} pixels along each axis.",
            "Zero-fill the matrix in the header's reconSpace and encodedSpace.",
        )
    if n_samples and settings.sampler.start_level > prior.level_range[1]:
        raise ConfigError(
            127,
            f"sampler.start_level {settings.sampler.start_level:g} is above the highest noise level the prior "
            f"'{prior.name}' was trained on, {prior.level_range[1]:g}.",
            "Lower it or choose another prior.",
        )


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
    found = float(flat.kthvalue(rank + 1).values)
    return found if frame.doubled_axis is None else 2 * found  # every other line makes two images of half the intensity


def _judged_noise(model: EncodingModel, start: JointStart, noise: NoiseLevel, settings: Settings) -> NoiseLevel:
    """Hold the noise against the fit of the joint start; other starts fit too well or too badly to tell."""
    if settings.coils.init != "nlinv":
        return noise
    residual = model.residual_std(start.image, start.csm) * model.scale
    return against_fit(noise, residual, start.image.numel(), model.n_measured, model.frame.noise_floor)


def _noise_level(model: EncodingModel, start: JointStart, noise_std: float, run: Run) -> float:
    """Noise of the likelihood: that of the receivers, unless no image explains the data to it."""
    noise_std = max(noise_std, _LEAST_NOISE)
    residual = model.residual_std(start.image, start.csm)
    if residual > MODEL_ERROR * noise_std:
        run.warnings.append("MODEL_ERROR")
    return residual if residual > _MISFIT * noise_std else noise_std


def _uncertainty(
    model: EncodingModel,
    csm: torch.Tensor,
    best: torch.Tensor,
    found: JudgedMap | None,
    magnitudes: Sequence[torch.Tensor],
    noise: NoiseLevel,
    settings: Settings,
    run: Run,
) -> Uncertainty:
    """Standard deviation of what is shown, in units of the input, by the method that the settings name."""
    scale, axis = model.scale, model.frame.doubled_axis
    magnitudes = [shown_magnitudes(magnitude, best.cpu(), csm.cpu(), axis) for magnitude in magnitudes]
    if settings.uncertainty.method not in HELD_OUT_METHODS:
        if len(magnitudes) < 2:
            return Uncertainty(None, "off")
        return Uncertainty(_std([magnitude * scale for magnitude in magnitudes]), "samples")
    sampling, learned = sampling_of(as_scanned(model.frame)), settings.uncertainty
    held = None if found is None else found.held
    if held is not None and noise.is_measured and noise.std * amplitude(axis) > TOO_LOUD * held.noise_std * scale:
        run.warnings.append("NOISE_TOO_LOUD")
    factors = learned.sample_factors[sampling.value], learned.fold_factors[sampling.value]
    uncertainty = combine(shown(best, csm, axis).cpu(), held, magnitudes, *factors).times(scale)
    run.warnings.extend(uncertainty.warnings)
    return uncertainty


def _std(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Standard deviation over images `(y, x)` (divisor n - 1), float32; one at a time, there may be many."""
    mean = torch.zeros_like(images[0], dtype=torch.float64)
    for image in images:
        mean += image.double() / len(images)
    squares = torch.zeros_like(mean)
    for image in images:
        squares += (image.double() - mean) ** 2
    return (squares / (len(images) - 1)).sqrt().float()


def _interval_factors(uncertainty: Uncertainty, settings: Settings) -> dict[float, float]:
    if uncertainty.method not in HELD_OUT_METHODS:
        return dict(GAUSSIAN_FACTORS)
    return dict(zip(GAUSSIAN_FACTORS, settings.uncertainty.interval_factors, strict=True))


def _in_input_units(
    model: EncodingModel, start: JointStart, best: torch.Tensor, magnitudes: Sequence[torch.Tensor], has_map: bool
) -> ReconResult:
    """Images in the units of the input, and what belongs to them; the MAP is shown where there is one.

    It measures better than the mean of a few samples.
    """
    scale = model.scale
    magnitude = best.abs().cpu() * scale
    samples = torch.stack(list(magnitudes)) * scale if magnitudes else None
    mean = None if samples is None else samples.mean(0, dtype=torch.float64).float()
    estimate = "map" if has_map else "warm_start" if mean is None else "mean"
    return ReconResult(
        image=mean if mean is not None and estimate == "mean" else magnitude,
        std=None,
        mean=mean,
        map=magnitude if has_map else None,
        phase=(best * start.gauge).angle().cpu(),
        csm=(start.csm * start.gauge.conj()).cpu(),
        samples=samples,
        status=SamplerStatus.OK,
        estimate=estimate,
        scale=scale,
        start=start.to(torch.device("cpu")),
        n_samples=len(magnitudes),
        backend=model.fourier.backend,
    )


def _no_signal(frame: KSpaceFrame, noise_std: float) -> ReconResult:
    """All-zero data give a zero image, and no standard deviation: nothing is known of one."""
    zero = torch.zeros(frame.shape)
    csm = torch.full((frame.n_coils, *frame.shape), frame.n_coils**-0.5, dtype=torch.complex64)
    return ReconResult(
        image=zero,
        std=None,
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
