"""HDF5 files on a disk that may be full.

HDF5 that is told of a failed write can neither close its file nor leave the process in order: it reports errors
without class or number, prints tracebacks when objects are collected, and may crash when the process ends.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Hdf5Storage(io.FileIO):
    """A new file for `h5py.File` that keeps its first error of writing to itself, until `check` is called.

    Parameters
    ----------
    path
        Emptied when it exists.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing once a write has failed."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self._error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self._error = error
        return size

    def check(self) -> None:
        """Raise the OSError of the write that failed, if one did."""
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def hdf5_storage(path: Path) -> Iterator[Hdf5Storage]:
    """Give the storage of a new HDF5 file; raise OSError if it could not be written, whatever HDF5 made of that."""
    with Hdf5Storage(path) as storage:
        try:
            yield storage
        finally:
            storage.check()
