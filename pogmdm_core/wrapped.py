"""Objects larger than the field of view of a scan on the grid: what is outside folds back over what is inside.

No single set of coils explains a pixel that holds two places. On a field of view twice as large every place has a pixel
of its own, coils are as smooth as ever, and the lines that were sampled are every other line of its k-space. So the
scan is one of twice the acceleration, which the coils and the prior resolve as any other, and the image is folded again
at the end: each coil's, then the root of their sum of squares, as a full scan would show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pogmdm_core.estimate.joint_start import JointStart, joint_start
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.result import ReconResult
from pogmdm_core.run import Run
from pogmdm_core.settings import CoilSettings
from pogmdm_core.uncertainty.combine import object_mask
from pogmdm_core.uncertainty.model_error import model_error

# Root mean square at the edge over that inside the object: .02 to .04 on scans that end in air, .3 to .9 on others
_REACHES_EDGE = 0.15
_EDGE_SHARE, _LEAST_EDGE = 50, 2
# Residual near the centre of k-space with the larger field of view over that without: .4 to .85 on wrapped scans, .94
# and more on others
_EXPLAINS = 0.9


@dataclass(frozen=True)
class Wrapped:
    """A scan whose object is larger than its field of view.

    Attributes
    ----------
    frame
        The same samples as those of twice the field of view.
    start
        Image and coils there.
    """

    frame: KSpaceFrame
    start: JointStart

    def folded(self, result: ReconResult) -> ReconResult:
        """What a full scan of the field of view shows, from the `result` of `frame`."""
        axis = self.frame.doubled_axis
        assert axis is not None  # noqa: S101 - it is what makes this class
        image = torch.polar(result.image, result.phase)
        coil_images = _fold(result.csm * image, axis).sum(0)
        magnitude = root_sum_of_squares(coil_images)
        places = _fold(image, axis)
        brighter = torch.where(places[0].abs() > places[1].abs(), places[0], places[1])
        phase = brighter.angle()
        tiny = torch.finfo(torch.float32).tiny

        coils, turns = _fold(result.csm, axis), torch.polar(torch.ones_like(result.phase), result.phase)
        first, second = coils * _fold(turns, axis)[:, None]
        overlap = (first.conj() * second).sum(0).real

        def magnitude_of(values: torch.Tensor | None) -> torch.Tensor | None:
            """Of magnitudes `(..., 2 y, x)`, with coils and phases of the image."""
            if values is None:
                return None
            one, other = _fold(values, axis)
            squared: torch.Tensor = one.square() + other.square() + 2 * overlap * one * other
            return squared.clamp_min(0).sqrt()

        std = None
        if result.std is not None:
            one, other = places.abs()
            slopes = torch.stack([one + overlap * other, other + overlap * one]) / magnitude.clamp_min(tiny)
            # where both places are dark the slopes say nothing
            slopes = torch.where(magnitude > tiny, slopes.abs(), 1.0)
            std = (slopes.square() * _fold(result.std, axis).square()).sum(0).sqrt()
        return replace(
            result,
            image=magnitude,
            std=std,
            mean=magnitude_of(result.mean),
            map=magnitude_of(result.map),
            samples=magnitude_of(result.samples),
            phase=phase,
            csm=coil_images / torch.polar(magnitude.clamp_min(tiny), phase),
        )


def unwrapped(
    model: EncodingModel, start: JointStart, noise_std: float, settings: CoilSettings, run: Run
) -> Wrapped | None:
    """Find out whether an object is larger than the field of view; None where it is not.

    A field of view twice as large is tried where the image reaches an edge, and taken where it explains k-space better.

    Parameters
    ----------
    model
        The scan.
    start
        Image and coils within the field of view, or `Wrapped.start` of the same scan.
    noise_std
        Per real/imaginary part of a sample, > 0, units of the model's data.
    settings, run
        As for the joint start.
    """
    if model.frame.mask is None or model.frame.doubled_axis is not None:
        return None
    if start.image.shape != model.frame.shape:  # of a reconstruction that has found out
        return Wrapped(doubled(model.frame, 0 if start.image.shape[0] != model.frame.shape[0] else 1), start)
    reaches = [_at_edge(start.image.abs().cpu(), axis) for axis in (0, 1)]
    axis = reaches.index(max(reaches))
    if reaches[axis] < _REACHES_EDGE:
        return None
    frame = doubled(model.frame, axis)
    larger = EncodingModel(frame, model.scale)
    found = joint_start(larger, settings, noise_std * 0.5**0.5, run)
    before, after = (
        model_error(m.frame, m.residual_squares(s.image, s.csm), std)
        for m, s, std in ((model, start, noise_std), (larger, found, noise_std * 0.5**0.5))
    )
    return Wrapped(frame, found) if after < _EXPLAINS * before else None


def doubled(frame: KSpaceFrame, axis: int) -> KSpaceFrame:
    """Return the samples of a Cartesian frame as those of a field of view twice as large along an axis (0: y, 1: x)."""
    assert frame.mask is not None  # noqa: S101 - callers know
    n = frame.shape[axis]
    at = torch.arange(n, device=frame.mask.device) * 2 + n - 2 * (n // 2)
    shape = list(frame.shape)
    shape[axis] = 2 * n
    mask = frame.mask.new_zeros(shape).index_copy_(axis, at, frame.mask)
    # unitary transforms of twice as many pixels
    kspace = frame.kspace.new_zeros(frame.n_coils, *shape).index_copy_(axis + 1, at, frame.kspace * 0.5**0.5)
    return replace(
        frame,
        kspace=kspace,
        mask=mask,
        shape=(shape[0], shape[1]),
        noise_std=None if frame.noise_std is None else frame.noise_std * 0.5**0.5,
        noise_floor=frame.noise_floor * 0.5**0.5,
        doubled_axis=axis,
    )


def _fold(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Both places that share each pixel of the field of view: `(..., y, x)` to `(2, ..., y, x)`, the axis halved."""
    n = values.shape[axis - 2] // 2
    # pixel n, the centre, belongs to pixel n // 2
    return torch.stack(values.roll(n // 2 - n, axis - 2).chunk(2, axis - 2))


def _at_edge(magnitude: torch.Tensor, axis: int) -> float:
    """Root mean square of the lines at both ends of an axis over that inside the object."""
    inside = object_mask(magnitude)
    if not bool(inside.any()):
        return 0.0
    n = max(_LEAST_EDGE, magnitude.shape[axis] // _EDGE_SHARE)
    edge = torch.cat([magnitude.narrow(axis, 0, n), magnitude.narrow(axis, magnitude.shape[axis] - n, n)], axis)
    return float((edge.square().mean() / magnitude[inside].square().mean()).sqrt())
