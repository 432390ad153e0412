"""Exact reads from a socket for the tests' peers, in the simplest words: none of the code under test."""

from __future__ import annotations

import socket
from collections.abc import Callable


def reader(sock: socket.socket) -> Callable[[int], bytes]:
    """Return what reads exactly n bytes, and raises EOFError where they end."""

    def read(n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = sock.recv(n - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    return read
