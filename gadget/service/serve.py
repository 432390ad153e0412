"""`pogmdm serve`: the gadget as a resident service, so that no scan waits for torch to be imported."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from gadget import logs
from gadget.core import resident_prior, resolve_core
from gadget.service.server import Server
from gadget.service.workers import Worker
from gadget.settings.load import load
from gadget.stream.cancel import Cancelled, cancel_on_signals


def serve_command(
    host: str,
    port: int,
    n_waiting: int,
    debug: bool = False,
    defaults: Mapping[str, object] | None = None,
    n_workers: int = 1,
) -> None:
    """Serve until SIGTERM or SIGINT; what `pogmdm serve` does.

    Raises
    ------
    PogmdmError
        E408 (see `listen`), E512 a worker does not start, wrong defaults, or weights that cannot be loaded.
    """
    log, defaults = logs.configure("debug" if debug else "info"), defaults or {}
    prior = load(defaults=defaults).prior  # wrong settings and bad weights show now, not in the first scan
    workers: list[Worker] = []
    try:
        with cancel_on_signals(signal.SIGTERM, signal.SIGINT):
            if n_workers == 1:
                resident_prior(resolve_core(), prior)  # torch is in memory from here on
            else:
                for number in range(n_workers):
                    workers.append(Worker(number, n_workers, defaults, debug))
                for worker in workers:
                    worker.wait_until_ready()
            server = Server(host, port, n_waiting, defaults, workers)
            for address, number in server.addresses:
                log.info("listening on %s port %d", address, number)
            server.run()
    except Cancelled as request:
        log.info("stopped (%s)", request)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.close()
