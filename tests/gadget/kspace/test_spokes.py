"""Spokes without stored positions get those of their angle scheme."""

import re

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.mrd_factory import radial_scan

from gadget.errors import DataError
from gadget.kspace.cartesian import sample_columns
from gadget.kspace.prepare import prepare
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry, scheme_of
from gadget.scan.sliding import SlidingBuffer
from gadget.settings.load import load
from gadget.stream.budget import ByteBudget


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


def uncounted(acquisitions):
    spokes = bare(acquisitions)
    for acq in spokes:
        acq.idx.kspace_encode_step_1 = 0
        acq.flags = 0
    return spokes


def last_angles(frame, n):
    """Direction of each spoke, degrees."""
    kx, ky = frame.trajectory.reshape(2, n, -1)[:, :, -1].numpy()
    return np.degrees(np.unwrap(np.arctan2(ky, kx), period=2 * np.pi))


@pytest.mark.fault("F24")
@pytest.mark.parametrize("windows", [True, False])
def test_spokes_are_counted_over_the_whole_scan(windows):
    """A golden angle goes on where the frame before ended, in sliding windows and in later repetitions."""
    header, acquisitions = radial_scan(n_spokes=30)
    spokes = uncounted(acquisitions)
    geometry = read_geometry(header)
    if windows:
        buffer = SlidingBuffer(geometry, "auto", ByteBudget(), 10, 5)
    else:
        buffer = AcquisitionBuffer(geometry, "repetition")
        for number, acq in enumerate(spokes):
            acq.idx.repetition = number // 10
    frames = [f for acq in spokes for f in buffer.add(acq)] + buffer.flush()
    assert len(frames) == (5 if windows else 3)
    settings = load(properties={"trajectory.radial": "golden"})
    for number, frame in enumerate(frames):
        first = number * (5 if windows else 10)
        expected = 111.2461 * (first + np.arange(10))
        found = last_angles(prepare(frame, None, settings).frame, 10)
        np.testing.assert_allclose((found - expected + 180) % 360, 180, atol=0.01)


@pytest.mark.fault("F24", "F33")
@pytest.mark.parametrize("reverse", [False, True])
def test_a_spoke_may_begin_in_the_centre(reverse):
    """Half as long as the matrix, with its centre at sample 0: on a grid and on spokes that is the same sample."""
    header, acquisitions = radial_scan(n_spokes=4)
    n = acquisitions[0].number_of_samples
    halves = []
    for acq in bare(acquisitions, range(4) if reverse else ()):
        head = acq.getHead()
        head.number_of_samples, head.center_sample = n // 4, n // 4 - 1 if reverse else 0
        halves.append(ismrmrd.Acquisition(head, data=np.ascontiguousarray(acq.data[:, : n // 4])))
    found = frame_of(header, halves, **{"trajectory.radial": "uniform"})
    radius = found.trajectory.norm(dim=0).reshape(4, -1)
    if reverse:
        radius = radius.flip(1)
    np.testing.assert_allclose(radius, np.arange(n // 4)[None].repeat(4, 0) * float(radius[0, 1]), atol=1e-5)
    assert sample_columns(halves[0].getHead(), n // 2)[0] == n // 4  # k = 0 of the grid


@pytest.mark.fault("F24")
def test_uniform_spokes_that_are_not_counted_repeat_their_turn():
    header, acquisitions = radial_scan(n_spokes=10)
    spokes = uncounted([*acquisitions, *acquisitions])
    for number, acq in enumerate(spokes):
        acq.idx.repetition = number // 10
    buffer = AcquisitionBuffer(read_geometry(header), "repetition")
    first, second = [f for acq in spokes for f in buffer.add(acq)] + buffer.flush()
    settings = load(properties={"trajectory.radial": "uniform"})
    one, other = (prepare(frame, None, settings).frame.trajectory for frame in (first, second))
    torch.testing.assert_close(one, other)
    # a window may begin anywhere in a turn that nobody knows the length of
    without = re.sub(rb"<encodingLimits>.*?</encodingLimits>", b"<encodingLimits></encodingLimits>", header)
    sliding = SlidingBuffer(read_geometry(without), "auto", ByteBudget(), 6, 3)
    frames = [f for acq in spokes for f in sliding.add(acq)]
    with pytest.raises(DataError, match="E320 .*make a turn"):
        prepare(frames[1], None, settings)


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


@pytest.mark.fault("F24", "F31")
def test_spokes_of_two_lengths_whose_stored_positions_are_all_0():
    header, acquisitions = radial_scan(n_spokes=24)
    stored = frame_of(header, acquisitions)
    made = []
    for number, acq in enumerate(acquisitions):
        head, cut = acq.getHead(), number % 2
        head.number_of_samples -= 2 * cut
        head.center_sample -= cut
        n = head.number_of_samples
        data = acq.data[:, cut : cut + n].copy()
        made.append(ismrmrd.Acquisition(head, data=data, trajectory=np.zeros((n, 2), np.float32)))
    found = frame_of(header, made, **{"trajectory.radial": "uniform"})
    assert found.kspace.shape[1] == sum(acq.number_of_samples for acq in made)
    long, same = found.shot % 2 == 0, stored.shot % 2 == 0
    torch.testing.assert_close(found.trajectory[:, long], stored.trajectory[:, same], atol=1e-5, rtol=0)
    assert torch.equal(found.kspace[:, long], stored.kspace[:, same])
