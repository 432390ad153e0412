import gc
import weakref

import ismrmrd
import numpy as np
import pytest
from helpers.mrd_factory import Scan

from gadget.errors import DataError
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.classify import Kind, classify
from gadget.scan.failed import FailedFrames
from gadget.scan.frames import FrameKey
from gadget.scan.header import read_geometry
from gadget.scan.sliding import SlidingBuffer
from gadget.stream.budget import OBJECT_BYTES, ByteBudget


def feed(scan, acquisitions=None, trigger="auto", **limits):
    """Frames with the position in the stream at which they came out; flushed ones have -1."""
    buffer = AcquisitionBuffer(read_geometry(scan.header()), trigger, **limits)
    out = []
    acquisitions = scan.acquisitions() if acquisitions is None else acquisitions
    for position, acq in enumerate(acquisitions):
        out += [(position, frame) for frame in buffer.add(acq)]
    out += [(-1, frame) for frame in buffer.flush()]
    buffer.failed.raise_first(0)
    return buffer, out


def bit(flag):
    return 1 << (flag - 1)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0, Kind.IMAGING),
        (bit(ismrmrd.ACQ_IS_REVERSE), Kind.IMAGING),
        (bit(ismrmrd.ACQ_LAST_IN_SLICE), Kind.IMAGING),
        (bit(ismrmrd.ACQ_IS_NOISE_MEASUREMENT), Kind.NOISE),
        (bit(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) | bit(ismrmrd.ACQ_IS_DUMMYSCAN_DATA), Kind.NOISE),
        (bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION), Kind.CALIBRATION),
        (bit(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING), Kind.CALIBRATION_AND_IMAGING),
        (bit(20) | bit(21), Kind.CALIBRATION_AND_IMAGING),
        (bit(20) | bit(24), Kind.SKIP),
        *[(bit(flag), Kind.SKIP) for flag in (23, 24, 26, 27, 28, 29, 30, 31)],
    ],
)
@pytest.mark.fault("F36")
def test_flags_decide_the_kind(flags, kind):
    assert classify(flags) is kind


def test_last_in_slice_closes_its_slice_only():
    scan = Scan(n_slices=3, interleave=True)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:  # leave LAST_IN_SLICE alone
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    _, out = feed(scan, acquisitions)
    n = len(acquisitions)
    assert [(p, f.key.slice) for p, f in out] == [(n - 3, 0), (n - 2, 1), (n - 1, 2)]
    assert all(len(f.rows) == scan.ny for _, f in out)


