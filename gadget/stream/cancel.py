"""Cancelling by SIGTERM or SIGINT: an exception at the next Python instruction of the main thread.

Asking a flag between the sampler's steps would not do: a read from a silent scanner, or a step of a large image,
takes longer than anybody waits.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Cancelled(BaseException):
    """The process was asked to stop; no `Exception`, so that no handler takes it for a failed computation."""


@contextlib.contextmanager
def cancel_on_signals(*numbers: signal.Signals, once: bool = False) -> Iterator[None]:
    """Raise `Cancelled` in this block when one of the signals comes; a second one acts as it did before.

    With `once` further ones are ignored: for a process whose parent sees to its end.

    Outside the main thread, which is the only one that may handle signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def cancel(number: int, _frame: FrameType | None) -> None:
        if once:
            for other in numbers:
                signal.signal(other, signal.SIG_IGN)
        else:
            restore()
        raise Cancelled(signal.Signals(number).name)

    for number in numbers:
        signal.signal(number, cancel)
    try:
        yield
    finally:
        restore()
