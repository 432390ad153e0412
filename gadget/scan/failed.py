"""Frames that could not be reconstructed: remembered while the scan goes on, told when it ends."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from gadget import logs
from gadget.errors import ComputeError, DataError, HeaderError, OutputError, PogmdmError, coded

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
        """Remember an error of one frame; others pass. `name` is that of the frame.

        Of one frame are those of its data, computation and images, and what its readouts say that the header does not
        (E203), or the header of its encoding alone (E204, E216).
        """
        try:
            yield
        except (HeaderError, DataError, ComputeError, OutputError, RuntimeError, MemoryError) as error:
            if isinstance(error, DataError) and error.code == _BUFFER_FULL:
                raise
            shown = coded(error)
            if not isinstance(shown, PogmdmError):  # an incomplete installation: E598
                raise
            logs.get().error("%s%s", f"{name}: " if name and name not in shown.message else "", shown)
            logs.get().debug("where it happened:\n%s", "".join(traceback.format_tb(error.__traceback__)))
            # the frames of a traceback would keep all readouts of this one until the scan ends
            shown.__cause__ = shown.__context__ = None
            self._errors.append(shown.with_traceback(None))

    def raise_first(self, n_whole: int) -> None:
        """Raise the first error, if there is one, with how many frames are lost beside how many whole ones."""
        if not self._errors:
            return
        first, n_lost = self._errors[0], len(self._errors)
        if n_lost + n_whole == 1:
            raise first
        told = f"{first.message} ({n_lost} frame(s) lost to this or other errors, see the log; {n_whole} sent.)"
        raise type(first)(first.code, told, first.hint)
