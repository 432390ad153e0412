"""One limit for all readouts that wait: those read ahead of time, and those whose frame is not complete."""

from __future__ import annotations

import threading

# What the Python objects of a readout cost beside its samples.
OBJECT_BYTES = 1024


class ByteBudget:
    """Bytes that wait, counted by all who keep them.

    A message that is taken from the one place and put into the other stays within the limit. Who keeps frames
    refuses more when its share alone is over the limit; who reads ahead pauses when both together would be, but
    has always room for one message: so neither ever waits for the other.

    Parameters
    ----------
    limit
        Bytes, ``limits.max_buffer_bytes``.

    Attributes
    ----------
    ahead
        Bytes of messages that nobody has taken yet; 0 means there are none.
    held
        Bytes of readouts that wait for their frame.
    changed
        Guards both counts, and is notified when one falls.
    """

    def __init__(self, limit: int = 8 << 30) -> None:
        self.limit = limit
        self.ahead = self.held = 0
        self.changed = threading.Condition()

    def hold(self, n_bytes: int) -> bool:
        """Count bytes that wait for a frame; whether these alone are within the limit."""
        with self.changed:
            self.held += n_bytes
            return self.held <= self.limit

    def release(self, n_bytes: int) -> None:
        """Count bytes of a frame that has left."""
        with self.changed:
            self.held -= n_bytes
            self.changed.notify_all()

    def has_room(self, n_bytes: int) -> bool:
        """Whether a message may be read ahead; ask with `changed` held."""
        return not self.ahead or self.ahead + self.held + n_bytes <= self.limit
