"""What accompanies a reconstruction: progress, cancellation, timings, status and warnings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class SamplerStatus(str, Enum):
    """How a reconstruction ended. Only OK and NO_SIGNAL are complete results; callers that stop one say DEADLINE."""

    OK = "ok"
    NO_SIGNAL = "no_signal"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Progress:
    """One progress report; ``str()`` of it is a line for a log."""

    stage: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total}"


ProgressHook = Callable[[Progress], object]
StopHook = Callable[[], bool]


class Run:
    """One reconstruction under way.

    Parameters
    ----------
    progress
        Called with a `Progress` after every step, or None.
    should_stop
        Asked between steps; True ends the run with status CANCELLED. Or None.

    Attributes
    ----------
    progress
        As given.
    seconds
        Wall time per stage.
    status, detail
        How it stands; OK until something ends it.
    warnings
        Short upper-case words.
    """

    def __init__(self, progress: ProgressHook | None, should_stop: StopHook | None) -> None:
        self.progress, self._should_stop = progress, should_stop
        self.seconds: dict[str, float] = {}
        self.status, self.detail = SamplerStatus.OK, ""
        self.warnings: list[str] = []
        self._reached: dict[str, int] = {}
        self._lock = threading.RLock()  # several threads work on held-out images and samples

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        begin = time.monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begin

    def reporter(self, stage: str, before: int = 0, total: int | None = None) -> Callable[[int, int], None] | None:
        """Return what a stage calls with (step, steps); `before` of `total` steps were made earlier.

        What comes late, from a thread that is behind another, is not told: progress does not go back.
        """
        if self.progress is None:
            return None
        hook = self.progress

        def report(done: int, steps: int) -> None:
            with self._lock:
                if before + done > self._reached.get(stage, 0):
                    self._reached[stage] = before + done
                    hook(Progress(stage, before + done, total or steps))

        return report

    def should_stop(self) -> bool:
        """Ask the caller, unless the answer is known."""
        with self._lock:
            if self._should_stop is not None and self.status is not SamplerStatus.CANCELLED and self._should_stop():
                self.end(SamplerStatus.CANCELLED, "cancelled by the caller")
        return self.status is SamplerStatus.CANCELLED

    def end(self, status: SamplerStatus, detail: str) -> None:
        """Set status and detail."""
        self.status, self.detail = status, detail
