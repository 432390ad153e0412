"""One client of the service: its scan reconstructed, or an error told in its own dialect."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gadget import logs
from gadget.errors import coded
from gadget.service.handshake import ServedConnection
from gadget.stream.link import Link
from gadget.stream.wire import CONFIG_FILE
from gadget.target import run_scan

if TYPE_CHECKING:
    from gadget.settings.schema import GadgetSettings

_REFUSAL_S = 5.0


def reconstruct_client(
    client: socket.socket, defaults: Mapping[str, object], watch: Callable[[str], None] = lambda _: None
) -> None:
    """Reconstruct the scan of one client; whatever goes wrong is told and logged, for the next one must not suffer.

    Parameters
    ----------
    client
        Connected socket; closed at the end.
    defaults
        Settings for what the client leaves open.
    watch
        Told ``fire`` when the client turns out to speak that dialect, and what `Link.watch` is told.
    """
    connection = ServedConnection(client, defaults=defaults)
    link = Link(connection)
    link.watch = watch

    def start() -> tuple[GadgetSettings, bytes]:
        try:
            return _introduced(link, connection)
        finally:
            if connection.fire:
                watch("fire")

    with contextlib.closing(connection.socket):
        try:
            link.lost = True  # until the introduction is read whole
            run_scan(link, start)
        except Exception as error:  # noqa: BLE001 - logged and sent already
            logs.get().info("scan failed (%s), waiting for the next", type(error).__name__)


def _introduced(link: Link, connection: ServedConnection) -> tuple[GadgetSettings, bytes]:
    """Read the introduction; an error in what it says leaves the boundaries of messages known."""
    from gadget.errors import ConfigError

    try:
        introduction = connection.introduction()
    except ConfigError:
        link.lost = False
        raise
    link.lost = False
    return introduction


def tell(client: socket.socket, error: Exception, quiet_s: float = 0.5, is_fire: bool | None = None) -> None:
    """Send an error to a client in its own dialect, and hang up.

    Parameters
    ----------
    client
        Connected socket.
    error
        What went wrong.
    quiet_s
        Seconds without a byte after which it is taken to listen.
    is_fire
        Its dialect; None where nothing was read of it yet: its first message tells.
    """
    connection = ServedConnection(client, _REFUSAL_S)
    link = Link(connection)
    with contextlib.closing(connection.socket):
        client.settimeout(quiet_s)
        if is_fire is None:
            with contextlib.suppress(OSError):
                is_fire = client.recv(2, socket.MSG_PEEK) == struct.pack("<H", CONFIG_FILE)
        connection.fire = bool(is_fire)
        link.lost = True
        link.fail(str(coded(error)), quiet_s)