def test_repetition_and_measurement_triggers_wait():
    scan = Scan(n_slices=2, n_repetitions=2)
    per_repetition = 2 * scan.ny
    _, out = feed(scan, trigger="repetition")
    assert [p for p, _ in out] == [per_repetition] * 2 + [2 * per_repetition] * 2
    _, out = feed(scan, trigger="measurement")
    assert [p for p, _ in out] == [2 * per_repetition] * 4
    _, out = feed(scan, trigger="slice")
    assert [p for p, _ in out] == [scan.ny * i for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("flags", [{}, {"last_flags": False, "first_flags": False}])
def test_two_partitions_of_which_one_comes_do_not_keep_frames_waiting(flags):
    """pulseq#34: the first readout of the next frame tells that a 2-D scan's is complete."""
    scan = Scan(n_repetitions=3, overrides={"ez": 2}, **flags)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    _, out = feed(scan, acquisitions)
    assert [(p, len(f.rows)) for p, f in out] == [(scan.ny + 1, scan.ny), (2 * scan.ny + 1, scan.ny), (-1, scan.ny)]
    broken = AcquisitionBuffer(read_geometry(scan.header()))
    assert sum(len(broken.add(acq)) for acq in acquisitions) == 2
    assert len(broken.complete()) == 1
    if not flags:  # nor where repetitions are not counted
        for acq in acquisitions:
            acq.idx.repetition = 0
        assert [len(f.rows) for _, f in feed(scan, acquisitions)[1]] == [scan.ny] * 3


@pytest.mark.parametrize("index", ["slice", "contrast", "phase", "repetition", "set"])
def test_every_index_makes_its_own_frame(index):
    scan = Scan(last_flags=False)
    first, second = scan.acquisitions(), scan.acquisitions()[1:]
    for acq in second:
        setattr(acq.idx, index, 1)
    _, out = feed(scan, first + second)
    # this source sets FIRST flags, so a frame without its LAST waits for the end of the scan
    assert [(p, getattr(f.key, index)) for p, f in out] == [(-1, 0), (-1, 1)]
    assert [len(f.rows) for _, f in out] == [scan.ny, scan.ny]


@pytest.mark.fault("F34")
def test_without_flags_a_new_index_closes_complete_frames(caplog):
    scan = Scan(n_slices=2, n_repetitions=2, last_flags=False, first_flags=False)
    _, out = feed(scan)
    assert [p for p, _ in out] == [scan.ny + 1, 2 * scan.ny + 1, 3 * scan.ny + 1, -1]
    assert "1 frame(s) ended with the scan" in caplog.text


def test_without_flags_interleaved_slices_are_not_split():
    scan = Scan(n_slices=3, interleave=True, last_flags=False, first_flags=False)
    _, out = feed(scan)
    assert [p for p, _ in out] == [-1, -1, -1]
    assert all(len(f.rows) == scan.ny for _, f in out)


def test_embedded_calibration_lines_are_data_and_separate_ones_are_not():
    scan = Scan(acceleration=4)
    buffer, out = feed(scan)
    assert sorted(out[0][1].rows) == scan.rows()
    assert buffer.counts[Kind.CALIBRATION] > 0
    separate = scan.header().replace(b"embedded", b"separate")
    buffer = AcquisitionBuffer(read_geometry(separate))
    frames = [f for acq in scan.acquisitions() for f in buffer.add(acq)]
    assert len(frames[0].rows) == scan.ny // 4


@pytest.mark.parametrize("trajectory", ["cartesian", "epi"])
def test_complete_frames_of_lines_come_without_flags_and_from_a_broken_stream(trajectory):
    scan = Scan(n_repetitions=2, trajectory=trajectory, last_flags=False, first_flags=False)
    buffer = AcquisitionBuffer(read_geometry(scan.header()))
    assert [len(f.rows) for acq in scan.acquisitions() for f in buffer.add(acq)] == [scan.ny]
    assert [len(f.rows) for f in buffer.complete()] == [scan.ny]


@pytest.mark.fault("F36")
def test_skipped_readouts_stay_out_but_their_flags_count():
    scan = Scan(last_flags=False)
    acquisitions = scan.acquisitions()
    navigator = scan.acquisitions()[5]
    navigator.set_flag(ismrmrd.ACQ_IS_NAVIGATION_DATA)
    navigator.set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    _, out = feed(scan, [*acquisitions, navigator])
    assert [(p, len(f.rows)) for p, f in out] == [(len(acquisitions), scan.ny)]


def test_flags_of_earlier_averages_do_not_close():
    scan = Scan()
    header = scan.header().replace(
        b"</encodingLimits>",
        b"<average><minimum>0</minimum><maximum>1</maximum><center>0</center></average></encodingLimits>",
    )
    buffer = AcquisitionBuffer(read_geometry(header))
    first, second = scan.acquisitions(), scan.acquisitions()[1:]
    first[-1].clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    for acq in second:
        acq.idx.average = 1
    frames = [f for acq in first + second for f in buffer.add(acq)]
    assert [len(f.rows) for f in frames] == [2 * scan.ny]


@pytest.mark.fault("F35")
def test_stray_lines_after_the_last_are_dropped_and_a_second_scan_is_not(caplog):
    scan = Scan()
    acquisitions = scan.acquisitions()
    _, out = feed(scan, acquisitions + scan.acquisitions()[1:4])
    assert len(out) == 1
    assert "dropped 3 readouts that came after its last one" in caplog.text
    _, out = feed(scan, acquisitions + scan.acquisitions()[1:])
    assert len(out) == 2


@pytest.mark.fault("F35")
def test_last_flag_twice_gives_one_frame():
    scan = Scan()
    acquisitions = scan.acquisitions()
    _, out = feed(scan, [*acquisitions, scan.acquisitions()[-1]])
    assert len(out) == 1


def test_reference_is_the_readout_nearest_the_centre():
    _, out = feed(Scan(acceleration=4))
    assert out[0][1].reference.idx.kspace_encode_step_1 == 20
    assert out[0][1].reference.acquisition_time_stamp == 1020


@pytest.mark.fault("F30")
def test_truncated_frame_is_marked():
    scan = Scan(last_flags=False)
    _, out = feed(scan, scan.acquisitions()[:25])
    assert "INCOMPLETE" in out[0][1].warnings


@pytest.mark.fault("F42")
def test_few_broken_readouts_are_dropped_and_many_refused():
    scan = Scan(ny=256, nx=16, n_coils=1)
    acquisitions = scan.acquisitions()
    acquisitions[3].data[0, 0] = np.nan
    acquisitions[9].data[0, 3] = np.inf
    _, out = feed(scan, acquisitions)
    assert len(out[0][1].rows) == 254
    assert np.isfinite(out[0][1].data).all()
    assert "BROKEN_READOUTS" in out[0][1].warnings
    acquisitions[20].data[:] = np.nan
    with pytest.raises(DataError, match="E330 slice 0: 3 of 256"):
        feed(scan, acquisitions)


@pytest.mark.fault("F28")
def test_rows_outside_the_matrix(caplog):
    scan = Scan(ny=80)
    acquisitions = scan.acquisitions()
    for acq in acquisitions[1:5]:
        acq.idx.kspace_encode_step_1 = 500
    _, out = feed(scan, acquisitions)
    assert len(out[0][1].rows) == 76
    assert "OUTSIDE_MATRIX" in out[0][1].warnings
    assert "4 outside the matrix" in caplog.text
    acquisitions[7].idx.kspace_encode_step_1 = 81
    with pytest.raises(DataError, match="E303 .*5 of 80 .*80 rows"):
        feed(scan, acquisitions)


@pytest.mark.fault("F28")
def test_rows_outside_the_encoding_limits():
    """Inside the matrix, but the header says that nothing is measured there."""
    scan = Scan(ny=80)
    header = scan.header().replace(b"<maximum>79<", b"<maximum>77<")

    def frames():
        buffer = AcquisitionBuffer(read_geometry(header))
        made = [f for acq in scan.acquisitions() for f in buffer.add(acq)]
        buffer.failed.raise_first(0)
        return made

    (frame,) = frames()
    assert sorted(frame.rows) == list(range(78))
    assert "OUTSIDE_MATRIX" in frame.warnings
    header = scan.header().replace(b"<maximum>79<", b"<maximum>74<")
    with pytest.raises(DataError, match=r"E303 .*5 of 80 .*encoding limits 0..74"):
        frames()


@pytest.mark.fault("F33")
def test_readouts_of_which_nothing_is_to_be_kept_are_counted(caplog):
    scan = Scan()
    acquisitions = scan.acquisitions()
    acquisitions[5].discard_pre = acquisitions[5].number_of_samples
    acquisitions[6].discard_pre = acquisitions[6].discard_post = 65535
    _, out = feed(scan, acquisitions)
    assert len(out[0][1].rows) == scan.ny - 2
    assert {"EMPTY_READOUTS", "INCOMPLETE"} <= set(out[0][1].warnings)
    assert "dropped readouts: 2 without samples\n" in caplog.text


@pytest.mark.fault("F29")
def test_lines_that_come_twice_are_told_and_averages_are_not(caplog):
    scan = Scan()
    acquisitions = scan.acquisitions()
    again = scan.acquisitions()[3:6]
    _, out = feed(scan, [*acquisitions[:-1], *again, acquisitions[-1]])
    assert "REPEATED_LINES" in out[0][1].warnings
    assert "3 lines came more than once in an average" in caplog.text
    for acq in again:
        acq.idx.average = 1
    _, out = feed(scan, [*acquisitions[:-1], *again, acquisitions[-1]])
    assert "REPEATED_LINES" not in out[0][1].warnings


@pytest.mark.fault("F31")
def test_readouts_of_another_shape_are_dropped():
    scan = Scan()
    acquisitions = scan.acquisitions()
    head = acquisitions[4].getHead()
    head.number_of_samples = 10
    acquisitions[4] = ismrmrd.Acquisition(head, data=np.ones((4, 10), np.complex64))
    _, out = feed(scan, acquisitions)
    assert len(out[0][1].rows) == scan.ny - 1
    assert "MIXED_SHAPES" in out[0][1].warnings


@pytest.mark.fault("F31")
def test_readouts_without_samples_are_refused():
    scan = Scan()
    acquisitions = []
    for acq in scan.acquisitions()[1:]:
        head = acq.getHead()
        head.number_of_samples = 0
        acquisitions.append(ismrmrd.Acquisition(head))
    with pytest.raises(DataError, match="E305"):
        feed(scan, acquisitions)


@pytest.mark.fault("F51")
def test_buffer_is_bounded():
    scan = Scan(last_flags=False)
    with pytest.raises(DataError, match="E306 .*max_buffer_bytes = 40000"):
        feed(scan, budget=ByteBudget(40000))
    # what has left does not count
    small = Scan(n_slices=8, noise_scan=False)
    per_frame = small.ny * (8 * small.n_coils * small.nx_encoded + 340 + OBJECT_BYTES)
    feed(small, budget=ByteBudget(per_frame))


@pytest.mark.fault("F51")
def test_objects_count_beside_their_samples():
    """A thousand readouts of a few samples each take far more than their bytes on the wire."""
    scan = Scan(nx=8, ny=8, n_coils=1, oversampling=1, noise_scan=False, last_flags=False)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.scan_counter = 0
    with pytest.raises(DataError, match="E306"):
        feed(scan, acquisitions * 100, budget=ByteBudget(800 * 1024))


def test_key_names_what_is_not_zero():
    assert str(FrameKey(0, 2, 0, 0, 3, 0)) == "slice 2 repetition 3"


@pytest.mark.fault("F31")
def test_a_minority_of_usable_readouts_is_refused():
    scan = Scan()
    acquisitions = scan.acquisitions()
    for i in range(1, 22):  # 21 of 40 have one channel, not the four of the header
        acquisitions[i] = ismrmrd.Acquisition(_with_channels(acquisitions[i], 1), data=acquisitions[i].data[:1].copy())
    with pytest.raises(DataError, match="E305 slice 0: only 19 of 40 readouts have 4 channels of 96 samples"):
        feed(scan, acquisitions)
    acquisitions[1] = scan.acquisitions()[1]
    _, out = feed(scan, acquisitions)
    assert len(out[0][1].rows) == 20
    assert "MIXED_SHAPES" in out[0][1].warnings


def _with_channels(acq, n_channels):
    head = acq.getHead()
    head.active_channels = n_channels
    return head


@pytest.mark.parametrize(
    ("flags", "cut"),
    [
        ({"last_flags": False}, True),
        ({"last_flags": False, "first_flags": False}, False),
        ({}, False),
    ],
)
@pytest.mark.fault("F34")
def test_a_frame_without_its_last_flag_is_marked_where_the_source_sets_flags(flags, cut):
    scan = Scan(**flags)
    _, out = feed(scan)
    assert ("NO_LAST_FLAG" in out[0][1].warnings) == cut


def test_only_the_frame_that_was_cut_is_marked():
    scan = Scan(n_slices=2, first_flags=False)
    _, out = feed(scan, scan.acquisitions()[:-1])
    assert ["NO_LAST_FLAG" in f.warnings for _, f in out] == [False, True]


@pytest.mark.fault("F41")
def test_two_measurements_in_one_stream_never_mix(caplog):
    scan = Scan(last_flags=False, noise_scan=False)
    first, second = scan.acquisitions()[:30], scan.acquisitions()
    for acq in second:
        acq.measurement_uid = 8
    buffer, out = feed(scan, first + second)
    assert [(p, len(f.rows)) for p, f in out] == [(30, 30), (-1, scan.ny)]
    assert {h.measurement_uid for h in out[0][1].heads} == {7}
    assert "MEASUREMENT_CHANGED" in out[0][1].warnings
    assert "MEASUREMENT_CHANGED" not in out[1][1].warnings
    assert "the measurement changes within the stream" in caplog.text


@pytest.mark.fault("F41")
def test_a_scan_that_begins_again_under_the_same_uid_is_another(caplog):
    scan = Scan(n_slices=2, interleave=True, last_flags=False, noise_scan=False)
    first, second = scan.acquisitions()[:60], scan.acquisitions()
    _, out = feed(scan, first + second)
    assert [(p, f.key.slice, len(f.rows)) for p, f in out] == [
        (60, 0, 30), (60, 1, 30), (-1, 0, scan.ny), (-1, 1, scan.ny)
    ]  # fmt: skip
    assert ["MEASUREMENT_CHANGED" in f.warnings for _, f in out] == [True, True, False, False]
    assert not any("REPEATED_LINES" in f.warnings for _, f in out)
    assert "the measurement changes within the stream" in caplog.text


@pytest.mark.parametrize("order", [lambda i: -i, lambda i: (i % 4, i), lambda i: (i * 7) % 40])
def test_sorted_readouts_are_one_scan(order):
    """Their scan counters fall all the time."""
    scan = Scan(last_flags=False, noise_scan=False)
    acquisitions = scan.acquisitions()
    shuffled = [acquisitions[i] for i in sorted(range(scan.ny), key=order)]
    _, out = feed(scan, shuffled)
    assert [len(f.rows) for _, f in out] == [scan.ny]
    assert "MEASUREMENT_CHANGED" not in out[0][1].warnings


def test_averages_that_count_anew_are_one_scan():
    scan = Scan(last_flags=False, noise_scan=False)
    first, second = scan.acquisitions(), scan.acquisitions()
    for acq in second:
        acq.idx.average = 1
    _, out = feed(scan, first + second)
    assert [len(f.rows) for _, f in out] == [2 * scan.ny]


@pytest.mark.fault("F41")
def test_the_noise_scan_may_be_of_another_measurement():
    scan = Scan()
    acquisitions = scan.acquisitions()
    acquisitions[0].measurement_uid = 3
    _, out = feed(scan, acquisitions)
    assert "MEASUREMENT_CHANGED" not in out[0][1].warnings


@pytest.mark.fault("F41")
@pytest.mark.parametrize("sliding", [False, True])
def test_noise_of_two_measurements_is_not_pooled(sliding):
    """Frames of the one are handed out before the noise of the other takes its place."""
    scan = Scan(acceleration=1, last_flags=False, first_flags=False)
    first, second = scan.acquisitions(), scan.acquisitions()
    for acq in first:
        acq.measurement_uid = 7
    for acq in second:
        acq.measurement_uid = 8
    geometry = read_geometry(scan.header())
    buffer = SlidingBuffer(geometry, "auto", ByteBudget(), 10, 5) if sliding else AcquisitionBuffer(geometry)
    for acq in first[:-1]:  # one line is missing, so that nothing completes the frame
        assert buffer.add(acq) == []
    (frame,) = buffer.add(second[0])
    assert [acq.measurement_uid for acq in buffer.noise] == [7]  # to whiten that frame with
    assert len(frame.heads) == scan.ny - 1
    before, held = buffer.noise, buffer.budget.held
    assert buffer.add(second[1]) == []
    assert [acq.measurement_uid for acq in buffer.noise] == [8] and buffer.noise is not before
    assert buffer.budget.held < held + 10_000


def test_a_failed_frame_keeps_no_readouts():
    scan = Scan(noise_scan=False)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.data[:] = np.nan
    seen = [weakref.ref(acq) for acq in acquisitions]
    buffer = AcquisitionBuffer(read_geometry(scan.header()))
    for acq in acquisitions:
        buffer.add(acq)
    del acq, acquisitions
    gc.collect()
    assert buffer.failed
    assert not any(made() for made in seen)


def test_where_a_frame_failed_is_in_the_debug_log(caplog):
    caplog.set_level("DEBUG", logger="pogmdm")
    with FailedFrames().tolerated("slice 0"):
        raise RuntimeError("ZZPATIENTZZ")
    assert "test_where_a_frame_failed_is_in_the_debug_log" in caplog.text
    assert "ZZPATIENTZZ" not in caplog.text.replace('raise RuntimeError("ZZPATIENTZZ")', "")
