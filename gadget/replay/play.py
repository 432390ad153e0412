"""Offline replay: play the Gadgetron server's part for one scan, over the same wire protocol.

The gadget runs as a child process exactly as under Gadgetron; nothing is bypassed, so what works here
works there. Only our own gadget of a chain runs: Gadgetron's gadgets before and after it do not.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gadget.files.atomic import complete_file, refuse_existing
from gadget.files.hdf5_storage import hdf5_storage
from gadget.files.image_file import ImageFile
from gadget.files.scan_file import Scan, open_scan
from gadget.progress import ProgressDisplay
from gadget.replay.child import GadgetProcess
from gadget.replay.sender import Sender
from gadget.settings.configs import gadget_configuration
from gadget.stream.wire import ACQUISITION, CLOSE, CONFIG, ERROR, IMAGE, TEXT, WAVEFORM, fill
from pogmdm_core import errors
from pogmdm_core.errors import ComputeError, OutputError, PogmdmError, TransportError

_CONNECT_S = 60.0
_EXIT_S = 60.0
_MAX_TEXT = 1 << 20
_FAMILIES: dict[str, type[PogmdmError]] = {
    "1": errors.ConfigError,
    "2": errors.HeaderError,
    "3": errors.DataError,
    "4": errors.TransportError,
    "5": errors.ComputeError,
    "6": errors.OutputError,
}


@dataclass(frozen=True)
class Job:
    """What to replay.

    Attributes
    ----------
    source, output
        Input as for `open_scan`; the .h5 file to make.
    chain
        XML file or name of a shipped chain; None for the stand-alone one.
    properties
        Settings that go on top of the chain's own, as names and values.
    group, out_group
        Groups of input and output.
    overwrite
        Replace an existing output.
    module, target
        The gadget, as the chain's ``<execute>`` names it.
    """

    source: str
    output: Path
    chain: str | None = None
    properties: Sequence[tuple[str, str]] = ()
    group: str = "dataset"
    out_group: str = "dataset"
    overwrite: bool = False
    module: str = "gadget"
    target: str = "pogmdm_recon"


@dataclass
class Outcome:
    """What came back: images per series, the wall time in seconds, and the gadget's error beside whole images."""

    series: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    failure: PogmdmError | None = None


def replay(job: Job, display: ProgressDisplay | None = None, debug: bool = False) -> Outcome:
    """Replay a scan; the output file appears when the gadget has sent images and ended the stream.

    Where it reports an error at the end, the images before it are whole: they are written, and the error is part of
    the outcome.

    Raises
    ------
    PogmdmError
        Of the family of what went wrong; without images the gadget's own ERROR message, which keeps its code. E605
        when the gadget ended well but sent no image.
    """
    display = display or ProgressDisplay()
    start = time.monotonic()
    if job.output.exists() and Path(job.source).exists() and job.output.samefile(job.source):
        raise OutputError(603, f"{job.output} is the scan itself.", "Choose another name.")
    refuse_existing(job.output, job.overwrite)
    config = gadget_configuration(job.chain, job.properties)
    try:
        with (
            open_scan(job.source, job.group) as scan,
            complete_file(job.output, job.overwrite) as temporary,
            hdf5_storage(temporary) as storage,
            ImageFile(storage, job.out_group) as images,
        ):
            failure = _play(job, config, scan, images, display, debug)
            if not images.series:
                none = OutputError(605, "the gadget sent no image.", "See the log above for what it skipped.")
                raise failure or none
            return Outcome(dict(sorted(images.series.items())), time.monotonic() - start, failure)
    finally:
        display.close()


def _play(
    job: Job, config: bytes, scan: Scan, images: ImageFile, display: ProgressDisplay, debug: bool
) -> PogmdmError | None:
    """Launch the gadget, send the scan, collect the images; returns the gadget's ERROR, if it sends one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with GadgetProcess(port, job.module, job.target, display, debug) as child:
            with _accept(listener, child) as connection:
                head = struct.pack("<HI", CONFIG, len(config)) + config
                sender = Sender(connection, head, scan.header, scan.messages)
                sender.start()
                try:
                    failure = _receive(connection, images, display)
                except TransportError:
                    # an unreadable input is the cause, the broken connection its consequence
                    sender.raise_input_error()
                    raise
                finally:
                    sender.stop()
            sender.raise_input_error()
            if failure is None:
                _check_exit(child)
            return failure


def _accept(listener: socket.socket, child: GadgetProcess) -> socket.socket:
    """Wait for the child to connect, but not for a child that is gone."""
    listener.settimeout(0.2)
    deadline = time.monotonic() + _CONNECT_S
    while time.monotonic() < deadline:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if not child.running:
                child.wait(5)
                raise TransportError(
                    413,
                    f"the gadget ended before it connected ({child.last_error() or 'no traceback'}).",
                    "Run: pogmdm doctor",
                ) from None
            continue
        connection.settimeout(None)
        return connection
    raise TransportError(413, f"the gadget did not connect within {_CONNECT_S:.0f} s.", "Run: pogmdm doctor")


def _receive(connection: socket.socket, images: ImageFile, display: ProgressDisplay) -> PogmdmError | None:
    """Take messages until CLOSE; returns the gadget's ERROR, the last one if there are several."""
    import ismrmrd

    def read(n: int) -> bytes:
        data = bytearray()
        with contextlib.suppress(OSError):
            if fill(data, n, connection.recv):
                return bytes(data)
        raise TransportError(401, f"the gadget ended without closing the stream (got {len(data)}/{n} bytes).")

    failure: PogmdmError | None = None
    while True:
        (ident,) = struct.unpack("<H", read(2))
        if ident == CLOSE:
            return failure
        if ident == IMAGE:
            images.append(ismrmrd.Image.deserialize_from(read))
        elif ident == ERROR:
            (length,) = struct.unpack("<Q", read(8))
            failure = error_from_text(read(min(length, _MAX_TEXT)).decode("utf-8", "replace"))
        elif ident == TEXT:
            (length,) = struct.unpack("<I", read(4))
            display.log(read(min(length, _MAX_TEXT)).decode("utf-8", "replace"))
        elif ident == ACQUISITION:
            ismrmrd.Acquisition.deserialize_from(read)
        elif ident == WAVEFORM:
            ismrmrd.Waveform.deserialize_from(read)
        else:
            raise TransportError(404, f"the gadget sent a message with the unknown id {ident}.")


def error_from_text(text: str) -> PogmdmError:
    """Turn an error line ``E214 what is wrong`` back into the error of its family.

    A line without a code, which another gadget may send, becomes E500.
    """
    line = " ".join(text.split()).removeprefix("ERROR").lstrip(": ")
    if match := re.match(r"^E([1-6])(\d\d)\b[ :]*(.*)$", line):
        return _FAMILIES[match[1]](int(match[1] + match[2]), match[3])
    return ComputeError(500, f"the gadget reports: {line or 'an error without text'}")


def _check_exit(child: GadgetProcess) -> None:
    """Refuse to call it a success when the child failed without a word, as the launcher lets it."""
    status = child.wait(_EXIT_S)
    if status is None:
        raise TransportError(410, f"the gadget did not end within {_EXIT_S:.0f} s of closing the stream.")
    if status != 0:
        kind = child.last_error() or "no traceback"
        raise ComputeError(500, f"the gadget ended with status {status} ({kind}) and no message.", "Add --debug.")
