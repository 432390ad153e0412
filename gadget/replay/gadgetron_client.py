"""The client's part of Gadgetron's wire protocol: ask a running server, or send it a scan and collect the answer."""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gadget.replay.sender import Sender
from gadget.stream.wire import (
    ACQUISITION,
    CLOSE,
    CONFIG,
    CONFIG_FILE,
    CONFIG_FILE_BYTES,
    ERROR,
    IMAGE,
    QUERY,
    RESPONSE,
    TEXT,
    ExactSocket,
    impossible,
)
from pogmdm_core.errors import ComputeError, ConfigError, DataError, PogmdmError, TransportError

if TYPE_CHECKING:
    import ismrmrd

DEFAULT_PORT = 9002
Address = tuple[str, int]
_CONNECT_S = 10.0
_CORRELATION = 1
_MAX_TEXT = 1 << 20
_MAX_SHOWN = 200
_ADDRESS = re.compile(r"(?:\[([\w:.%]+)\]|([^\[\]:\s]+))(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Answer:
    """What a server sent for one scan.

    Attributes
    ----------
    images
        As `ismrmrd.Image`.
    readouts
        Acquisitions, each as the complete message (id and payload).
    errors, texts
        What it reports as an error, and other texts; as they came, they may hold anything.
    closed
        Whether it ended the answer with CLOSE, not just by ending the connection.
    """

    images: tuple[ismrmrd.Image, ...] = ()
    readouts: tuple[bytes, ...] = ()
    errors: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    closed: bool = False


def address_from(text: str) -> Address:
    """Read ``HOST``, ``HOST:PORT``, ``[IPv6]`` or ``[IPv6]:PORT``; the port is `DEFAULT_PORT` when none is given.

    Raises ConfigError E110 for anything else.
    """
    match = _ADDRESS.fullmatch(text.strip())
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ConfigError(
            110, f"{text[:80]!r} is not HOST or HOST:PORT.", f"IPv6 in brackets, e.g. [::1]:{DEFAULT_PORT}."
        )
    return match[1] or match[2], port


def shown(address: Address) -> str:
    """Write an address as `address_from` reads it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def one_line(text: str) -> str:
    """Make a text of the server fit to be shown: one line without control characters, 200 characters at most."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MAX_SHOWN else line[: _MAX_SHOWN - 3] + "..."


def query(address: Address, name: str, timeout_s: float = 10.0) -> str:
    """Ask the server for one of the things it knows of itself, e.g. ``gadgetron::version``.

    Raises
    ------
    TransportError
        E413 it cannot be reached, E401, E402 it hangs up instead of answering, E403 it does not answer in time,
        E404 its answer is something else.
    ComputeError
        E500 it answers with an error, for example because it does not know `name`.
    """
    question = name.encode()
    start = time.monotonic()
    with _connected(address, timeout_s) as connection:
        messages = _Messages(connection, timeout_s, start)
        with contextlib.suppress(OSError):  # a server that is gone is noticed below, like one that goes now
            connection.sendall(struct.pack("<HQQQ", QUERY, 0, _CORRELATION, len(question)) + question)
            connection.sendall(struct.pack("<H", CLOSE))
        ident = messages.ident()
        if ident == ERROR:
            raise ComputeError(500, f"the server reports: {one_line(messages.text('<Q')) or 'an error without text'}")
        if ident != RESPONSE:
            raise TransportError(
                404, f"the server answers a question with a message of id {ident}.", "Another program?"
            )
        (correlation,) = struct.unpack("<Q", messages.read(8))
        if correlation != _CORRELATION:
            raise TransportError(404, "the server answers another question.", "Another program?")
        return messages.text("<Q")


def send_scan(
    address: Address, configuration: str | bytes, header: bytes, messages: Iterable[bytes], timeout_s: float
) -> Answer:
    """Send a scan, and collect what comes back while it is sent: both ends have finite buffers.

    Parameters
    ----------
    address
        Host and port.
    configuration
        Name of a chain that is installed on the server, or a chain itself as XML bytes.
    header
        ISMRMRD header, XML.
    messages
        Readouts and waveforms, each a complete message as `gadget.files.scan_file.Scan` has them. They are taken in
        another thread.
    timeout_s
        Time limit for everything, seconds.

    Returns
    -------
        All that came. An ERROR of the server does not raise, and what goes wrong after it is its consequence.

    Raises
    ------
    TransportError
        E413 the server cannot be reached, E402 the answer ends inside a message, E403 it is not complete in time,
        E404 it has a message of an unknown id.
    DataError
        E301 an image that cannot be read, E302 an impossible length.
    ConfigError
        E108 a name that is too long.
    PogmdmError
        Whatever `messages` raises.
    """
    start = time.monotonic()
    head = _configuration_message(configuration)
    with _connected(address, timeout_s) as connection:
        incoming = _Messages(connection, timeout_s, start)
        sender = Sender(connection, head, header, messages)
        sender.start()
        try:
            answer = incoming.answer()
        except PogmdmError:
            sender.raise_input_error()  # the cause; the broken connection is its consequence
            raise
        finally:
            sender.stop()
        sender.raise_input_error()
        return answer


def _configuration_message(configuration: str | bytes) -> bytes:
    if isinstance(configuration, bytes):
        return struct.pack("<HI", CONFIG, len(configuration)) + configuration
    name = configuration.encode()
    if len(name) >= CONFIG_FILE_BYTES:
        raise ConfigError(108, f"the name of a chain has {len(name)} bytes; {CONFIG_FILE_BYTES - 1} are possible.")
    return struct.pack(f"<H{CONFIG_FILE_BYTES}s", CONFIG_FILE, name)


@contextlib.contextmanager
def _connected(address: Address, timeout_s: float) -> Iterator[socket.socket]:
    try:
        connection = socket.create_connection(address, min(timeout_s, _CONNECT_S))
    except (OSError, UnicodeError) as error:  # the latter for a host name that cannot be one
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise TransportError(
            413, f"cannot connect to {shown(address)} ({reason}).", "Is Gadgetron running there, and the port open?"
        ) from error
    with connection:
        yield connection


class _Messages:
    """Reads messages of the server; all of them have to be there `timeout_s` after `start`."""

    def __init__(self, connection: socket.socket, timeout_s: float, start: float) -> None:
        self._source = ExactSocket(connection, timeout_s)
        self._source.deadline = start + timeout_s
        self._timeout_s = timeout_s

    def read(self, n_bytes: int, first: bool = False) -> bytes:
        try:
            return self._source.read(n_bytes, first=first)
        except TransportError as error:
            if error.code != 403:
                raise
            raise TransportError(
                403, f"the server did not finish within {self._timeout_s:g} s.", "See its log, or give it more time."
            ) from None

    def ident(self) -> int:
        """Return the id of the next message; E401 when there is none."""
        return int(struct.unpack("<H", self.read(2, first=True))[0])

    def text(self, length_format: str) -> str:
        (length,) = struct.unpack(length_format, self.read(struct.calcsize(length_format)))
        if length > _MAX_TEXT:
            raise impossible("the length of a text", length, _MAX_TEXT)
        return self.read(length).decode("utf-8", "replace").rstrip("\0")

    def answer(self) -> Answer:
        """Take everything up to CLOSE or the end of the connection."""
        images: list[ismrmrd.Image] = []
        readouts: list[bytes] = []
        errors: list[str] = []
        texts: list[str] = []
        closed = False
        try:
            while not closed:
                ident = self.ident()
                if ident == CLOSE:
                    closed = True
                elif ident == IMAGE:
                    images.append(self._image())
                elif ident == ACQUISITION:
                    readouts.append(self._readout())
                elif ident == ERROR:
                    errors.append(self.text("<Q"))
                elif ident == TEXT:
                    texts.append(self.text("<I"))
                else:
                    raise TransportError(404, f"the server sent a message with the unknown id {ident}.")
        except PogmdmError as error:
            # what the server says is wrong tells more than how the connection ended then
            if error.code != 401 and not errors:
                raise
        return Answer(tuple(images), tuple(readouts), tuple(errors), tuple(texts), closed)

    def _image(self) -> ismrmrd.Image:
        import ismrmrd

        try:
            return ismrmrd.Image.deserialize_from(self.read)
        except PogmdmError:
            raise
        except Exception as error:  # noqa: BLE001 - pixel type, size, Meta: each has its own kind of error
            raise DataError(301, f"the server sent an image that cannot be read ({type(error).__name__}).") from error

    def _readout(self) -> bytes:
        import ismrmrd

        raw = self.read(ctypes.sizeof(ismrmrd.AcquisitionHeader))
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw)
        per_sample = 4 * head.trajectory_dimensions + 8 * head.active_channels
        return struct.pack("<H", ACQUISITION) + raw + self.read(head.number_of_samples * per_sample)
