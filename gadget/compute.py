"""One frame through the reconstruction, within its time and memory.

Time: past ``limits.recon_deadline_s`` the best image so far is taken, and labelled. Memory: when it runs out, fewer
samples at once, then fewer channels, then the CPU. A device that is lost gets one retry on the CPU. Each step is
logged and named in the result's warnings.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gadget import logs
from gadget.errors import ComputeError, TransportError
from gadget.kspace.prepare import compressed

if TYPE_CHECKING:
    from gadget.core import Core
    from gadget.scan.frames import FrameKey
    from gadget.settings.schema import GadgetSettings
    from pogmdm_core import KSpaceFrame, Prior, Progress, ReconResult
    from pogmdm_core.estimate.joint_start import JointStart

_FEWEST_CHANNELS = 4
# What allocations that fail say where torch has no class for it: the CPU's, the driver's, cuFFT's for its work space.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUFFT_ALLOC_FAILED")
_LADDER = ("SMALLER_BATCH", "FEWER_CHANNELS", "ON_CPU")


class Deadline:
    """Tells whether time is up; the clock is one that nobody sets.

    Parameters
    ----------
    seconds
        From now; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def passed(self) -> bool:
        """Whether time is up."""
        return self._end is not None and time.monotonic() >= self._end


def compute(
    core: Core,
    frame: KSpaceFrame,
    prior: Prior,
    settings: GadgetSettings,
    key: FrameKey,
    progress: Callable[[Progress], object] | None,
    gone: Callable[[], bool] = lambda: False,
    start: JointStart | None = None,
    early: Callable[[ReconResult], object] | None = None,
) -> ReconResult:
    """Reconstruct a frame.

    Parameters
    ----------
    core
        `pogmdm_core`.
    frame, prior, settings, progress, start, early
        See `pogmdm_core.reconstruct`.
    key
        Names the frame in the log.
    gone
        Asked between steps whether the client has hung up, who would wait for nothing.

    Raises
    ------
    TransportError
        E409 the client has hung up.
    ComputeError
        E502 out of memory on every step of the ladder, E503 the device was lost and the CPU failed too, E510 the
        sampler diverged, E511 time was up before the first estimate.
    """
    deadline = Deadline(settings.limits.recon_deadline_s)
    if deadline.seconds is not None and settings.sampler.batch == 0:
        # one after another: those that are done by then count. Results do not depend on it
        settings = _with_sampler(settings, batch=1)
    taken: list[str] = []
    left = False

    def should_stop() -> bool:
        nonlocal left
        left = left or gone()
        return left or deadline.passed()

    steps = _ladder(frame, settings)
    attempt, failed = next(steps), ""
    while True:
        known = start if attempt[1] is frame else None  # fewer channels need a start of their own
        result, failed = _attempt(core, *attempt[1:], prior, should_stop, progress, known, early)
        if left:
            raise TransportError(409, f"{key}: cancelled, for the client has closed the connection.")
        if result is not None:
            break
        # no longer in the handler: its traceback would keep the tensors of the failed attempt
        _free_memory()
        if "ON_CPU" in taken and failed == "lost":
            raise ComputeError(503, f"{key}: the device was lost, and the CPU failed too.", "See: pogmdm doctor")
        following = next((step for step in steps if failed == "memory" or step[0] == "ON_CPU"), None)
        if following is None:
            if failed == "lost":
                raise ComputeError(503, f"{key}: the device was lost.", "See: pogmdm doctor")
            raise ComputeError(
                502,
                f"{key}: out of memory, after trying {', '.join(taken) or 'the smallest there is'}.",
                "Set coils.n_virtual, or a smaller sampler.n_samples.",
            )
        attempt = following
        taken.append(attempt[0])
        what = "out of memory" if failed == "memory" else "the device was lost"
        logs.get().warning("%s: %s; trying again: %s", key, what, attempt[0])
    begun = result.start if attempt[1] is frame else None
    return _judged(replace(result, warnings=(*result.warnings, *taken), start=begun), deadline, key)


def _judged(result: ReconResult, deadline: Deadline, key: FrameKey) -> ReconResult:
    """Label what the deadline cut short; refuse what is no estimate."""
    from pogmdm_core import SamplerStatus

    if result.status is SamplerStatus.DIVERGED:
        raise ComputeError(510, f"{key}: the sampler diverged ({result.detail}).", "Lower sampler.start_level.")
    if result.status is not SamplerStatus.CANCELLED:
        return result
    if result.map is None and result.n_samples < 2:
        raise ComputeError(
            511,
            f"{key}: limits.recon_deadline_s = {deadline.seconds:g} s passed before the first estimate was made.",
            "Raise it, or choose preset=fast.",
        )
    logs.get().warning("%s: time is up (%g s); %d samples are done", key, deadline.seconds, result.n_samples)
    return replace(
        result,
        status=SamplerStatus.DEADLINE,
        detail=f"stopped after {deadline.seconds:g} s",
        warnings=(*result.warnings, "DEADLINE"),
    )


def _attempt(
    core: Core,
    frame: KSpaceFrame,
    settings: GadgetSettings,
    prior: Prior,
    should_stop: Callable[[], bool],
    progress: Callable[[Progress], object] | None,
    start: JointStart | None,
    early: Callable[[ReconResult], object] | None,
) -> tuple[ReconResult | None, str]:
    """Result, or None and what was short: ``memory``, or the device itself: ``lost``."""
    import torch

    try:
        result = core.reconstruct(
            frame, prior, settings, progress=progress, should_stop=should_stop, start=start, early=early
        )
        return result, ""
    except (torch.cuda.OutOfMemoryError, MemoryError):
        return None, "memory"
    except RuntimeError as error:  # torch has no class of its own for these in all versions
        text = str(error)
        if any(words in text for words in _OUT_OF_MEMORY):
            return None, "memory"
        if text.startswith("CUDA error"):
            return None, "lost"
        raise


def _ladder(frame: KSpaceFrame, settings: GadgetSettings) -> Iterator[tuple[str, KSpaceFrame, GadgetSettings]]:
    """What to try, one after another: name, frame and settings; the first is what was asked for."""
    import torch

    yield "", frame, settings
    batch, channels, cpu = _LADDER
    if settings.sampler.n_samples > 1 and settings.sampler.batch != 1:
        settings = _with_sampler(settings, batch=1)
        yield batch, frame, settings
    fewer = max(_FEWEST_CHANNELS, frame.n_coils // 2)
    if fewer < frame.n_coils:
        frame = compressed(frame, fewer)
        yield channels, frame, settings
    if settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available()):
        yield cpu, frame, settings.model_copy(update={"device": "cpu"})


def _with_sampler(settings: GadgetSettings, **changes: object) -> GadgetSettings:
    return settings.model_copy(update={"sampler": settings.sampler.model_copy(update=changes)})


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a card that is lost; the CPU is still there
            logs.get().warning("the card's memory could not be freed: %s", str(error).splitlines()[0])
