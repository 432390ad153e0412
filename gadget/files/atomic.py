"""Output files that appear only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pogmdm_core.errors import OutputError

_NOT_WRITABLE = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputError E603 when `path` exists and may not be replaced, E601 when it cannot be made."""
    if path.is_dir():
        raise OutputError(601, f"{path} is a folder.", "Name a file inside it.")
    if path.exists() and not overwrite:
        raise OutputError(603, f"{path} exists.", "Add --overwrite or choose another name.")
    if not path.parent.is_dir():
        raise OutputError(601, f"the folder {path.parent} does not exist.", "Create it first.")


@contextlib.contextmanager
def complete_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends well.

    On any error the temporary file is removed and a file already at `path` stays as it was. Errors of the
    block pass unchanged, but for those of the system that say that the file cannot be written.

    Raises
    ------
    OutputError
        E603 the file exists, E601 the file cannot be written (no space, no permission).
    """
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise _not_written(path, error) from error
            raise
        refuse_existing(path, overwrite)
        try:
            temporary.replace(path)
        except OSError as error:
            raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(601, f"cannot write {path}: {reason}.", "Check space and permissions.")
