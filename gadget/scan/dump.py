"""What a scan sent, kept to be replayed: off unless the operator names a folder.

A dump is an ISMRMRD stream, which `pogmdm run` reads. Its header holds what a reconstruction needs and nothing else;
k-space, positions and time stamps are those of the patient, so the folder and the files are the owner's alone.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import ismrmrd
import ismrmrd.xsd as xsd

from gadget import logs
from gadget.scan.header import Header, parse, to_xml
from gadget.stream.wire import ACQUISITION, CLOSE, HEADER


def dumped(items: Iterable[Any], folder: str, header: Header) -> Generator[Any, None, None]:
    """Pass on what a stream brings, and write its readouts to a new file in `folder`.

    A dump that cannot be written is given up with a warning; the scan is not.

    Parameters
    ----------
    items
        Readouts, and others that are not written.
    folder
        Made with mode 0700 where it is missing; empty: nothing is written.
    header
        `ismrmrd.xsd.ismrmrdHeader`, or its XML.
    """
    if not folder:
        yield from items
        return
    file = _new_file(folder, header)
    try:
        for item in items:
            if file is not None and isinstance(item, ismrmrd.Acquisition) and not _write(file, _readout(item)):
                file.close()
                file = None
            yield item
    finally:
        if file is not None:
            with file:
                _write(file, struct.pack("<H", CLOSE))


def without_names(header: Header) -> xsd.ismrmrdHeader:
    """Copy what a reconstruction needs of a header: encodings, receiver, field strength, position."""
    if isinstance(header, bytes | str):
        header = parse(header)
    system, measurement = header.acquisitionSystemInformation, header.measurementInformation
    kept = ("receiverChannels", "relativeReceiverNoiseBandwidth", "systemFieldStrength_T")
    return xsd.ismrmrdHeader(
        experimentalConditions=header.experimentalConditions,
        encoding=[replace(e, trajectoryDescription=_identifier(e.trajectoryDescription)) for e in header.encoding],
        acquisitionSystemInformation=system
        and xsd.acquisitionSystemInformationType(**{name: getattr(system, name) for name in kept}),
        measurementInformation=measurement
        and xsd.measurementInformationType(patientPosition=measurement.patientPosition),
    )


def _identifier(description: xsd.trajectoryDescriptionType | None) -> xsd.trajectoryDescriptionType | None:
    return description and xsd.trajectoryDescriptionType(identifier=description.identifier)


def _readout(acq: ismrmrd.Acquisition) -> bytes:
    parts = [struct.pack("<H", ACQUISITION)]
    acq.serialize_into(lambda data: parts.append(bytes(data)))
    return b"".join(parts)


def _new_file(folder: str, header: Header) -> IO[bytes] | None:
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_mode & 0o077:
            logs.get().warning("dump: nothing is written to %s, which others may read: chmod 700", folder)
            return None
        # unbuffered: closing has nothing left to write, and cannot fail. Mode 0600
        file = tempfile.NamedTemporaryFile(prefix="scan_", suffix=".mrd", dir=path, delete=False, buffering=0)  # noqa: SIM115
    except OSError as error:
        logs.get().warning("dump: nothing is written to %s: %s", folder, error.strerror)
        return None
    logs.get().warning("dump: this scan's readouts, the data of a patient, are written to %s", file.name)
    text = to_xml(without_names(header))
    if _write(file, struct.pack("<HI", HEADER, len(text)) + text):
        return file
    file.close()
    return None


def _write(file: IO[bytes], data: bytes) -> bool:
    reason = "the disk takes no more"
    try:
        if file.write(data) == len(data):
            return True
    except OSError as error:
        reason = str(error.strerror)
    logs.get().warning("dump: given up: %s", reason)
    return False
