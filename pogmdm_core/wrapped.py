"""Objects larger than the field of view of a scan on the grid: what is outside folds back over what is inside.

No single set of coils explains a pixel that holds two places. On a field of view twice as large every place has a pixel
of its own, coils are as smooth as ever, and the lines that were sampled are every other line of its k-space. So the
scan is one of twice the acceleration, which the coils and the prior resolve as any other. What is shown, and what the
standard deviation is of, is folded again (`pogmdm_core.measurement.folding`): each coil's image, then the root of their
sum of squares, as of a full scan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pogmdm_core.estimate.joint_start import JointStart, joint_start, low_pass
from pogmdm_core.frame import KSpaceFrame
from pogmdm_core.measurement.encoding import EncodingModel, root_sum_of_squares
from pogmdm_core.measurement.folding import amplitude, doubled, places, shown_magnitudes
from pogmdm_core.result import ReconResult
from pogmdm_core.run import Run, SamplerStatus
from pogmdm_core.settings import CoilSettings
from pogmdm_core.uncertainty.combine import object_mask
from pogmdm_core.uncertainty.model_error import FITS, model_error

# Root mean square at the edge over that inside the object, of an image without its noise: below .06 on scans that end
# in air, .17 to .9 on wrapped ones
_REACHES_EDGE = 0.1
_CLEARLY = 0.3  # gains, phases and ghosts leave .2 at most
_LOW_PASS = 0.06  # standard deviation of the Gaussian that takes the noise off, cycles/pixel
_EDGE_SHARE, _LEAST_EDGE = 50, 2
# Residual near the centre of k-space with the larger field of view over that without: .3 to .85 on wrapped scans, .94
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

    @classmethod
    def again(cls, frame: KSpaceFrame, start: JointStart) -> Wrapped:
        """Take up the scan `frame` with what an earlier reconstruction of it began with, `start`."""
        return cls(doubled(frame, 0 if start.image.shape[0] != frame.shape[0] else 1), start)

    def folded(self, result: ReconResult) -> ReconResult:
        """`result` of `frame` as one of the scan; its standard deviation is that of what is shown already."""
        axis = self.frame.doubled_axis
        assert axis is not None  # noqa: S101 - it is what makes this class
        image = torch.polar(result.image, result.phase)
        coil_images = places(result.csm * image, axis).sum(0)
        magnitude = root_sum_of_squares(coil_images)
        one, other = places(image, axis)
        phase = torch.where(one.abs() > other.abs(), one, other).angle()
        tiny = torch.finfo(torch.float32).tiny

        def folded(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else shown_magnitudes(values, image, result.csm, axis)

        return replace(
            result,
            image=magnitude,
            mean=folded(result.mean),
            map=folded(result.map),
            samples=folded(result.samples),
            phase=phase,
            csm=coil_images / torch.polar(magnitude.clamp_min(tiny), phase),
            noise_std=result.noise_std * amplitude(axis),
            noise_level=result.noise_level * amplitude(axis),
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
        Image and coils within the field of view.
    noise_std
        Per real/imaginary part of a sample, > 0, units of the model's data.
    settings, run
        As for the joint start.
    """
    if model.frame.mask is None or run.status is not SamplerStatus.OK:
        return None
    smooth = low_pass(start.image, _LOW_PASS).abs().cpu()
    reaches = [_at_edge(smooth, axis) for axis in (0, 1)]
    axis = reaches.index(max(reaches))
    if reaches[axis] < _REACHES_EDGE:
        return None
    frame, larger_noise = doubled(model.frame, axis), noise_std / amplitude(axis)
    larger, trial = EncodingModel(frame, model.scale), Run(None, run.should_stop)
    found = joint_start(larger, settings, larger_noise, trial)
    if trial.status is not SamplerStatus.OK:
        return None
    before = model_error(model.frame, model.residual_squares(start.image, start.csm), noise_std)
    after = model_error(frame, larger.residual_squares(found.image, found.csm), larger_noise)
    # lines that err leave a little at the edge, and more unknowns explain them better, too, but not to the noise
    is_clear = reaches[axis] > _CLEARLY or after < FITS
    return Wrapped(frame, found) if is_clear and after < _EXPLAINS * before else None


def _at_edge(magnitude: torch.Tensor, axis: int) -> float:
    """Root mean square of the lines at both ends of an axis over that inside the object."""
    inside = object_mask(magnitude)
    if not bool(inside.any()):
        return 0.0
    n = max(_LEAST_EDGE, magnitude.shape[axis] // _EDGE_SHARE)
    edge = torch.cat([magnitude.narrow(axis, 0, n), magnitude.narrow(axis, magnitude.shape[axis] - n, n)], axis)
    return float((edge.square().mean() / magnitude[inside].square().mean()).sqrt())
