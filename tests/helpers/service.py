"""`pogmdm serve` as a process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time


class Service:
    """A service on a free port; its log is what it wrote to stderr."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "gadget.cli", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._listening.wait(60), self.log
        found = re.search(r"listening on (\S+) port (\d+)", "".join(self.log))
        self.address = (found[1], int(found[2]))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            if "listening" in line:
                self._listening.set()

    def wait_for(self, text, begun=0):
        end = time.monotonic() + 30
        while text not in "".join(self.log[begun:]):
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def end(self, number):
        start = time.monotonic()
        self.process.send_signal(number)
        try:
            status = self.process.wait(20)
        finally:
            self.process.kill()
            self._reader.join(10)
        assert self.process.stdout.read() == ""
        self.process.stdout.close()
        self.process.stderr.close()
        return status, time.monotonic() - start
