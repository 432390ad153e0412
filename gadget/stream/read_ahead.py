"""Reading on while a frame is reconstructed: a thread between the socket and the sampler.

Without it the socket's buffers fill up within milliseconds of data while the sampler works for seconds, and the
scanner's side stands still.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from gadget.stream.budget import OBJECT_BYTES, ByteBudget
from gadget.stream.wire import ExactSocket

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Messages read by a thread of its own, and kept until they are asked for.

    Parameters
    ----------
    messages
        What to read; iterated in the thread. Its errors are raised where the messages are consumed, after them.
    source
        The socket they come from. Its silence counts as the sender's fault only while the consumer waits: a sender
        may well wait for images before it goes on.
    budget
        What is kept counts there; when it is used up, reading pauses. A single message may always be kept.
    """

    def __init__(self, messages: Callable[[], Iterator[T]], source: ExactSocket, budget: ByteBudget) -> None:
        self._messages, self._source, self._budget = messages, source, budget
        self._kept: collections.deque[tuple[T, int]] = collections.deque()
        self._discarding = self._ended = False
        self._error: Exception | None = None
        self._changed = budget.changed
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while taken := self._take():
            yield taken.pop()  # nothing of it is kept here, it may be a whole scan
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _take(self) -> list[T]:
        """Next message, or nothing when they have ended."""
        with self._changed:
            self._source.waiting_since = time.monotonic()
            self._changed.wait_for(lambda: self._kept or self._ended)
            self._source.waiting_since = math.inf
            if not self._kept:
                return []
            item, n_bytes = self._kept.popleft()
            self._budget.ahead -= n_bytes
            self._changed.notify_all()
            return [item]

    def finish(self) -> None:
        """Drop everything, now and until the messages end: with CLOSE, an error, or the source's `deadline`."""
        with self._changed:
            self._discarding = True
            self._kept.clear()
            self._budget.ahead = 0
            self._source.waiting_since = time.monotonic()
            self._changed.notify_all()
        self._thread.join()

    def _read(self) -> None:
        before = self._source.n_read
        try:
            for item in self._messages():
                n_bytes, before = self._source.n_read - before, self._source.n_read
                self._keep(item, n_bytes + OBJECT_BYTES)
        except Exception as error:  # noqa: BLE001 - raised again where the messages are consumed
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _keep(self, item: T, n_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._discarding or self._budget.has_room(n_bytes))
            if not self._discarding:
                self._kept.append((item, n_bytes))
                self._budget.ahead += n_bytes
                self._changed.notify_all()
