"""Numbers and sizes of the wire, held against others' code: PyPI gadgetron and ismrmrd. Not against our own peer."""

import ctypes
import struct

import gadgetron.external.constants as theirs
import helpers.peer as peer
import ismrmrd
import pytest
from gadgetron.types.recon_data import SamplingDescription
from ismrmrd.waveform import WaveformHeader

from gadget.stream import recon_data, wire

pytestmark = pytest.mark.fault("F76")

IDS = {
    "CONFIG_FILE": theirs.GADGET_MESSAGE_FILENAME,
    "CONFIG": theirs.GADGET_MESSAGE_CONFIG,
    "HEADER": theirs.GADGET_MESSAGE_HEADER,
    "CLOSE": theirs.GADGET_MESSAGE_CLOSE,
    "TEXT": theirs.GADGET_MESSAGE_TEXT,
    "ERROR": theirs.GADGET_MESSAGE_ERROR,
    "ACQUISITION": theirs.GADGET_MESSAGE_ISMRMRD_ACQUISITION,
    "IMAGE": theirs.GADGET_MESSAGE_ISMRMRD_IMAGE,
    "RECON_DATA": theirs.GADGET_MESSAGE_RECON_DATA,
    "WAVEFORM": theirs.GADGET_MESSAGE_ISMRMRD_WAVEFORM,
}


@pytest.mark.parametrize("name", IDS)
def test_ids_are_those_of_the_stock_package(name):
    assert getattr(wire, name) == IDS[name]
    assert getattr(peer, name, IDS[name]) == IDS[name]


def test_sizes_are_those_of_the_standard():
    """340, 198 and 40 bytes are in the ISMRMRD standard; 56 is what a real Gadgetron 4.7.2 sent."""
    assert ctypes.sizeof(ismrmrd.AcquisitionHeader) == 340
    assert ctypes.sizeof(ismrmrd.ImageHeader) == 198
    assert ctypes.sizeof(WaveformHeader) == 40
    assert recon_data._DESCRIPTION_BYTES == ctypes.sizeof(SamplingDescription) == 56
    assert (theirs.uint32.size, theirs.uint64.size, theirs.GadgetMessageIdentifier.size) == (4, 8, 2)
    assert struct.calcsize(f"<{wire.CONFIG_FILE_BYTES}s") == 1024
