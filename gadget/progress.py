"""Progress of a replay on stderr: a bar with the time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class ProgressDisplay:
    """Shows stages and passes log lines on without breaking the bar.

    Parameters
    ----------
    stream
        Where to write; stderr when None.
    bar
        True draws a bar, False writes a line every 10 %; None asks the stream whether it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, bar: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._use_bar = self._stream.isatty() if bar is None else bar
        self._bar: Any = None
        self._stage = ""
        self._start = 0.0
        self._shown = -1

    def log(self, text: str) -> None:
        """Write one line."""
        if self._bar is not None:
            from tqdm import tqdm

            tqdm.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are finished."""
        if stage != self._stage or done < self._shown * total // 10:
            self.close()
            self._stage, self._start, self._shown = stage, time.monotonic(), -1
        if self._use_bar:
            self._draw(stage, done, total)
        else:
            self._line(stage, done, total)

    def close(self) -> None:
        """Leave the bar of the current stage as it is and forget the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _draw(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(desc=stage, total=total, file=self._stream, leave=False, dynamic_ncols=True)
        bar = self._bar
        bar.update(done - bar.n)
        if done >= total:
            self.close()

    def _line(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth <= self._shown:
            return
        self._shown = tenth
        elapsed = time.monotonic() - self._start
        left = f", about {elapsed * (total - done) / done:.0f} s left" if 0 < done < total and elapsed > 1 else ""
        self.log(f"{stage} {done}/{total}{left}")
