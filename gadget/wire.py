"""Exact reads from a socket, and the message ids of Gadgetron's wire protocol."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

CLOSE, TEXT, ERROR = 4, 5, 8
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026
CHUNK = 1 << 20


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
        # after a message went out in part, whatever follows would be read as the rest of it
        self._torn = False
        raw.settimeout(idle_timeout_s)

    def read(self, n_bytes: int, *, first: bool = False) -> bytes:
        """Read exactly `n_bytes`; `first` says that a message begins here.

        Raises
        ------
        TransportError
            E401 end of the stream between messages, E402 inside one, E403 nothing came for
            `idle_timeout_s`.
        """
        # grows with what arrives, so that an announced size alone costs no memory
        received = bytearray()
        while len(received) < n_bytes:
            try:
                chunk = self.socket.recv(min(n_bytes - len(received), CHUNK))
            except TimeoutError:
                raise broken(
                    403,
                    f"nothing was received for {self.idle_timeout_s:g} s (got {len(received)} of {n_bytes} bytes).",
                    "If pauses in the scan are that long, raise limits.idle_timeout_s.",
                ) from None
            except ConnectionError:
                chunk = b""
            if not chunk:
                if first and not received:
                    raise broken(401, "the stream ended without CLOSE.", "The sender died or was aborted.")
                raise broken(402, f"the stream ended inside a message: got {len(received)} of {n_bytes} bytes.")
            received += chunk
        return bytes(received)

    def write(self, data: Any) -> None:
        """Write everything.

        Raises
        ------
        TransportError
            E407 when the peer does not take the data in `idle_timeout_s`, E409 when it is gone.
        """
        if self._torn:
            raise broken(409, "an earlier message went out in part only; nothing can follow it.")
        try:
            self.socket.sendall(data)
        except TimeoutError:
            self._torn = True
            raise broken(407, f"the receiver took no data for {self.idle_timeout_s:g} s.") from None
        except OSError:
            self._torn = True
            raise broken(409, "the receiver closed the connection before the images were sent.") from None

    def close(self) -> None:
        """Send CLOSE if somebody still listens, and close."""
        if not self._torn:
            with contextlib.suppress(OSError):
                self.socket.sendall(struct.pack("<H", CLOSE))
        self.socket.close()
