"""The stream as the gadget sees it: exact reads, known messages only, limits before allocation.

`Link` hardens the stock `gadgetron.external.connection.Connection`, which loops for ever at the
end of a broken stream and takes an unknown message for the end of the scan. It needs no fork of
that package: the socket wrapper and the table of readers are replaced on the object.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import ismrmrd
import numpy as np
from ismrmrd.waveform import WaveformHeader

from gadget.stream.budget import ByteBudget
from gadget.stream.read_ahead import ReadAhead
from gadget.stream.wire import (
    ACQUISITION,
    CHUNK,
    CLOSE,
    ERROR,
    IMAGE,
    RECON_DATA,
    TEXT,
    WAVEFORM,
    ExactSocket,
    broken,
    impossible,
    too_big,
)

if TYPE_CHECKING:
    from gadget.stream.recon_data import ReconBit

# Bytes per pixel by data type; ismrmrd's own table has 8 for the 4-byte integer type 4.
_PIXEL_BYTES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}
_ERROR_TEXT_BYTES = 4096
_IMAGE_ID = struct.pack("<H", IMAGE)
# Bits of the header's channel_mask.
_MAX_CHANNELS = 1024
# Longest that a peer may go on sending before it is told of an error, seconds.
_DRAIN_S = 30.0


@dataclass(frozen=True)
class RawMessage:
    """A message that is passed on unchanged, as the bytes that came in (id included)."""

    data: bytes

    @property
    def is_image(self) -> bool:
        """Whether it is an image; else a waveform."""
        return self.data[:2] == _IMAGE_ID


# a readout, buffered k-space, or what is passed on
Message: TypeAlias = "ismrmrd.Acquisition | tuple[ReconBit, ...] | RawMessage"


class Connection(Protocol):
    """gadgetron's connection, or one that takes its place."""

    socket: Any  # gadgetron's wrapper has no type; an `ExactSocket` takes its place
    readers: dict[int, Callable[[ExactSocket], Any]]

    def add_reader(self, mid: int, reader: Callable[[ExactSocket], Any], /) -> None:
        """Name what reads messages of an id."""


