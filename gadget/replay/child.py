"""The gadget as a child process, launched as Gadgetron launches it, and what it writes to stderr."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from gadget.progress import ProgressDisplay

# As `python -m gadgetron` formats its log.
_LOG_LINE = re.compile(r"^\d\d-\d\d [\d:.]+ (?P<level>[A-Z]+) \[ext\.[^\]]*\] (?P<text>.*)$")
_PROGRESS = re.compile(r"POGMDM_PROGRESS (?P<stage>.+) (?P<done>\d+) (?P<total>\d+)\s*$")
_RELAYED = ("INFO", "WARNING")


def own_environment() -> dict[str, str]:
    """Environment of a child that has to run the code that launches it, wherever that was imported from."""
    here = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


class GadgetProcess:
    """``python -m gadgetron PORT MODULE TARGET`` with its stderr relayed; ended when the block ends.

    Parameters
    ----------
    port
        Where the parent listens on this machine.
    module, target
        What the launcher imports and calls.
    display
        Where log lines and progress go.
    debug
        Relay everything, tracebacks included. Otherwise errors are left to the ERROR message and
        anything that is no log line is kept back.
    """

    def __init__(self, port: int, module: str, target: str, display: ProgressDisplay, debug: bool) -> None:
        self._display = display
        self._debug = debug
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        env = own_environment() | {"POGMDM_PROGRESS": "1"}
        env.setdefault("GADGETRON_EXTERNAL_LOG_LEVEL", "DEBUG" if debug else "INFO")
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and names
            [sys.executable, "-m", "gadgetron", str(port), module, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
        )
        self._relay = threading.Thread(target=self._relay_stderr, name="gadget-stderr", daemon=True)
        self._relay.start()

    def __enter__(self) -> GadgetProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._relay.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()

    @property
    def running(self) -> bool:
        """Whether the child is still there."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        """Exit status of the child, or None when it is still running after so many seconds."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._relay.join(5)
        return status

    def last_error(self) -> str:
        """Type of the exception the child ended with, from its traceback, or an empty string.

        The rest of that line is left out: it may quote the scan's header.
        """
        for line in reversed(self._tail):
            if match := re.match(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))\b", line):
                return match.group(1).rsplit(".", 1)[-1]
        return ""

    def _relay_stderr(self) -> None:
        if self._process.stderr is None:
            return
        for raw in self._process.stderr:
            line = raw.rstrip("\n")
            if match := _PROGRESS.search(line):
                self._display.update(match["stage"], int(match["done"]), int(match["total"]))
                continue
            self._tail.append(line)
            log = _LOG_LINE.match(line)
            if self._debug:
                self._display.log(line)
            elif log and log["level"] in _RELAYED:
                self._display.log(log["text"])
