import numpy as np
import pytest
from helpers.mrd_factory import Scan, radial_scan

from gadget.budget import OBJECT_BYTES, ByteBudget
from gadget.errors import ConfigError, DataError
from gadget.header import read_geometry
from gadget.settings import load
from gadget.sliding import SlidingBuffer


def frames_of(header, acquisitions, shots, step, max_bytes=1 << 30):
    buffer = SlidingBuffer(read_geometry(header), "auto", ByteBudget(max_bytes), shots, step)
    frames = [f for acq in acquisitions for f in buffer.add(acq)]
    return frames, buffer.flush()


def running_scan():
    header, acquisitions = radial_scan(n_spokes=25, noise_std=0.01)
    for number, acq in enumerate(acquisitions):
        acq.idx.repetition = number // 5
    return header, acquisitions


def test_windows_overlap_and_number_their_frames():
    header, acquisitions = running_scan()
    frames, rest = frames_of(header, acquisitions, 10, 4)
    assert rest == []
    assert [frame.key.repetition for frame in frames] == [0, 1, 2, 3]
    assert [frame.reference.idx.repetition for frame in frames] == [0, 1, 2, 3]
    for number, frame in enumerate(frames):
        steps = [head.idx.kspace_encode_step_1 for head in frame.heads]
        assert steps == list(range(4 * number, 4 * number + 10))
        np.testing.assert_array_equal(frame.data[0], acquisitions[1 + 4 * number].data)


def test_memory_is_that_of_one_window():
    header, acquisitions = radial_scan(n_spokes=60)
    room = 12 * (acquisitions[0].data.nbytes + acquisitions[0].traj.nbytes + 340 + OBJECT_BYTES)
    assert len(frames_of(header, acquisitions, 10, 10, room)[0]) == 6
    with pytest.raises(DataError, match="E306"):
        frames_of(header, acquisitions, 13, 13, room)


def test_a_scan_shorter_than_a_window_is_one_frame():
    frames, rest = frames_of(*running_scan(), 100, 10)
    assert frames == []
    assert [len(frame.heads) for frame in rest] == [25]


def test_scans_on_the_grid_go_their_usual_way():
    scan = Scan(n_repetitions=2)
    frames, rest = frames_of(scan.header(), scan.acquisitions(), 5, 5)
    assert [frame.key.repetition for frame in frames + rest] == [0, 1]
    assert all(len(frame.heads) == scan.ny for frame in frames)


def test_a_step_beyond_the_window_is_refused():
    assert load(properties={"window.shots": "25", "window.step": "25"}).window.step == 25
    with pytest.raises(ConfigError, match="E103 .*step 26 is larger than shots 25"):
        load(properties={"window.shots": "25", "window.step": "26"})
