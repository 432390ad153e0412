"""A stand-in for a Gadgetron server: the server's part of the wire protocol on a TCP port, for tests of clients."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from xml.etree import ElementTree

import ismrmrd
import numpy as np
from gadgetron.external import constants as wire

from helpers.exact import reader


class Drop:
    """End the connection here, without CLOSE and without reading on."""


class Stall:
    """Do nothing more until the test is over."""


@dataclass
class Received:
    """What a client sent on one connection."""

    configuration: str = ""
    header: bytes = b""
    readouts: list[ismrmrd.Acquisition] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    closed: bool = False


Behaviour = Callable[[Received], Iterable["bytes | Drop | Stall"]]


def _message(ident: int, item: ismrmrd.Acquisition | ismrmrd.Image) -> bytes:
    buffer = io.BytesIO()
    buffer.write(wire.GadgetMessageIdentifier.pack(ident))
    item.serialize_into(buffer.write)
    return buffer.getvalue()


def acquisition(item: ismrmrd.Acquisition) -> bytes:
    return _message(wire.GADGET_MESSAGE_ISMRMRD_ACQUISITION, item)


def image(series: int, pixels: np.ndarray) -> bytes:
    item = ismrmrd.Image.from_array(pixels, transpose=False, image_series_index=series)
    return _message(wire.GADGET_MESSAGE_ISMRMRD_IMAGE, item)


def error(text: str) -> bytes:
    data = text.encode()
    return wire.GadgetMessageIdentifier.pack(wire.GADGET_MESSAGE_ERROR) + wire.uint64.pack(len(data)) + data


def text(text: str) -> bytes:
    data = text.encode()
    return wire.GadgetMessageIdentifier.pack(wire.GADGET_MESSAGE_TEXT) + wire.uint32.pack(len(data)) + data


def close() -> bytes:
    return wire.GadgetMessageIdentifier.pack(wire.GADGET_MESSAGE_CLOSE)


def ramp(shape: tuple[int, int] = (32, 32), dtype: type = np.float32) -> np.ndarray:
    return np.arange(shape[0] * shape[1], dtype=dtype).reshape(shape)


def images(received: Received) -> Iterable[bytes]:
    """The behaviour of a chain that works."""
    yield image(1, ramp())
    yield image(10, ramp() / 100)


class GadgetronServer:
    """Serves until the end of the with block; errors of its threads fail the test there.

    Attributes
    ----------
    behaviours
        What a chain that is named sends, once the client's CLOSE is there; a name that is not here gets the error
        that Gadgetron 4.7 has for a file that does not exist.
    eager
        Chains that answer as soon as they are named; what the client sends is read only then.
    version
        Answer to ``gadgetron::version``; None: every query drops the connection.
    echo
        What a chain with an empty stream sends for a readout.
    correlation_offset
        What the correlation id of an answer is wrong by.
    connections
        What came, connection by connection.
    """

    def __init__(
        self,
        behaviours: dict[str, Behaviour],
        version: str | None = "4.7.2",
        echo: Callable[[ismrmrd.Acquisition], bytes] = acquisition,
        eager: Iterable[str] = (),
    ) -> None:
        self.behaviours = behaviours
        self.version = version
        self.echo = echo
        self.eager = frozenset(eager)
        self.correlation_offset = 0
        self.connections: list[Received] = []
        self._over = threading.Event()
        self._problems: list[BaseException] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.address: tuple[str, int] = ("127.0.0.1", self._listener.getsockname()[1])

    def __enter__(self) -> GadgetronServer:
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._acceptor.join(10)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection of the stand-in did not end"
        assert not self._problems, self._problems

    def scans(self) -> list[Received]:
        """The connections that named a chain."""
        return [each for each in self.connections if each.configuration.endswith(".xml")]

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(30)
            self._sockets.append(sock)
            thread = threading.Thread(target=self._guarded, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _guarded(self, sock: socket.socket) -> None:
        received = Received()
        self.connections.append(received)
        try:
            with sock:
                if self._serve(sock, received):
                    sock.sendall(close())
        except (EOFError, OSError):
            pass  # the client went away: some tests want that
        except BaseException as problem:  # noqa: BLE001
            self._problems.append(problem)

    def _serve(self, sock: socket.socket, received: Received) -> bool:
        """Read up to the client's CLOSE and answer; says whether CLOSE is due."""
        read = reader(sock)
        is_echo = False
        while True:
            (ident,) = wire.GadgetMessageIdentifier.unpack(read(2))
            if ident == wire.GADGET_MESSAGE_QUERY:
                assert not received.configuration, "a query after a configuration"
                reserved, correlation, length = struct.unpack("<QQQ", read(24))
                assert reserved == 0
                received.queries.append(read(length).decode())
                if self.version is None:
                    return False
                answers = {"gadgetron::version": self.version}
                if received.queries[-1] not in answers:
                    sock.sendall(error("map::at"))
                    return True
                answer = answers[received.queries[-1]].encode()
                sock.sendall(
                    wire.GadgetMessageIdentifier.pack(wire.GADGET_MESSAGE_RESPONSE)
                    + wire.uint64.pack(correlation + self.correlation_offset)
                    + wire.uint64.pack(len(answer))
                    + answer
                )
            elif ident == wire.GADGET_MESSAGE_FILENAME:
                raw = read(1024)
                received.configuration = raw.rstrip(b"\0").decode()
                assert b"\0" in raw
                assert b"\0" not in received.configuration.encode()
                if received.configuration not in self.behaviours:
                    sock.sendall(error("Error reading from file/stream") + close())
                    # the text has to arrive: reset by a closing socket with unread bytes, it might not
                    while sock.recv(1 << 16):
                        pass
                    return False
                if received.configuration in self.eager and not self._act(sock, received):
                    return False
            elif ident == wire.GADGET_MESSAGE_CONFIG:
                received.configuration = read(*wire.uint32.unpack(read(4))).decode()
                root = ElementTree.fromstring(received.configuration)  # noqa: S314
                assert root.findtext("version") == "2"
                assert [each.findtext("classname") for each in root.find("readers")] == ["AcquisitionReader"]
                assert [each.findtext("classname") for each in root.find("writers")] == ["AcquisitionWriter"]
                assert list(root.find("stream")) == []
                is_echo = True
            elif ident == wire.GADGET_MESSAGE_HEADER:
                assert received.configuration, "a header before the configuration"
                received.header = read(*wire.uint32.unpack(read(4)))
            elif ident == wire.GADGET_MESSAGE_ISMRMRD_ACQUISITION:
                assert received.header, "a readout before the header"
                item = ismrmrd.Acquisition.deserialize_from(read)
                received.readouts.append(item)
                if is_echo:
                    sock.sendall(self.echo(item))
            elif ident == wire.GADGET_MESSAGE_CLOSE:
                received.closed = True
                done = is_echo or not received.configuration or received.configuration in self.eager
                return done or self._act(sock, received)
            else:
                raise AssertionError(f"the client sent a message of id {ident}")

    def _act(self, sock: socket.socket, received: Received) -> bool:
        for action in self.behaviours[received.configuration](received):
            if isinstance(action, Drop):
                return False
            if isinstance(action, Stall):
                self._over.wait()
                return False
            sock.sendall(action)
        return True
