"""A worker process of `pogmdm serve --workers N`: ``python -m gadget.service.worker_process DESCRIPTOR JSON``."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
from collections.abc import Mapping

from gadget import logs
from gadget.errors import coded
from gadget.service.workers import DONE, READY


def work(control: socket.socket, number: int, defaults: Mapping[str, object], debug: bool) -> None:
    """Be a worker: load everything, then reconstruct the scans of the clients that are handed over."""
    from gadget.core import resident_prior, resolve_core
    from gadget.service.client import reconstruct_client
    from gadget.settings.load import load
    from gadget.stream.cancel import Cancelled, cancel_on_signals

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the service is gone: the scan under way is finished all the same
            control.sendall(line.encode() + b"\n")

    logs.configure("debug" if debug else "info")
    is_busy = False
    try:
        with cancel_on_signals(signal.SIGTERM, signal.SIGINT, once=True):
            settings = load(defaults=defaults)
            resident_prior(resolve_core(), settings.prior)
            if settings.device == "auto":
                defaults = {**defaults, **_own_card(number)}
            say(READY)
            while True:
                received, descriptors, *_ = socket.recv_fds(control, 1, 1)
                if not received:
                    return
                is_busy = True
                reconstruct_client(socket.socket(fileno=descriptors[0]), defaults, say)
                say(DONE)
                is_busy = False
    except Cancelled as request:
        if is_busy:
            say(DONE)  # its client was told
        logs.get().info("worker %d stopped (%s)", number, request)


def _own_card(number: int) -> dict[str, str]:
    """Setting that gives each worker a graphics card, where there are several."""
    import torch

    n_cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"device": f"cuda:{number % n_cards}"} if n_cards > 1 else {}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        try:
            work(inherited, **json.loads(sys.argv[2]))
        except Exception as failure:  # noqa: BLE001 - the service learns that it ended, the log why
            logs.get().error("%s", coded(failure))
            sys.exit(1)
