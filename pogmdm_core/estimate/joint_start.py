"""Joint estimate of image and coils from undersampled data alone: where everything starts.

Iteratively regularised Gauss-Newton (IRGNM) on (x, c) with the coils in a weighted Fourier basis,
c = W chat, W = F^-1 (1 + a |k|^2)^(-b/2), that makes them smooth: non-linear inversion (NLINV).
Each step solves (DF^H DF + alpha) d = DF^H (z - F(x, c)) - alpha (x, chat) by conjugate gradients;
alpha halves from step to step. The start is x = 1, c = 0; pulling towards zero rather than towards
the start converges in fewer steps and, on objects with large smooth areas, to much better coils.

Source: Uecker, Hohage, Block & Frahm 2008, doi:10.1002/mrm.21691.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pogmdm_core.estimate.conjugate_gradient import conjugate_gradient
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.measurement.noise_check import MODEL_ERROR, free_share
from pogmdm_core.run import Run, SamplerStatus
from pogmdm_core.settings import CoilSettings

_SMOOTH_A, _SMOOTH_B = 220.0, 32.0
_DATA_NORM = 100.0
_CG_TOLERANCE = 0.1
_AIR = 1e-3
_DISCREPANCY = 0.87  # the fit has so many unknowns that it takes part of the noise with it
_STUCK = 0.9  # ratio of successive residuals
_FALLING = 0.75  # ratio of residuals two steps apart: so fast it falls only far from the noise
_FIRST_STEPS = 8  # too strongly regularised to be judged


@dataclass(frozen=True)
class JointStart:
    """A first image and coils.

    Attributes
    ----------
    image
        complex64 `(y, x)`.
    csm
        complex64 `(coil, y, x)`, unit root-sum-of-squares.
    gauge
        complex64 `(y, x)` of magnitude 1: what the phase of `image` must be multiplied with, and that
        of `csm` divided by, to undo the choice of `smooth_phase_into_coils`.
    """

    image: torch.Tensor
    csm: torch.Tensor
    gauge: torch.Tensor

    def to(self, device: torch.device) -> JointStart:
        """Return the same on another device."""
        return JointStart(self.image.to(device), self.csm.to(device), self.gauge.to(device))


def joint_start(model: EncodingModel, settings: CoilSettings, noise_std: float, run: Run) -> JointStart:
    """First image and coils, made as ``coils.init`` says; the smooth phase is with the coils.

    Parameters
    ----------
    model
        Data in units where the image is about 1.
    settings
        ``init`` and ``newton_steps`` are used.
    noise_std
        Noise of the receivers per real/imaginary part, units of the model's data.
    run
        What accompanies it; where the estimate diverges, its status says so, and the zero-filled start is returned.
    """
    if settings.init == "zero_filled":
        return zero_filled_start(model)
    if settings.init == "acs":
        start = acs_start(model)
    else:
        report = run.reporter("warm start")
        start = nlinv(model, settings.newton_steps, noise_std=noise_std, report=report, should_stop=run.should_stop)
    start = smooth_phase_into_coils(start)
    if bool(torch.isfinite(torch.view_as_real(start.csm * start.image)).all()):
        return start
    run.end(SamplerStatus.DIVERGED, "the joint warm start diverged")
    return zero_filled_start(model)


def nlinv(
    model: EncodingModel,
    n_steps: int = 16,
    cg_steps: int = 60,
    noise_std: float = 0.0,
    report: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> JointStart:
    """Estimate image and coils jointly.

    Parameters
    ----------
    model
        Data and Fourier operator.
    n_steps
        Gauss-Newton steps at most; each halves the regularisation. More resolve more and amplify noise.
    cg_steps
        Conjugate-gradient steps at most per Gauss-Newton step.
    noise_std
        Stop at the first step whose residual (root mean square per real/imaginary part, units of the
        model's data) is below 0.87 times this: from there on noise is fitted (discrepancy principle, Morozov
        1966). Where it still falls by a quarter in two steps the noise must be lower than that, and the steps go
        on, unless there are too few samples to tell (one coil). 0 makes all steps. What counts are the coils: the
        MAP image from them gains up to 3.6 dB on a phantom between step 12 and 16, on brains it changes by less
        than 0.2 dB from step 10 on, and at five times the noise it loses up to 0.4 dB when all steps are made.
        Stop too when two steps in a row lower a residual far above the noise by less than a tenth: the model is
        wrong then, and what more steps fit is noise (on a spiral phantom at 12 of 60 interleaves the MAP image
        loses 2 dB in two steps).
    report, should_stop
        Called with (step, n_steps); asked within and between steps, what is reached by then is returned.
    """
    steps = gauss_newton(model, cg_steps, should_stop)
    residuals, n_stuck = [float("inf"), float("inf")], 0
    tells = free_share(model.adjoint_data[0].numel(), model.n_measured) > 0
    for step in range(n_steps):
        image, csm = next(steps)
        if report is not None:
            report(step + 1, n_steps)
        if should_stop is not None and should_stop():
            break
        if not noise_std:
            continue
        residual = model.residual_std(image, csm)
        stuck = step >= _FIRST_STEPS and residual > max(_STUCK * residuals[-1], MODEL_ERROR * noise_std)
        n_stuck = n_stuck + 1 if stuck else 0
        at_noise = residual <= _DISCREPANCY * noise_std and not (tells and residual < _FALLING * residuals[-2])
        if at_noise or n_stuck == 2:
            break
        residuals.append(residual)
    return _unit_coils(image, csm)


def gauss_newton(
    model: EncodingModel, cg_steps: int = 60, should_stop: Callable[[], bool] | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Image and coils after each Gauss-Newton step, complex128 `(y, x)` and `(coil, y, x)`, without end.

    When `should_stop` says so, within a step too, for a step of a large scan takes seconds, the step ends as it is.
    """
    # double precision: how many conjugate-gradient steps are made must not hang on rounding
    b, fourier = model.adjoint_data.to(torch.complex128), model.fourier
    n_coils, ny, nx = b.shape
    energy = torch.linalg.vector_norm(b)
    scale = _DATA_NORM / float(energy)
    b = b * scale
    smooth = _smoothing_spectrum(ny, nx, b.device)

    def coils(chat: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.fft.ifft2(chat * smooth, norm="ortho")
        return found

    # unknowns stacked along the coil axis: entry 0 is the image, the rest are coil coefficients
    state = torch.zeros(n_coils + 1, ny, nx, dtype=b.dtype, device=b.device)
    state[0] = 1.0
    alpha = 1.0
    while True:
        x, c = state[0], coils(state[1:])

        def derivative_adjoint(y: torch.Tensor, x: torch.Tensor = x, c: torch.Tensor = c) -> torch.Tensor:
            dx = (c.conj() * y).sum(0, keepdim=True)
            dchat = smooth * torch.fft.fft2(x.conj() * y, norm="ortho")
            return torch.cat([dx, dchat])

        def normal(d: torch.Tensor, x: torch.Tensor = x, c: torch.Tensor = c, alpha: float = alpha) -> torch.Tensor:
            return derivative_adjoint(fourier.normal(d[0] * c + x * coils(d[1:])), x, c) + alpha * d

        right = derivative_adjoint(b - fourier.normal(x * c)) - alpha * state
        update = conjugate_gradient(
            normal, right, torch.zeros_like(right), cg_steps, _CG_TOLERANCE, n_axes=3, should_stop=should_stop
        )
        state = state + update
        alpha /= 2
        yield state[0] / scale, coils(state[1:])


def zero_filled_start(model: EncodingModel) -> JointStart:
    """Return the paper's start: coils = zero-filled coil images over their RSS, image = that RSS."""
    b = model.coil_images
    rss = root_sum_of_squares(b)
    csm = b / rss.clamp_min(_AIR * float(rss.max()))
    return JointStart(rss.to(b.dtype), csm, _no_gauge(rss))


def acs_start(model: EncodingModel, radius: float = 0.06) -> JointStart:
    """Coils from a Hann window of the k-space centre (|k| < radius cycles/pixel): free of aliasing."""
    b = model.coil_images
    ny, nx = b.shape[-2:]
    k = torch.hypot(torch.fft.fftfreq(ny)[:, None], torch.fft.fftfreq(nx)[None, :]).to(b.device)
    window = 0.5 * (1 + torch.cos(torch.pi * (k / radius).clamp_max(1)))
    low = torch.fft.ifft2(torch.fft.fft2(b) * window)
    csm = low / root_sum_of_squares(low).clamp_min(torch.finfo(torch.float32).tiny)
    image = (csm.conj() * b).sum(0)
    return JointStart(image, csm, _no_gauge(image))


def smooth_phase_into_coils(start: JointStart, width: float = 0.03) -> JointStart:
    """Move the smooth part of the image's phase into the coils, where it costs nothing.

    The data cannot tell the two apart. The prior can: it was trained on magnitudes and takes real and
    imaginary parts as independent, so it serves an image with little phase best.

    Parameters
    ----------
    width
        Standard deviation of the Gaussian low-pass that defines "smooth", cycles/pixel.
    """
    ny, nx = start.image.shape
    k = torch.hypot(torch.fft.fftfreq(ny)[:, None], torch.fft.fftfreq(nx)[None, :]).to(start.image.device)
    low = torch.fft.ifft2(torch.fft.fft2(start.image) * torch.exp(-0.5 * (k / width) ** 2))
    phase = torch.polar(torch.ones_like(low.real), low.angle())
    return JointStart(start.image * phase.conj(), start.csm * phase, start.gauge * phase)


def _smoothing_spectrum(ny: int, nx: int, device: torch.device) -> torch.Tensor:
    ky, kx = (torch.fft.fftfreq(n, device=device, dtype=torch.float64) for n in (ny, nx))
    found: torch.Tensor = (1 + _SMOOTH_A * (ky[:, None] ** 2 + kx[None, :] ** 2)) ** (-_SMOOTH_B / 2)
    return found


def _unit_coils(image: torch.Tensor, csm: torch.Tensor) -> JointStart:
    rss = root_sum_of_squares(csm).clamp_min(torch.finfo(torch.float32).tiny)
    image, csm = (image * rss).to(torch.complex64), (csm / rss).to(torch.complex64)
    return JointStart(image, csm, _no_gauge(image))


def _no_gauge(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(image.shape, dtype=torch.complex64, device=image.device)
