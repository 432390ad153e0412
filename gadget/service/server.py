"""Listens, admits clients, and has their scans reconstructed, one after the other or on several workers.

A thread accepts clients. The main thread reconstructs, one scan after the other, where signals can interrupt it; with
several workers a thread for each hands scans over to a process of its own (`gadget.service.workers`). Every scan has
its own connection, settings, buffers and prior (read anew from its file in some 20 ms), so nothing of one can show up
in another.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from gadget import logs
from gadget.errors import TransportError, coded
from gadget.service.client import reconstruct_client, tell
from gadget.service.workers import Worker

_FAREWELL_S = 2.0
_MAX_REFUSALS = 8
_ACCEPT_PAUSE_S = 0.2


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host; IPv6 addresses that this machine does not have are left out.

    Parameters
    ----------
    host
        Name or address; ``::`` means all IPv4 and IPv6 addresses.
    port
        0 takes any free one, the same for all addresses.

    Raises
    ------
    TransportError
        E408 the port is taken, or the address is not one of this machine.
    """
    if host == "::" and socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 switched off: IPv4 alone, below, reports what else is wrong
            return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    try:
        found = socket.getaddrinfo("0.0.0.0" if host == "::" else host, port, type=socket.SOCK_STREAM)  # noqa: S104
    except OSError as error:
        found, failure = [], error
    for family, *_, address in sorted(found, key=lambda info: info[0] != socket.AF_INET):
        place = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
        try:
            sockets.append(socket.create_server(place, family=family))
        except OSError as error:
            if error.errno == errno.EADDRINUSE or not sockets:
                failure = error
    if failure is None:
        return sockets
    for one in sockets:
        one.close()
    hint = "Another service runs there; choose another --port." if failure.errno == errno.EADDRINUSE else ""
    raise TransportError(
        408,
        f"cannot listen on {host} port {port}: {failure.strerror}.",
        hint or "Give an address of this machine, or a port above 1023.",
    )


class Server:
    """Accepts clients and reconstructs their scans one after the other, or as many at once as there are workers.

    Parameters
    ----------
    host, port
        See `listen`.
    n_waiting
        Clients that may wait while scans are reconstructed; others are refused with a text.
    defaults
        Settings for what clients leave open, dotted names to values.
    workers
        Processes that reconstruct, ready to; none: this one does.

    Raises
    ------
    TransportError
        E408, see `listen`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 18000,
        n_waiting: int = 1,
        defaults: Mapping[str, object] | None = None,
        workers: Sequence[Worker] = (),
    ) -> None:
        self._listeners = listen(host, port)
        self._clients: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._places = threading.Semaphore(n_waiting + max(1, len(workers)))
        self._refusals = threading.Semaphore(_MAX_REFUSALS)
        self._wake, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._defaults, self._workers = defaults or {}, workers
        # why the last lane ended, if that is not because the service is stopped
        self._lost: Exception | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [one.getsockname()[:2] for one in self._listeners]

    def run(self) -> None:
        """Serve until `stop` is called, or an exception such as `Cancelled` is raised in this thread.

        Raises
        ------
        ComputeError
            E512 workers died and could not be started again.
        """
        self._acceptor.start()
        try:
            if not self._workers:
                self._serve(lambda client: reconstruct_client(client, self._defaults))
                return
            lanes = [threading.Thread(target=self._lane, args=(worker,), daemon=True) for worker in self._workers]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
            if self._lost:
                raise self._lost
        finally:
            self._end()

    def stop(self) -> None:
        """End `run` after the scans that have been accepted; for other threads."""
        self._clients.put(None)

    def _serve(self, reconstruct: Callable[[socket.socket], None]) -> None:
        while (client := self._clients.get()) is not None:
            try:
                reconstruct(client)
            finally:
                self._places.release()

    def _lane(self, worker: Worker) -> None:
        """Hand clients over to a worker, until the service is stopped or the worker cannot be kept alive."""
        try:
            self._serve(worker.reconstruct)
        except Exception as error:  # noqa: BLE001 - the other workers go on
            self._lost = coded(error)
            logs.get().error("%s", self._lost)
        else:
            self._lost = None
            self._clients.put(None)  # for the other lanes

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in (*self._listeners, self._woken):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    try:
                        client, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    except OSError as error:  # the client went away again, or there are no descriptors left
                        logs.get().warning("a client could not be accepted: %s", error.strerror)
                        time.sleep(_ACCEPT_PAUSE_S)
                    else:
                        self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        if self._places.acquire(blocking=False):
            self._clients.put(client)
        elif self._refusals.acquire(blocking=False):
            threading.Thread(target=self._refuse, args=(client,), name="refuse", daemon=True).start()
        else:
            client.close()

    def _refuse(self, client: socket.socket) -> None:
        logs.get().warning("refused a client: a scan is being reconstructed and the queue is full")
        try:
            tell(client, TransportError(411, "busy with another scan.", "Try again later, or raise --queue."))
        finally:
            self._refusals.release()

    def _end(self) -> None:
        self._wake.send(b"x")
        self._acceptor.join()
        for one in (*self._listeners, self._wake, self._woken):
            one.close()
        # before the workers end, whose lanes would take them
        waiting: list[socket.socket] = []
        with contextlib.suppress(queue.Empty):
            while True:
                client = self._clients.get_nowait()
                if client is not None:
                    waiting.append(client)
        for _ in self._workers:
            self._clients.put(None)
        for worker in self._workers:
            worker.stop()
        error = TransportError(412, "cancelled: the service is being stopped.")
        tellers = [threading.Thread(target=tell, args=(client, error, 0.1), daemon=True) for client in waiting]
        for teller in tellers:
            teller.start()
        end = time.monotonic() + _FAREWELL_S
        for teller in tellers:
            teller.join(max(0.0, end - time.monotonic()))
        for worker in self._workers:
            worker.close()
