"""Processor time: what comparisons on a busy machine go by."""

from __future__ import annotations

import resource


def cpu_seconds() -> float:
    """User and system time so far, of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
