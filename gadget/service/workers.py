"""Worker processes of `pogmdm serve --workers N`: each reconstructs one scan at a time, on a graphics card of its own.

The service accepts clients and hands their sockets over; a worker tells over the same Unix socket where it stands. So
the service can tell a client whose worker died which frame was lost, and starts another one in its place.

From the worker, a line each: ``ready``, ``fire`` (the client speaks that dialect), the name of a frame when it is
begun, ``sending`` and ``sent`` around each image, ``done``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping

from gadget import logs
from gadget.errors import ComputeError
from gadget.replay.child import own_environment
from gadget.service.client import tell

READY, _FIRE, _SENDING, _SENT, DONE = "ready", "fire", "sending", "sent", "done"
_START_S = 120.0
_END_S = 10.0


class Worker:
    """The service's side of one worker process.

    Parameters
    ----------
    number
        From 0 on; chooses the graphics card.
    n_workers
        All of them share the processors.
    defaults
        Settings for what clients leave open.
    debug
        Log more.
    """

    def __init__(self, number: int, n_workers: int, defaults: Mapping[str, object], debug: bool = False) -> None:
        self.number = number
        self._debug, self._defaults, self._n_workers = debug, dict(defaults), n_workers
        self._stopping = False
        self._guard = threading.Lock()  # of the process, against an end and a start at once
        self._launch()

    def _launch(self) -> None:
        env = own_environment()
        # all workers together as many threads as there are processors
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._n_workers)))
        self._control, theirs = socket.socketpair()
        instructions = json.dumps({"number": self.number, "defaults": self._defaults, "debug": self._debug})
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and names
                [sys.executable, "-m", "gadget.service.worker_process", str(theirs.fileno()), instructions],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,  # Ctrl-C is the service's, which ends its workers in order
            )
        self._lines = self._read_lines()

    def wait_until_ready(self) -> None:
        """Return when it has loaded everything.

        Raises
        ------
        ComputeError
            E512 it ended before, or takes longer than two minutes.
        """
        self._control.settimeout(_START_S)
        if next(self._lines, "") != READY:
            ending = self._ending()
            if self._stopping:
                return
            self.stop()
            raise ComputeError(512, f"worker {self.number} did not start ({ending}).", "See its log above.")
        self._control.settimeout(None)
        logs.get().info("worker %d is ready: process %d", self.number, self._process.pid)

    def reconstruct(self, client: socket.socket) -> None:
        """Have a client's scan reconstructed; if the worker dies, tell the client, and start another one.

        Raises
        ------
        ComputeError
            E512 no other one could be started.
        """
        place, is_fire, is_sending = "", False, False
        with client:
            if not self._hand_over(client):  # it died while it had nothing to do
                self._relaunch()
                self._hand_over(client)
            for line in self._lines:
                if line == DONE:
                    return
                is_fire = is_fire or line == _FIRE
                if line in (_SENDING, _SENT):
                    is_sending = line == _SENDING
                elif line != _FIRE:
                    place = line
            ending = self._ending()
            if not self._stopping:
                error = ComputeError(
                    513,
                    f"{place or 'the scan'}: the worker process that reconstructed it ended ({ending}).",
                    "Try again; see the log.",
                )
                logs.get().error("%s", error)
                if not is_sending:  # after a part of an image nothing can be told
                    tell(client, error, is_fire=is_fire if place or is_fire else None)
        self._relaunch()

    def _hand_over(self, client: socket.socket) -> bool:
        if self._process.poll() is not None:
            return False
        try:
            socket.send_fds(self._control, [b"s"], [client.fileno()])
        except OSError:
            return False
        return True

    def _relaunch(self) -> None:
        """Start another process in the place of one that died, unless the service is being stopped."""
        with self._guard:
            if self._stopping:
                return
            self._control.close()
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._launch()
        self.wait_until_ready()

    def stop(self) -> None:
        """End it: a scan under way is cancelled, and its client told so."""
        with self._guard:
            self._stopping = True
            if self._process.poll() is None:
                self._process.terminate()

    def close(self) -> None:
        """Wait for its end."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ValueError):  # the thread that reads them is about to see their end
            self._lines.close()
        self._control.close()

    def _ending(self) -> str:
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "it hangs"
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _read_lines(self) -> Generator[str, None, None]:
        """What it tells, until it is gone."""
        with self._control.makefile("r", encoding="utf-8") as stream, contextlib.suppress(OSError):
            for line in stream:
                yield line.rstrip("\n")
