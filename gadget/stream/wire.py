"""Exact reads from a socket, and the message ids of Gadgetron's wire protocol."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import wait

CONFIG_FILE, CONFIG, HEADER, CLOSE, TEXT, QUERY, RESPONSE, ERROR = 1, 2, 3, 4, 5, 6, 7, 8
CONFIG_FILE_BYTES = 1024
ACQUISITION, IMAGE, RECON_DATA, WAVEFORM = 1008, 1022, 1023, 1026
CHUNK = 1 << 20
# Linux names it; elsewhere such a peer is noticed when images are sent.
_PEER_SENDS_NO_MORE = getattr(select, "POLLRDHUP", 0)
# How often a silent socket is asked whether somebody waits for it by now, seconds.
_LOOK_S = 0.2
# A message that comes more slowly than this is given up, once `idle_timeout_s` is used up; bytes per second.
_SLOWEST = 10


def broken(code: int, message: str, hint: str = "") -> Exception:
    """Make a TransportError."""
    # looked up late: this module has to work where importing pogmdm_core (torch) fails
    from gadget.errors import TransportError

    return TransportError(code, message, hint)


def too_big(what: str, found: int, limit_name: str, limit: int) -> Exception:
    """Make the DataError E302 of a limit."""
    from gadget.errors import DataError

    return DataError(
        302,
        f"{what} {found} exceeds limits.{limit_name} = {limit}.",
        f"If the scan is really that large, raise limits.{limit_name}.",
    )


def impossible(what: str, found: int, most: int) -> Exception:
    """Make the DataError E302 of a number that the format itself does not allow."""
    from gadget.errors import DataError

    return DataError(302, f"{what} {found} exceeds {most}, the most there can be.", "The sender is damaged.")


def fill(received: bytearray, n_bytes: int, read: Callable[[int], bytes]) -> bool:
    """Append what `read` gives until `n_bytes` are there; False where it ends before.

    Grows with what arrives, so that an announced size alone costs no memory.
    """
    while len(received) < n_bytes:
        part = read(min(n_bytes - len(received), CHUNK))
        if not part:
            return False
        received += part
    return True


class ExactSocket:
    """Stands in for the stock wrapper of a socket: reads exactly, or says what is wrong.

    Parameters
    ----------
    raw
        Connected socket; its time-out is set to `idle_timeout_s`.
    idle_timeout_s
        Seconds without a byte after which the peer counts as lost.
    """

    def __init__(self, raw: socket.socket, idle_timeout_s: float) -> None:
        self.socket = raw
        self.idle_timeout_s = idle_timeout_s
        # time.monotonic() at which reading ends although bytes still trickle in
        self.deadline = math.inf
        # ... since when somebody waits for the bytes; infinity while nobody does. Silence counts from then on
        self.waiting_since = -math.inf
        self.n_read = 0
        # of the message that is being read: when its first byte was there, and how many are
        self._begun, self._n_message = math.inf, 0
        self._unread = b""
        # after a message went out in part, whatever follows would be read as the rest of it
        self._torn = False
        # of a message that begins with it, sent to see whether the peer is still there
        self._ahead_of_time = b""
        raw.settimeout(idle_timeout_s)

    def read(self, n_bytes: int, *, first: bool = False) -> bytes:
        """Read exactly `n_bytes`; `first` says that a message begins here.

        Raises
        ------
        TransportError
            E401 end of the stream between messages, E402 inside one, E403 nothing came for
            `idle_timeout_s`, the message takes `idle_timeout_s` and a second per 10 bytes of it that
            have come, or `deadline` is over.
        """
        if first:
            self._begun, self._n_message = math.inf, 0
        received = bytearray(self._unread[:n_bytes])
        self._unread = self._unread[n_bytes:]
        self._count(len(received))
        try:
            is_whole = fill(received, n_bytes, self._receive)
        except TimeoutError as late:
            raise broken(
                403,
                f"{late} (got {len(received)} of {n_bytes} bytes).",
                "If pauses in the scan are that long, raise limits.idle_timeout_s.",
            ) from None
        except ConnectionError:
            is_whole = False
        if not is_whole:
            if first and not received:
                raise broken(401, "the stream ended without CLOSE.", "The sender died or was aborted.")
            raise broken(402, f"the stream ended inside a message: got {len(received)} of {n_bytes} bytes.")
        self.n_read += n_bytes
        return bytes(received)

    def _receive(self, most: int) -> bytes:
        self._wait()
        part = self.socket.recv(most)
        self._count(len(part))
        return part

    def _count(self, n_bytes: int) -> None:
        """Note bytes of the message that is being read; its time runs from the first of them on."""
        if n_bytes:
            self._begun = min(self._begun, time.monotonic())
            self._n_message += n_bytes

    def _wait(self) -> None:
        """Return when there is something to read; raise TimeoutError when that took too long."""
        start = time.monotonic()
        while True:
            now = time.monotonic()
            silent, taken = (max(0.0, now - max(since, self.waiting_since)) for since in (start, self._begun))
            to_silence = self.idle_timeout_s - silent
            to_end = min(self.idle_timeout_s + self._n_message / _SLOWEST - taken, self.deadline - now)
            left = min(to_silence, to_end)
            if left <= 0:
                quiet = f"nothing was received for {self.idle_timeout_s:g} s"
                raise TimeoutError(quiet if to_silence <= to_end else "the sender is too slow")
            if wait([self.socket], min(left, _LOOK_S)):
                return

    def gone(self, next_byte: bytes = b"") -> bool:
        """Whether the peer has reset or wholly closed the connection: nothing that is sent will arrive.

        A peer that has closed the connection and one that only has nothing more to send (half-closed it) look the same
        until something is sent: then the former's system answers with a reset.

        Parameters
        ----------
        next_byte
            First byte of the message that will be sent next. It goes out at once to a peer that sends no more, and
            `write` leaves it out later; a message of another kind can then not be sent. Empty: nothing is tried.
        """
        poll = select.poll()
        poll.register(self.socket, _PEER_SENDS_NO_MORE)  # errors and hang-ups are always reported
        found = poll.poll(0)
        if not found:
            return False
        if found[0][1] & ~_PEER_SENDS_NO_MORE:
            return True
        if next_byte and not (self._ahead_of_time or self._torn):
            self._ahead_of_time = next_byte  # before it goes out, whatever interrupts it
            try:
                self.socket.send(next_byte, socket.MSG_DONTWAIT)
            except BlockingIOError:  # it does not read now, but it is there
                self._ahead_of_time = b""
            except OSError:
                return True
        return False

    @property
    def is_mid_message(self) -> bool:
        """Whether a part of a message is out, so that nothing but its rest may follow."""
        return self._torn or bool(self._ahead_of_time)

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what is read next."""
        self._unread = data + self._unread

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything.

        Raises
        ------
        TransportError
            E407 when the peer does not take the data in `idle_timeout_s`, E409 when it is gone.
        """
        rest = memoryview(data).cast("B")
        sent = self._ahead_of_time
        if self._torn or rest[: len(sent)] != sent:
            raise broken(409, "an earlier message went out in part only; nothing can follow it.")
        self._torn = True  # until all of it is out, whatever interrupts it
        rest, self._ahead_of_time = rest[len(sent) :], b""
        try:
            self.socket.sendall(rest)
        except TimeoutError:
            raise broken(407, f"the receiver took no data for {self.idle_timeout_s:g} s.") from None
        except OSError:
            raise broken(409, "the receiver closed the connection before the images were sent.") from None
        self._torn = False

    def close(self) -> None:
        """Send CLOSE if somebody still listens, and close."""
        if not self.is_mid_message:
            with contextlib.suppress(OSError):
                self.socket.sendall(struct.pack("<H", CLOSE))
        self.socket.close()
