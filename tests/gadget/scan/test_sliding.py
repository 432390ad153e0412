import numpy as np
import pytest
from helpers.mrd_factory import Scan, radial_scan

from gadget.errors import ConfigError, DataError
from gadget.scan.header import read_geometry
from gadget.scan.sliding import SlidingBuffer
from gadget.settings.load import load
from gadget.stream.budget import OBJECT_BYTES, ByteBudget


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


@pytest.mark.fault("F41")
def test_windows_never_mix_two_measurements():
    """15 spokes of the first, 10 of the second."""
    header, acquisitions = running_scan()
    for number, acq in enumerate(acquisitions):
        acq.measurement_uid = 1 if number <= 15 else 2  # a noise readout comes first
    frames, rest = frames_of(header, acquisitions, 10, 5)
    uids = [{head.measurement_uid for head in frame.heads} for frame in frames + rest]
    assert uids == [{1}, {1}, {2}]
    assert [len(frame.heads) for frame in frames + rest] == [10, 10, 10]
    # and those of a scan that begins again without saying so
    for number, acq in enumerate(acquisitions):
        acq.measurement_uid = 1
        acq.scan_counter = number if number <= 15 else number - 15
        acq.idx.kspace_encode_step_1 = acq.scan_counter - 1 if number else 0
        acq.idx.repetition = acq.scan_counter // 5
    frames, rest = frames_of(header, acquisitions, 10, 5)
    counters = [[head.scan_counter for head in frame.heads] for frame in frames + rest]
    assert counters == [list(range(1, 11)), list(range(6, 16)), list(range(1, 11))]
    for number, acq in enumerate(acquisitions):
        acq.measurement_uid = 1 if number <= 15 else 2
    # cut off before the first window is full: labelled
    frames, rest = frames_of(header, acquisitions, 12, 12)
    assert [({h.measurement_uid for h in f.heads}, len(f.heads)) for f in frames + rest] == [({1}, 12), ({2}, 10)]
    frames, rest = frames_of(header, acquisitions, 20, 20)
    assert [len(f.heads) for f in frames] == [15]
    assert "MEASUREMENT_CHANGED" in frames[0].warnings
    assert [len(f.heads) for f in rest] == [10]


def test_repetitions_that_count_anew_are_one_scan():
    header, acquisitions = running_scan()
    for number, acq in enumerate(acquisitions):
        acq.scan_counter = acq.idx.kspace_encode_step_1 = number % 5
    frames, rest = frames_of(header, acquisitions, 10, 5)
    assert [len(frame.heads) for frame in frames + rest] == [10, 10, 10, 10]
    assert not any("MEASUREMENT_CHANGED" in frame.warnings for frame in frames)


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


def test_windows_of_a_2_d_scan_whose_header_announces_two_partitions():
    """pulseq#34."""
    header, acquisitions = running_scan()
    announced = header.replace(b"<z>1</z>", b"<z>2</z>", 1)
    frames, rest = frames_of(announced, acquisitions, 10, 4)
    assert [len(frame.heads) for frame in frames + rest] == [10] * 4
    assert all(frame.encoding.encoded.matrix[2] == 1 for frame in frames)


@pytest.mark.fault("F40")
def test_windows_of_a_slab_that_looks_like_a_2_d_scan_end_with_its_second_partition():
    header, acquisitions = running_scan()
    for number, acq in enumerate(acquisitions):
        acq.idx.kspace_encode_step_2 = int(number > 15)
        acq.idx.repetition = 0
        acq.clear_all_flags() if number else None
    buffer = SlidingBuffer(read_geometry(header.replace(b"<z>1</z>", b"<z>2</z>", 1)), "auto", ByteBudget(), 20, 20)
    assert [f for acq in acquisitions for f in buffer.add(acq)] + buffer.flush() == []
    with pytest.raises(DataError, match="E204 .*10 of 10"):
        buffer.failed.raise_first(0)


def test_lines_of_epi_are_no_windows():
    scan = Scan(trajectory="epi", n_repetitions=2, noise_scan=False)
    frames, rest = frames_of(scan.header(), scan.acquisitions(), 10, 10)
    assert [len(frame.heads) for frame in frames + rest] == [scan.ny] * 2
