"""Sends a scan in a thread while the answer is read: both ends have finite buffers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

from gadget.stream.wire import CLOSE, HEADER


class Sender(threading.Thread):
    """Sends configuration, header, messages and CLOSE.

    Parameters
    ----------
    connection
        Connected socket.
    configuration
        A complete message.
    header
        ISMRMRD header, XML.
    messages
        Readouts and waveforms, each a complete message. They are taken in the thread.
    """

    def __init__(
        self, connection: socket.socket, configuration: bytes, header: bytes, messages: Iterable[bytes]
    ) -> None:
        super().__init__(name="scan-sender", daemon=True)
        self._connection = connection
        self._head = configuration + struct.pack("<HI", HEADER, len(header)) + header
        self._messages = messages
        self._error: Exception | None = None

    def run(self) -> None:
        """Send; begun by `start`."""
        try:
            for message in itertools.chain([self._head], self._input(), [struct.pack("<H", CLOSE)]):
                self._connection.sendall(message)
        except OSError:
            return  # the other side stopped reading; why is in what it sends, the receiver's to tell

    def stop(self) -> None:
        """End the sending, finished or not."""
        self._shut_down()
        self.join(10)

    def raise_input_error(self) -> None:
        """Raise what went wrong while reading the input, if anything did."""
        if self._error is not None:
            raise self._error

    def _input(self) -> Iterator[bytes]:
        try:
            yield from self._messages
        except Exception as error:  # noqa: BLE001 - handed over to the main thread
            self._error = error
            self._shut_down()  # nor can CLOSE follow, which would make the part look like a whole scan

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # already closed by the other side
            self._connection.shutdown(socket.SHUT_RDWR)