class Link:
    """Messages in, messages out, over a stock gadgetron connection whose handshake is done.

    Parameters
    ----------
    connection
        `gadgetron.external.connection.Connection` after its handshake, or `gadget.service.handshake.ServedConnection`.

    Notes
    -----
    Reading ends at CLOSE (``ended`` is then True). After any other end, ``lost`` says that message
    boundaries are no longer known, and `fail` discards bytes instead of reading messages.
    """

    max_message_bytes = 1 << 28
    pass_waveforms = False

    def __init__(self, connection: Connection, idle_timeout_s: float = 300.0) -> None:
        self.connection = connection
        if not isinstance(connection.socket, ExactSocket):
            connection.socket = ExactSocket(connection.socket.socket, idle_timeout_s)
        self.socket: ExactSocket = connection.socket
        self.n_messages = 0
        self.n_waveforms = 0
        self._has_data = False
        self.ended = False
        self.lost = False
        # told what is going on, for whoever watches over this process: the frame, "sending", "sent"
        self.watch: Callable[[str], None] = lambda _: None
        self._ahead: ReadAhead[Message] | None = None
        connection.readers = {}
        connection.add_reader(ACQUISITION, self._read_acquisition)
        connection.add_reader(IMAGE, self._read_image)
        connection.add_reader(RECON_DATA, self._read_recon_data)
        connection.add_reader(WAVEFORM, self._read_waveform)
        connection.add_reader(TEXT, self._skip_text)
        connection.add_reader(ERROR, self._read_error)

    @property
    def _is_fire(self) -> bool:
        """Known once the client has introduced itself."""
        return bool(getattr(self.connection, "fire", False))

    def configure(self, max_message_bytes: int, idle_timeout_s: float, pass_waveforms: bool = False) -> None:
        """Set limits, and whether waveforms go on to the receiver, once the settings are known."""
        self.max_message_bytes, self.pass_waveforms = max_message_bytes, pass_waveforms
        self.socket.idle_timeout_s = idle_timeout_s
        self.socket.socket.settimeout(idle_timeout_s)

    def messages(self) -> Iterator[Message]:
        """Yield acquisitions, tuples of `ReconBit` and `RawMessage` until CLOSE.

        Raises
        ------
        TransportError
            E401, E402, E403 (see `ExactSocket.read`), E404 unknown message, E405 the peer reports
            an error before any data, E414 after some.
        DataError
            E302 a message is larger than the limits, found before any memory is taken.
        """
        self.lost = True
        while True:
            (mid,) = struct.unpack("<H", self.socket.read(2, first=True))
            if mid == CLOSE:
                self.ended, self.lost = True, False
                return
            reader = self.connection.readers.get(mid)
            if reader is None:
                raise broken(
                    404,
                    f"message {self.n_messages} of the stream has the unknown id {mid}.",
                    "The gadget reads acquisitions (1008), images (1022), ReconData (1023) and waveforms (1026).",
                )
            item = reader(self.socket)
            self.n_messages += 1
            if item is not None:
                self._has_data, self.lost = True, False
                yield item
                self.lost = True

    def ahead(self, budget: ByteBudget) -> Iterator[Message]:
        """Give `messages`, which a thread reads from now on, as far as the budget allows."""
        self._ahead = ReadAhead(self.messages, self.socket, budget)
        return iter(self._ahead)

    def send(self, item: ismrmrd.Image | RawMessage) -> None:
        """Send an image or pass a message on, in one write: half an image must not get out."""
        buffer = io.BytesIO()
        if isinstance(item, RawMessage):
            buffer.write(item.data)
        else:
            buffer.write(_IMAGE_ID)
            item.serialize_into(buffer.write)
        self.watch("sending")
        self.socket.write(buffer.getbuffer())
        self.watch("sent")

    def gone(self) -> bool:
        """Whether nobody is left to send images to.

        A FIRE client is sent a text every few seconds, which shows as much as the first byte of the next image would.
        """
        before = self.socket.is_mid_message
        gone = self.socket.gone(b"" if self._is_fire else _IMAGE_ID[:1])
        if self.socket.is_mid_message and not before:
            self.watch("sending")
        return gone

    def report(self, text: str) -> None:
        """Tell how far the reconstruction is, to a client whose protocol has a place for it (FIRE's log viewer)."""
        if self._is_fire:
            self.socket.write(_text(f"DBG {text}"))

    def fail(self, text: str, quiet_s: float = 1.0, most_s: float | None = None) -> None:
        """Report an error to the peer: read what it still sends, once and for a while, then send ERROR.

        A server that is still writing when we close may lose the text, hence the draining; one that
        streams a long scan is told in the middle of it. CLOSE follows when the connection is
        closed. To a FIRE client the error goes as TEXT.

        Parameters
        ----------
        text
            One line, cut at 4096 bytes.
        quiet_s
            When message boundaries are lost there is no CLOSE to wait for: stop after this many
            seconds without a byte.
        most_s
            Read for so many seconds at most; None for the idle time-out, but no more than 30.
        """
        with contextlib.suppress(Exception):  # whatever it is, the first error is the one to report
            self._drain(quiet_s, min(self.socket.idle_timeout_s, _DRAIN_S) if most_s is None else most_s)
        text = text.encode("utf-8")[:_ERROR_TEXT_BYTES].decode("utf-8", "ignore")
        if self._is_fire:  # FIRE knows no ERROR; its log viewer goes by the first word
            message = _text(f"ERR {text}")
        else:
            message = struct.pack("<HQ", ERROR, len(text.encode("utf-8"))) + text.encode("utf-8")
        with contextlib.suppress(Exception):
            self.socket.write(message)

    def _drain(self, quiet_s: float, most_s: float) -> None:
        self.socket.deadline = deadline = time.monotonic() + most_s
        if self._ahead is not None:
            self._ahead.finish()
        elif not (self.ended or self.lost):
            with contextlib.suppress(Exception):
                for _ in self.messages():
                    pass
        if self.ended:
            return
        self.ended = True
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.socket.socket.settimeout(min(quiet_s, left))
                if not self.socket.socket.recv(CHUNK):
                    return
        except OSError:  # silence (a time-out) or a reset: nothing more to read
            pass
        finally:
            self.socket.socket.settimeout(self.socket.idle_timeout_s)

    def _check_bytes(self, what: str, n_bytes: int) -> None:
        if n_bytes > self.max_message_bytes:
            raise too_big(f"the size of {what}, bytes:", n_bytes, "max_message_bytes", self.max_message_bytes)

    def _read_acquisition(self, source: ExactSocket) -> ismrmrd.Acquisition:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(source.read(ctypes.sizeof(ismrmrd.AcquisitionHeader)))
        n, coils, dims = head.number_of_samples, head.active_channels, head.trajectory_dimensions
        if coils > _MAX_CHANNELS:
            raise impossible(f"readout {head.scan_counter}: the number of channels", coils, _MAX_CHANNELS)
        self._check_bytes(f"readout {head.scan_counter}", 4 * n * dims + 8 * n * coils)
        traj = np.frombuffer(source.read(4 * n * dims), dtype="<f4").reshape(n, dims)
        data = np.frombuffer(source.read(8 * n * coils), dtype="<c8").reshape(coils, n)
        return ismrmrd.Acquisition(head, data=data, trajectory=traj)

    def _read_image(self, source: ExactSocket) -> RawMessage:
        head_bytes = source.read(ctypes.sizeof(ismrmrd.ImageHeader))
        head = ismrmrd.ImageHeader.from_buffer_copy(head_bytes)
        length_bytes = source.read(8)
        (n_attributes,) = struct.unpack("<Q", length_bytes)
        if head.data_type not in _PIXEL_BYTES:
            raise broken(404, f"an image has the unknown data type {head.data_type}.")
        n_pixels = int(np.prod([int(m) for m in head.matrix_size], dtype=object)) * head.channels
        n_bytes = n_pixels * _PIXEL_BYTES[head.data_type]
        self._check_bytes("an image", n_attributes + n_bytes)
        parts = (
            _IMAGE_ID,
            head_bytes,
            length_bytes,
            source.read(n_attributes),
            source.read(n_bytes),
        )
        return RawMessage(b"".join(parts))

    def _read_recon_data(self, source: ExactSocket) -> tuple[ReconBit, ...]:
        # imported late: it needs pogmdm_core's errors, and this module has to work without
        from gadget.stream.recon_data import read_recon_data

        return read_recon_data(source, self._check_bytes)

    def _read_waveform(self, source: ExactSocket) -> RawMessage | None:
        head_bytes = source.read(ctypes.sizeof(WaveformHeader))
        head = WaveformHeader.from_buffer_copy(head_bytes)
        n_bytes = 4 * head.number_of_samples * head.channels
        self._check_bytes("a waveform", n_bytes)
        values = source.read(n_bytes)
        self.n_waveforms += 1
        return RawMessage(struct.pack("<H", WAVEFORM) + head_bytes + values) if self.pass_waveforms else None

    def _skip_text(self, source: ExactSocket) -> None:
        (n_bytes,) = struct.unpack("<I", source.read(4))
        self._check_bytes("a text", n_bytes)
        source.read(n_bytes)
        logging.getLogger("pogmdm").debug("ignored a text message of %d bytes", n_bytes)

    def _read_error(self, source: ExactSocket) -> None:
        (n_bytes,) = struct.unpack("<Q", source.read(8))
        self._check_bytes("an error text", n_bytes)
        source.read(n_bytes)  # not logged: it is the peer's, and may hold anything
        if not self._has_data:
            raise broken(405, "no acquisitions: the sender reported an error instead.", "See its own log.")
        raise broken(414, "the sender reported an error and ended the scan.", "See its own log.")


def _text(text: str) -> bytes:
    """Make a TEXT message as FIRE clients expect it, with a NUL at its end."""
    payload = text.encode("utf-8") + b"\0"
    return struct.pack("<HI", TEXT, len(payload)) + payload
