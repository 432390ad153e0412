"""The server's part of the wire protocol, for tests: over a socket pair or real TCP."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import ismrmrd

from helpers.exact import reader

CONFIG_FILE, CONFIG, HEADER, CLOSE, TEXT, ERROR = 1, 2, 3, 4, 5, 8
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026


def configuration(**properties: object) -> bytes:
    """The <configuration> node; dots in names are written as double underscores."""
    rows = [f'<property name="{k.replace("__", ".")}" value="{v}"/>' for k, v in properties.items()]
    return f"<configuration>{''.join(rows)}</configuration>".encode()


def text_message(mid: int, data: bytes) -> bytes:
    return struct.pack("<HI", mid, len(data)) + data


def item_message(item: ismrmrd.Acquisition | ismrmrd.Image | ismrmrd.Waveform) -> bytes:
    mid = {"Acquisition": ACQUISITION, "Image": IMAGE, "Waveform": WAVEFORM}[type(item).__name__]
    buffer = io.BytesIO()
    buffer.write(struct.pack("<H", mid))
    item.serialize_into(buffer.write)
    return buffer.getvalue()


def close_message() -> bytes:
    return struct.pack("<H", CLOSE)


def stream(header: bytes, items: Iterable, config: bytes = b"", close: bool = True) -> list[bytes]:
    """All messages of a scan, as a server sends them."""
    parts = [text_message(CONFIG, config), text_message(HEADER, header)]
    parts += [item if isinstance(item, bytes) else item_message(item) for item in items]
    return [*parts, close_message()] if close else parts


def fire_stream(
    header: bytes, items: Iterable, name: str = "openrecon", parameters: dict[str, object] | None = None
) -> list[bytes]:
    """All messages of a scan, as a FIRE client sends them."""
    parts = [struct.pack("<H1024s", CONFIG_FILE, name.encode()), text_message(HEADER, header + b"\0")]
    if parameters is not None:
        parts.append(text_message(TEXT, json.dumps({"version": "1.0", "parameters": parameters}).encode() + b"\0"))
    return [*parts, *stream(b"", items)[2:]]


@dataclass
class Outcome:
    """What the gadget sent, and how it ended."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    waveforms: list[ismrmrd.Waveform] = field(default_factory=list)
    closed: bool = False
    order: list[int] = field(default_factory=list)
    raised: BaseException | None = None
    returncode: int | None = None
    stdout: str = ""
    stderr: str = ""

    def series(self, number: int) -> list[ismrmrd.Image]:
        return [image for image in self.images if image.image_series_index == number]


def _collect(sock: socket.socket, outcome: Outcome) -> None:
    """Read messages until CLOSE or the end."""
    read = reader(sock)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            (mid,) = struct.unpack("<H", read(2))
            outcome.order.append(mid)
            if mid == CLOSE:
                outcome.closed = True
            elif mid == IMAGE:
                outcome.images.append(ismrmrd.Image.deserialize_from(read))
            elif mid == WAVEFORM:
                outcome.waveforms.append(ismrmrd.Waveform.deserialize_from(read))
            elif mid == ERROR:
                (n,) = struct.unpack("<Q", read(8))
                outcome.errors.append(read(n).decode())
            elif mid == TEXT:
                (n,) = struct.unpack("<I", read(4))
                text = read(n).decode()
                (outcome.progress if text.startswith("DBG ") else outcome.texts).append(text)
            else:
                raise AssertionError(f"the gadget sent a message of id {mid}")


def _feed(sock: socket.socket, parts: list[bytes], hang_up: bool) -> None:
    with contextlib.suppress(OSError):
        for part in parts:
            sock.sendall(part)
        if hang_up:
            sock.shutdown(socket.SHUT_WR)


def run_in_process(parts: list[bytes], target: Callable, *, hang_up: bool = False, timeout: float = 20.0) -> Outcome:
    """Run the target with gadgetron's own Connection over a socket pair, as its launcher does."""
    from gadgetron.external.connection import Connection

    ours, theirs = socket.socketpair()
    ours.settimeout(timeout)
    outcome = Outcome()

    def child() -> None:
        try:
            with Connection(theirs) as connection:
                target(connection)
        except BaseException as error:  # noqa: BLE001
            outcome.raised = error

    threads = [
        threading.Thread(target=child, daemon=True),
        threading.Thread(target=_feed, args=(ours, parts, hang_up), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        _collect(ours, outcome)
    finally:
        for thread in threads:
            thread.join(timeout)
        alive = any(thread.is_alive() for thread in threads)
        ours.close()
        assert not alive, "the gadget did not end"
    return outcome


def run_client(
    address: tuple[str, int], parts: list[bytes], *, hang_up: bool = False, timeout: float = 90.0
) -> Outcome:
    """Connect to a service and play its client, Gadgetron or FIRE."""
    outcome = Outcome()
    with socket.create_connection(address, timeout) as sock:
        feeder = threading.Thread(target=_feed, args=(sock, parts, hang_up), daemon=True)
        feeder.start()
        _collect(sock, outcome)
        feeder.join(timeout)
        assert not feeder.is_alive()
    return outcome


def run_child(
    parts: list[bytes], *, hang_up: bool = False, timeout: float = 90.0, env: dict[str, str] | None = None
) -> Outcome:
    """Listen on TCP, launch `python -m gadgetron PORT gadget pogmdm_recon` as Gadgetron does, play the server."""
    outcome = Outcome()
    with socket.create_server(("localhost", 0)) as server:
        server.settimeout(timeout)
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "gadgetron", str(port), "gadget", "pogmdm_recon"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        output: list[str] = []
        waiter = threading.Thread(target=lambda: output.extend(process.communicate()), daemon=True)
        waiter.start()
        try:
            sock, _ = server.accept()
            with sock:
                sock.settimeout(timeout)
                feeder = threading.Thread(target=_feed, args=(sock, parts, hang_up), daemon=True)
                feeder.start()
                _collect(sock, outcome)
                feeder.join(timeout)
            waiter.join(timeout)
        finally:
            if process.poll() is None:
                process.kill()
            waiter.join(10)
    outcome.stdout, outcome.stderr = output
    outcome.returncode = process.returncode
    return outcome
