"""A running Gadgetron: who it is, whether readouts come back unchanged, and which of our chains work there."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gadget.replay.gadgetron_client import Address, Answer

_ECHO_S = 10.0
_ECHO = b"""<?xml version="1.0" encoding="UTF-8"?>
<configuration>
    <version>2</version>
    <readers><reader><dll>gadgetron_core_readers</dll><classname>AcquisitionReader</classname></reader></readers>
    <writers><writer><dll>gadgetron_core_writers</dll><classname>AcquisitionWriter</classname></writer></writers>
    <stream/>
</configuration>
"""
# What the chains are tried with, as far as that differs from a small Cartesian scan. GRAPPA needs more calibration
# lines than a small scan has.
_SCANS: dict[str, dict[str, Any]] = {
    "pogmdm_noncartesian.xml": {"trajectory": "radial"},
    "pogmdm_beside_grappa.xml": {"shape": (128, 32)},
}
# Ports of the services that chains with <connect> count on.
_SERVICES = {"pogmdm_connect.xml": 18000, "pogmdm_distributed.xml": 18020}
_INSTALL = "pogmdm configs install DIR"
_MISSING = f"not installed there: {_INSTALL}"
# Gadgetron 4.7 reads a missing chain as an empty file, and reports what its XML parser says of that.
_NO_FILE = re.compile(r"error reading from file/stream|no document element", re.IGNORECASE)
_NOT_FOUND = re.compile(r"no such file|not found|not exist|\bopen\b", re.IGNORECASE)
_STD_SERIES = (10, 510)


def examine_server(address: Address, timeout_s: float = 180.0) -> Iterator[tuple[str, str, bool]]:
    """Yield findings, as `examine` does, about a running Gadgetron: its version, an echo, every shipped chain.

    Parameters
    ----------
    address
        Host and port.
    timeout_s
        Time limit for one chain, seconds.

    Raises
    ------
    TransportError
        E413 the server cannot be reached, before anything is tried.
    """
    from gadget.replay.gadgetron_client import one_line, query, shown
    from gadget.settings.configs import chains
    from pogmdm_core.errors import PogmdmError

    answered = True
    try:
        version = one_line(query(address, "gadgetron::version"))
    except PogmdmError as error:
        if error.code == 413:
            raise
        version, answered = one_line(str(error)), False
    yield "server", f"Gadgetron {version} at {shown(address)}" if answered else f"FAILED: {version}", answered
    echo, echoed = _echo(address)
    yield "echo", echo, echoed
    if not (answered or echoed):
        yield "chains", "not tried: this does not look like a Gadgetron", False
        return
    for name in chains():
        yield name, *_try_chain(address, name, timeout_s)


def _tiny_scan(name: str = "") -> tuple[bytes, list[bytes]]:
    """Header and messages of a small simulated scan that the chain `name` can reconstruct."""
    from gadget.files.scan_file import open_scan
    from gadget.phantom.sampling import ScanPlan
    from gadget.phantom.write import write_phantom

    plan = ScanPlan(**{"shape": (32, 32), "n_coils": 3, "acceleration": 2.0, **_SCANS.get(name, {})})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        write_phantom(path, plan)
        with open_scan(str(path)) as scan:
            return scan.header, list(scan.messages)


def _echo(address: Address) -> tuple[str, bool]:
    """Send readouts through a chain without gadgets; they have to come back as they are."""
    from gadget.replay.gadgetron_client import one_line, send_scan
    from pogmdm_core.errors import PogmdmError

    header, sent = _tiny_scan()
    start = time.monotonic()
    try:
        answer = send_scan(address, _ECHO, header, sent, _ECHO_S)
    except PogmdmError as error:
        return f"FAILED: {one_line(str(error))}", False
    seconds = time.monotonic() - start
    if answer.errors:
        return f"FAILED: {one_line(answer.errors[0])}", False
    if len(answer.readouts) != len(sent) or answer.images:
        return f"FAILED: {len(sent)} readouts were sent, {len(answer.readouts)} came back", False
    changed = sum(ours != theirs for ours, theirs in zip(sent, answer.readouts, strict=True))
    if changed:
        return f"FAILED: {changed} of {len(sent)} readouts came back changed", False
    if not answer.closed:
        return "FAILED: the readouts came back, but the connection ended without CLOSE", False
    return f"{len(sent)} readouts came back unchanged, {seconds:.1f} s", True


def _try_chain(address: Address, name: str, timeout_s: float) -> tuple[str, bool]:
    """Reconstruct a small scan with a chain that is installed on the server."""
    from gadget.replay.gadgetron_client import one_line, send_scan
    from pogmdm_core.errors import PogmdmError

    header, messages = _tiny_scan(name)
    start = time.monotonic()
    try:
        answer = send_scan(address, name, header, messages, timeout_s)
        problem = _problem(name, answer)
    except PogmdmError as error:
        problem = one_line(str(error))
    if not problem:
        numbers = sorted({int(image.image_series_index) for image in answer.images})
        found = f"{_count(answer)} (series {', '.join(map(str, numbers))})"
        return f"ok: {found}, {time.monotonic() - start:.1f} s", True
    if name in _SERVICES and problem != _MISSING:
        problem += f"; does 'pogmdm serve --port {_SERVICES[name]}' run on the server?"
    return problem if _INSTALL in problem else f"FAILED: {problem}", False


def _problem(name: str, answer: Answer) -> str:
    """Say what is wrong with an answer; empty when nothing is."""
    import numpy as np

    from gadget.replay.gadgetron_client import one_line

    for text in answer.errors:
        if _NO_FILE.search(text) or (name in text and _NOT_FOUND.search(text)):
            return _MISSING
        return one_line(text) or "an error without text"
    if not answer.images:
        return f"no image and no error: is it installed there? {_INSTALL}; see the server's log"
    for image in answer.images:
        number = int(image.image_series_index)
        pixels = np.abs(image.data)
        if not pixels.size or not np.isfinite(pixels).all():
            return f"an image of series {number} has no pixels, or some that are no numbers"
        if pixels.max() == pixels.min():
            what = ", the standard deviation," if number in _STD_SERIES else ""
            return f"an image of series {number}{what} is {pixels.max():g} everywhere"
    return "" if answer.closed else f"the connection ended without CLOSE after {_count(answer)}"


def _count(answer: Answer) -> str:
    return f"{len(answer.images)} image{'' if len(answer.images) == 1 else 's'}"
