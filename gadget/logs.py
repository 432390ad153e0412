"""Log lines on stderr: never on stdout, which carries the data when Gadgetron runs as a pipe."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pogmdm_core.run import Progress

LOGGER_NAME = "pogmdm"

# The launcher sets the root logger to DEBUG, at which these write page after page.
_NOISY = ("matplotlib", "PIL", "numba", "h5py", "torch", "xsdata", "asyncio")


def get() -> logging.Logger:
    """Return the one logger of this software."""
    return logging.getLogger(LOGGER_NAME)


def configure(level: str = "info") -> logging.Logger:
    """Set the level, quieten libraries, and add a stderr handler if the launcher set none up.

    Parameters
    ----------
    level
        ``debug``, ``info``, ``warning`` or ``error``.
    """
    logger = get()
    logger.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
        logger.addHandler(handler)
    return logger


def progress_lines(
    label: str, tell: Callable[[str], None] | None = None, every_s: float = 4.0
) -> Callable[[Progress], None]:
    """Return a progress callback that logs at most one line every so many seconds, with the time left.

    With ``POGMDM_PROGRESS=1`` in the environment every report is logged in a form a program can read
    instead, ``POGMDM_PROGRESS <stage> <done> <total>``: `pogmdm run` makes a progress bar of it.

    Parameters
    ----------
    label
        What is being computed, e.g. ``frame 1 slice 0``.
    tell
        Called with every line, too.
    every_s
        Seconds between lines.
    """
    if os.environ.get("POGMDM_PROGRESS") == "1":
        return lambda progress: get().info("POGMDM_PROGRESS %s %d %d", progress.stage, progress.done, progress.total)
    start = last = time.monotonic()
    stage = ""

    def report(progress: Progress) -> None:
        nonlocal start, last, stage
        now = time.monotonic()
        if progress.stage != stage:
            stage, start = progress.stage, now
        if now - last < every_s:
            return
        last = now
        left = (now - start) * (progress.total - progress.done) / max(progress.done, 1)
        line = f"{label}: {progress}, about {left:.0f} s left in this stage"
        get().info("%s", line)
        if tell is not None:
            tell(line)

    return report
