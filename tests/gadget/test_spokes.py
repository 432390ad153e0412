"""Spokes without stored positions get those of their angle scheme."""

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.mrd_factory import radial_scan

from gadget.buffer import AcquisitionBuffer
from gadget.errors import DataError
from gadget.header import read_geometry
from gadget.prepare import prepare
from gadget.settings import load
from gadget.spokes import scheme_of


def bare(acquisitions, reverse=()):
    """The same readouts without their trajectory; those of `reverse` as if played backwards."""
    made = []
    for number, acq in enumerate(acquisitions):
        head = acq.getHead()
        head.trajectory_dimensions = 0
        data = acq.data
        if number in reverse:
            data = data[:, ::-1]
            head.flags |= 1 << (ismrmrd.ACQ_IS_REVERSE - 1)
        made.append(ismrmrd.Acquisition(head, data=np.ascontiguousarray(data)))
    return made


def described(header, identifier):
    text = f"<trajectoryDescription><identifier>{identifier}</identifier></trajectoryDescription>"
    return header.replace(b"</trajectory>", b"</trajectory>" + text.encode())


def frame_of(header, acquisitions, **properties):
    buffer = AcquisitionBuffer(read_geometry(header))
    frames = [f for acq in acquisitions for f in buffer.add(acq)] + buffer.flush()
    return prepare(frames[0], None, load(properties=properties)).frame


@pytest.mark.fault("F24")
def test_uniform_spokes_are_where_stored_ones_are():
    header, acquisitions = radial_scan()
    stored = frame_of(header, acquisitions)
    for reverse in ((), (3, 4)):
        found = frame_of(header, bare(acquisitions, reverse), **{"trajectory.radial": "uniform"})
        order = [torch.argsort(f.trajectory[0] * 1000 + f.trajectory[1]) for f in (found, stored)]
        torch.testing.assert_close(found.trajectory[:, order[0]], stored.trajectory[:, order[1]], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.kspace[:, order[0]], stored.kspace[:, order[1]])
    found = frame_of(described(header, "UniformRadial"), bare(acquisitions))
    torch.testing.assert_close(found.trajectory, stored.trajectory, atol=1e-5, rtol=0)


@pytest.mark.fault("F24", "F33")
def test_a_dropped_spoke_does_not_turn_the_others():
    """Of a source that does not count its spokes: the order in which they come is all there is."""
    header, acquisitions = radial_scan()
    spokes = bare(acquisitions)
    for acq in spokes:
        acq.idx.kspace_encode_step_1 = 0
    whole = frame_of(header, spokes, **{"trajectory.radial": "golden"})
    spokes[3].discard_pre = spokes[3].number_of_samples
    found = frame_of(header, spokes, **{"trajectory.radial": "golden"})
    assert torch.equal(found.trajectory, whole.trajectory[:, whole.shot != 3])


@pytest.mark.fault("F24")
@pytest.mark.parametrize(("scheme", "degrees"), [("golden", 111.246), ("tiny_golden", 23.628)])
def test_golden_spokes_turn_by_their_angle(scheme, degrees):
    header, acquisitions = radial_scan(n_spokes=4)
    for found in (
        frame_of(header, bare(acquisitions), **{"trajectory.radial": scheme}),
        frame_of(described(header, scheme), bare(acquisitions)),
    ):
        kx, ky = found.trajectory.reshape(2, 4, -1)[:, :, -1].numpy()
        turns = np.diff(np.unwrap(np.arctan2(ky, kx), period=2 * np.pi))
        np.testing.assert_allclose(np.degrees(turns), degrees, atol=0.002)


@pytest.mark.fault("F24")
def test_without_angles_the_remedies_are_named():
    header, acquisitions = radial_scan()
    with pytest.raises(DataError, match="E320 .*Store it.*gadget upstream.*trajectory.radial"):
        frame_of(header, bare(acquisitions))
    spiral = header.replace(b"<trajectory>radial", b"<trajectory>spiral")
    with pytest.raises(DataError, match="E320 .*'spiral'"):
        frame_of(spiral, bare(acquisitions), **{"trajectory.radial": "golden"})


@pytest.mark.parametrize(
    ("identifier", "scheme"),
    [("Golden_Angle", "golden"), ("tinyGolden7", "tiny_golden"), ("uniform", "uniform"), ("HargreavesVDS2000", "")],
)
def test_names_in_headers(identifier, scheme):
    assert scheme_of(identifier) == scheme
