"""Frames that could not be reconstructed: remembered while the scan goes on, told when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gadget import logs
from gadget.errors import ComputeError, DataError, OutputError, PogmdmError, coded

_BUFFER_FULL = 306  # of no frame alone: nothing that follows would find room


class FailedFrames:
    """What went wrong with single frames.

    One bad repetition must not cost the others: their images are sent, and the scan ends with the error.
    """

    def __init__(self) -> None:
        self._errors: list[PogmdmError] = []

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._errors)

    @contextmanager
    def tolerated(self, name: str = "") -> Iterator[None]:
        """Remember an error of one frame's data, computation or images; others pass. `name` is that of the frame."""
        try:
            yield
        except (DataError, ComputeError, OutputError, RuntimeError, MemoryError) as error:
            if isinstance(error, DataError) and error.code == _BUFFER_FULL:
                raise
            shown = coded(error)
            if not isinstance(shown, PogmdmError):  # an incomplete installation: E598
                raise
            logs.get().error("%s%s", f"{name}: " if name and name not in shown.message else "", shown)
            self._errors.append(shown)

    def raise_first(self, n_whole: int) -> None:
        """Raise the first error, if there is one, with how many frames are lost beside how many whole ones."""
        if not self._errors:
            return
        first, n_lost = self._errors[0], len(self._errors)
        if n_lost + n_whole == 1:
            raise first
        told = f"{first.message} ({n_lost} frame(s) lost to this or other errors, see the log; {n_whole} sent.)"
        raise type(first)(first.code, told, first.hint)
