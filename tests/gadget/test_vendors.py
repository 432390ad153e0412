"""Oddities of the files that each converter and simulator writes (docs/scans.md names where they were seen)."""

import re

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.frames import frames_of, prepared, prepared_of
from helpers.mrd_factory import ENCODING, Scan, radial_scan

from gadget.errors import DataError, HeaderError
from gadget.files.scan_file import clean_header

SCAN = Scan(acceleration=2)
SURFACE_COIL = ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA


def changed(acq, data=None, trajectory=None, **head_changes):
    """A readout with other samples, positions, or header fields."""
    head = acq.getHead()
    for name, value in head_changes.items():
        setattr(head, name, value)
    data = acq.data if data is None else data
    head.active_channels, head.number_of_samples = data.shape
    head.trajectory_dimensions = 0 if trajectory is None else trajectory.shape[1]
    return ismrmrd.Acquisition(head, data=np.ascontiguousarray(data.astype(np.complex64)), trajectory=trajectory)


def mask(*flags):
    return sum(1 << (flag - 1) for flag in flags)


def with_text(header, old, new):
    assert old in header
    return header.replace(old, new)


def without(header, element):
    return re.sub(rb"<%b>.*?</%b>" % (element, element), b"", header, flags=re.DOTALL)


def unflagged(acquisitions, **head_changes):
    """The noise scan as it is, imaging readouts without any flag."""
    noise, *lines = acquisitions
    return [noise, *(changed(acq, flags=0, **head_changes) for acq in lines)]


def each(change):
    """Alter every imaging readout of a scan."""

    def alter(header, acquisitions):
        noise, *lines = acquisitions
        made = [change(acq) for acq in lines]
        return header, [noise, *(acq if new is None else new for acq, new in zip(lines, made, strict=True))]

    return alter


def text(old, new):
    """Alter the header."""
    return lambda header, acquisitions: (with_text(header, old, new), acquisitions)


def limits(**maxima):
    """Give counters limits of their own."""
    made = "".join(
        f"<{k}><minimum>0</minimum><maximum>{v}</maximum><center>0</center></{k}>" for k, v in maxima.items()
    )

    def alter(header, acquisitions):
        for name in maxima:
            header = without(header, name.encode())
        return with_text(header, b"<encodingLimits>", b"<encodingLimits>" + made.encode()), acquisitions

    return alter


def both(*alterations):
    def alter(header, acquisitions):
        for one in alterations:
            header, acquisitions = one(header, acquisitions)
        return header, acquisitions

    return alter


# --- no matter --------------------------------------------------------------------------------------------------------


def siemens_calibration_flags(acq):
    if acq.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING):
        acq.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)


def siemens_second_encoding(header, acquisitions):
    values = {
        "ex": 96,
        "ey": 40,
        "ez": "",
        "efx": 192,
        "efy": 80,
        "rx": 48,
        "ry": 40,
        "rfx": 96,
        "rfy": 80,
        "limits": "",
    }
    other = ENCODING.format(**values, trajectory="cartesian", parallel="").encode()
    return header.replace(b"</encoding>", b"</encoding>" + other, 1), acquisitions


def siemens_navigators(header, acquisitions):
    noise, *lines = acquisitions
    flags = mask(ismrmrd.ACQ_IS_NAVIGATION_DATA, ismrmrd.ACQ_IS_RTFEEDBACK_DATA)
    return header, [
        noise,
        *(acq for line in lines for acq in (changed(line, 3 * line.data[:, :20], flags=flags), line)),
    ]


def siemens_last_is_a_dummy(header, acquisitions):
    sent = unflagged(acquisitions)
    for new, old in zip(sent[1:], acquisitions[1:], strict=True):
        if old.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION):
            new.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    flags = mask(ismrmrd.ACQ_IS_DUMMYSCAN_DATA, ismrmrd.ACQ_LAST_IN_MEASUREMENT, ismrmrd.ACQ_LAST_IN_REPETITION)
    return header, [*sent, changed(sent[-1], sent[-1].data[:, :33], flags=flags)]


def philips_header(header, acquisitions):
    header = with_text(header, b"_Hz>123000000<", b"_Hz>0<")
    header = with_text(
        header,
        b"<ismrmrdHeader ",
        b'<ismrmrdHeader xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        b'xsi:schemaLocation="http://www.ismrm.org/ISMRMRD ismrmrd.xsd" ',
    )
    times = b"<sequenceParameters><TR>ETH</TR><TE>2.3</TE></sequenceParameters></ismrmrdHeader>"
    return with_text(header, b"</ismrmrdHeader>", times), acquisitions


def philips_zero_positions(acq):
    return changed(acq, trajectory=np.zeros((acq.number_of_samples, 2), np.float32))


def philips_nan_positions(acq):
    return changed(acq, trajectory=np.full((acq.number_of_samples, 2), np.nan, np.float32))


def ge_references(header, acquisitions):
    noise, *lines = acquisitions
    centre = changed(lines[len(lines) // 2], flags=mask(ismrmrd.ACQ_IS_PHASECORR_DATA))
    return with_text(header, b">cartesian<", b">epi<"), [noise, centre, centre, centre, *lines]


def bruker_flag_numbers(header, acquisitions):
    noise, *lines = unflagged(acquisitions)
    first, last = 7 | 13, 8 | 14  # numbers of flags, or-ed as if they were masks
    return header, [noise, changed(lines[0], flags=first), *lines[1:-1], changed(lines[-1], flags=last)]


def maps_of_jemris(header, acquisitions):
    flags, n = mask(SURFACE_COIL), 400
    one = ismrmrd.Acquisition.from_array(
        np.ones((4, n), np.complex64), np.zeros((n, 3), np.float32), sample_time_us=1.0
    )
    return header, [acquisitions[0], *[changed(one, trajectory=one.traj, flags=flags)] * 4, *acquisitions[1:]]


def from_one(acq):
    for name in ("repetition", "kspace_encode_step_1", "slice", "contrast", "average"):
        setattr(acq.idx, name, getattr(acq.idx, name) + 1)


DESCRIPTION = b"<trajectoryDescription><identifier>HargreavesVDS2000</identifier></trajectoryDescription>"
NO_MATTER = {
    "siemens, old: both calibration flags": each(siemens_calibration_flags),
    "siemens: calibrationMode other": text(b">embedded<", b">other<"),
    "siemens: calibrationMode interleaved": text(b">embedded<", b">interleaved<"),
    "siemens, EPI_FLASHREF: encoding 1 with an empty z": siemens_second_encoding,
    "siemens: NaN in the sequence parameters": text(
        b"</ismrmrdHeader>", b"<sequenceParameters><TR>NaN</TR><TE></TE></sequenceParameters></ismrmrdHeader>"
    ),
    "siemens_to_ismrmrd#91: two descriptions": text(b"<encodingLimits>", DESCRIPTION * 2 + b"<encodingLimits>"),
    "siemens: more channels available than active": both(
        each(lambda acq: changed(acq, available_channels=34)), text(b"<receiverChannels>4<", b"<receiverChannels>34<")
    ),
    "siemens: feedback readouts in between": siemens_navigators,
    "siemens: only a dummy says LAST": siemens_last_is_a_dummy,
    "philips: H1 0, TR ETH, schemaLocation": philips_header,
    "philips_ismrmrd: limits are counts": limits(average=1, contrast=1, phase=1, repetition=1, slice=1),
    "philips_ismrmrd: positions of zeros": each(philips_zero_positions),
    "philips_ismrmrd: positions of NaN": each(philips_nan_positions),
    "ge: references read the same way": ge_references,
    "bruker_to_ismrmrd: numbers of flags as masks": bruker_flag_numbers,
    "MRIReco, Bruker: no counts": each(lambda acq: changed(acq, scan_counter=0, available_channels=8)),
    "MRIReco: Cartesian": text(b">cartesian<", b">Cartesian<"),
    "MRIReco#192: empty elements": text(b"</encodingLimits>", b"</encodingLimits><echoTrainLength/>"),
    "KomaMRI: counts in the limits' centre": limits(slice=0, repetition=0, average=0),
    "MaRCoS: counted from 1": both(each(from_one), text(b"<center>20</center>", b"<center>21</center>"),
                                   text(b"<maximum>39<", b"<maximum>40<")),
    "JEMRIS: coil maps among the readouts": maps_of_jemris,
    "flags for users": each(lambda acq: acq.set_flag(ismrmrd.ACQ_USER1)),
}  # fmt: skip


@pytest.mark.parametrize("alter", NO_MATTER.values(), ids=NO_MATTER)
def test_no_matter(alter):
    header, acquisitions = alter(SCAN.header(), SCAN.acquisitions())
    expected, found = prepared_of(SCAN), prepared(clean_header(header), acquisitions)
    torch.testing.assert_close(found.frame.kspace, expected.frame.kspace)
    assert torch.equal(found.frame.mask, expected.frame.mask)
    assert found.warnings == expected.warnings


def test_matrix_of_interpolation_is_zero_filled():
    """philips_to_ismrmrd#4: a matrix larger than what was measured, on the same field of view."""
    expected = prepared_of(SCAN)
    found = prepared_of(Scan(acceleration=2, overrides={"ex": 128, "ey": 64, "rx": 64, "ry": 64}))
    ny, nx = found.frame.shape
    inner = found.frame.mask[ny // 2 - 20 : ny // 2 + 20, nx // 2 - 48 : nx // 2 + 48]
    assert (ny, nx) == (64, 128)
    assert int(found.frame.mask.sum()) == int(inner.sum()) == 96 * len(SCAN.rows())
    assert found.warnings == expected.warnings


def test_echoes_read_in_turn_without_their_beginning():
    """gadgetron#1199: bipolar echoes whose short side is the other one."""
    header, acquisitions = limits(contrast=1)(SCAN.header(), SCAN.acquisitions())
    noise, *lines = acquisitions
    there, back = [], []
    for acq in lines:
        values = acq.data[:, 16:]
        centre = acq.center_sample - 16
        there.append(changed(acq, values, center_sample=centre))
        reverse = mask(ismrmrd.ACQ_IS_REVERSE)
        back.append(
            changed(acq, values[:, ::-1], center_sample=values.shape[1] - 1 - centre, flags=acq.flags | reverse)
        )
        back[-1].idx.contrast = 1
    first = prepared(header, [noise, *there])
    second = prepared(header, [noise, *back])
    assert second.key.contrast == 1
    assert torch.equal(first.frame.kspace, second.frame.kspace)
    assert torch.equal(first.frame.mask, second.frame.mask)


def test_interleaves_of_repetitions_with_positions():
    """ismrmrd_generate_cartesian_shepp_logan -a 2 -w 8 -k: other lines each time, nothing is counted."""
    header, _ = limits(repetition=1)(with_text(SCAN.header(), b">embedded<", b">interleaved<"), [])
    noise, *lines = Scan().acquisitions()
    n, sent = lines[0].number_of_samples, []
    for repetition in (0, 1):
        for row, acq in enumerate(lines):
            if row % 2 != repetition and not 16 <= row < 24:
                continue
            k = np.stack([(np.arange(n) - n // 2) / n, np.full(n, (row - 20) / 40)], 1).astype(np.float32)
            sent.append(changed(acq, trajectory=k, flags=0, scan_counter=0))
            sent[-1].idx.repetition = repetition
            if row >= 38:
                sent[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    _, _, frames = frames_of(header, [noise, *sent])
    assert [(frame.key.repetition, len(frame.rows), frame.on_grid, frame.warnings) for frame in frames] == [
        (0, 24, True, ()),
        (1, 24, True, ()),
    ]


def test_garbage_behind_a_spiral_is_discarded():
    """siemens_to_ismrmrd knows the positions of fewer samples than were read: discard_post, and no positions there."""
    header, acquisitions = radial_scan()
    header = with_text(header, b">radial<", b">spiral<")
    longer = [
        changed(
            acq,
            np.concatenate([acq.data, np.full((2, 20), 9e3)], 1),
            np.concatenate([acq.traj, np.full((20, 2), 1e20, np.float32)]),
            discard_post=20,
        )
        for acq in acquisitions
    ]
    expected, found = prepared(header, acquisitions), prepared(header, longer)
    assert torch.equal(found.frame.kspace, expected.frame.kspace)
    assert torch.equal(found.frame.trajectory, expected.frame.trajectory)
    assert found.warnings == expected.warnings


@pytest.mark.parametrize("name", ["Radial", "custom", "other"])
@pytest.mark.parametrize("n_columns", [2, 3])
def test_positions_under_any_name(name, n_columns):
    """MRIReco, KomaMRI; MRpro adds a column of zeros."""
    header, acquisitions = radial_scan()
    expected = prepared(header, acquisitions)
    sent = [
        changed(acq, trajectory=np.pad(acq.traj, ((0, 0), (0, n_columns - 2))), flags=0, scan_counter=0)
        for acq in acquisitions
    ]
    found = prepared(clean_header(with_text(header, b">radial<", b">%b<" % name.encode())), sent)
    assert torch.equal(found.frame.trajectory, expected.frame.trajectory)
    assert found.warnings == expected.warnings


# --- labelled ---------------------------------------------------------------------------------------------------------


def echoes_of_one_number(header, acquisitions):
    noise, *lines = acquisitions
    return header, [noise, *(acq for line in lines for acq in (line, changed(line)))]


def short_one_in_the_middle(header, acquisitions):
    return header, [*acquisitions[:9], changed(acquisitions[9], acquisitions[9].data[:, :16]), *acquisitions[9:]]


def half_are_surface_coil(header, acquisitions):
    for acq in acquisitions[2::2]:
        acq.set_flag(SURFACE_COIL)
    return header, acquisitions


LABELLED = {
    "twixtools#29: echoes of one number": (echoes_of_one_number, "REPEATED_LINES"),
    "siemens: a short readout that no flag tells apart": (short_one_in_the_middle, "MIXED_SHAPES"),
    "ismrmrd#246: every other line flagged": (half_are_surface_coil, "RAW_CORRECTION_NOT_APPLIED"),
    "raw2ismrmrd: one field of view in spite of oversampling": (
        text(b"<fieldOfView_mm><x>192.0<", b"<fieldOfView_mm><x>96.0<"),
        "READOUT_FOV_UNCLEAR",
    ),
}


@pytest.mark.parametrize(("alter", "label"), LABELLED.values(), ids=LABELLED)
def test_labelled(alter, label):
    header, acquisitions = alter(SCAN.header(), SCAN.acquisitions())
    assert label in prepared(header, acquisitions).warnings


def test_limits_one_too_large_off_the_grid_are_labelled():
    """SNAKE: the maximum is the number of shots."""
    header, acquisitions = radial_scan()
    header = with_text(header, b"<maximum>24<", b"<maximum>25<")
    for acq in acquisitions:
        acq.idx.kspace_encode_step_2, acq.center_sample = 1, 0
    assert "INCOMPLETE" in prepared(header, acquisitions).warnings


@pytest.mark.parametrize(
    "scan",
    [
        Scan(),
        Scan(oversampling=1),
        Scan(overrides={"rx": 96, "ry": 80}),  # interpolated
        Scan(overrides={"rx": 24, "ry": 20}),  # coarser along both axes
        Scan(overrides={"efx": 96.0, "rx": 96}),  # finer along the readout, and that is wanted
    ],
)
def test_no_label_where_pixels_agree(scan):
    assert "READOUT_FOV_UNCLEAR" not in prepared_of(scan).warnings


def test_slices_without_an_end_are_labelled():
    """KomaMRI flags the first readout of each slice, and begins to count again."""
    scan = Scan(n_slices=2)
    noise, *lines = unflagged(scan.acquisitions())
    for number, acq in enumerate(lines):
        acq.scan_counter = number % 40
        if number % 40 == 0:
            acq.set_flag(ismrmrd.ACQ_FIRST_IN_SLICE)
    _, _, frames = frames_of(scan.header(), [noise, *lines])
    assert [(frame.key.slice, frame.warnings) for frame in frames] == [(0, ("NO_LAST_FLAG",)), (1, ("NO_LAST_FLAG",))]


# --- refused ----------------------------------------------------------------------------------------------------------


def partitions_in_the_slice_counter(header, acquisitions):
    noise, *lines = acquisitions
    sent = [noise]
    for partition in range(4):
        for acq in lines:
            sent.append(changed(acq, flags=0))
            sent[-1].idx.slice = partition
    return header.replace(b"<y>40</y><z>1</z>", b"<y>40</y><z>4</z>"), sent


def signed_rows(acq):
    acq.idx.kspace_encode_step_1 = (acq.idx.kspace_encode_step_1 - 20) % 65536


def rows_from_five(header, acquisitions):
    """HarmonizedMRI/raw2ismrmrd: the centre counts from the smallest label, the labels do not."""
    for acq in acquisitions[1:]:
        acq.idx.kspace_encode_step_1 += 5
    row = b"<minimum>0</minimum><maximum>39</maximum><center>20<"
    return with_text(header, row, b"<minimum>5</minimum><maximum>44</maximum><center>20<"), acquisitions


def no_rows(acq):
    acq.idx.kspace_encode_step_1 = 0


def positions_of_nothing(acq):
    k = np.random.default_rng(0).standard_normal((acq.number_of_samples, 2)) * 1e-30
    return changed(acq, trajectory=k.astype(np.float32))


REFUSED = {
    "siemens: NaN as a limit": (text(b"<maximum>39<", b"<maximum>NaN<"), "E217 .*step_1.maximum is not a number"),
    "siemens, EPI_FLASHREF: z of encoding 1 is 0": (
        both(siemens_second_encoding, text(b"<z></z>", b"<z>0</z>")),
        "E214 encoding.1..encodedSpace.matrixSize.z is 0",
    ),
    "siemens, NX: no imageColumns": (
        text(b"<reconSpace><matrixSize><x>48<", b"<reconSpace><matrixSize><x><"),
        "E214 .*reconSpace.matrixSize.x",
    ),
    "philips: rows with a sign": (each(signed_rows), "E303 .*outside the 40 rows"),
    "positions that nobody filled in": (each(positions_of_nothing), "E322 "),
    "ge: no repetitions": (
        text(b"<repetition><minimum>0</minimum><maximum>0<", b"<repetition><minimum>0</minimum><maximum>-1<"),
        "E217 .*repetition is -1",
    ),
    "ge: number of channels empty": (text(b"<receiverChannels>4<", b"<receiverChannels><"), "E217 receiverChannels"),
    "ge, 3-D: partitions in the slice counter": (partitions_in_the_slice_counter, "E204 .*not measured at all 4"),
    "MRIReco: no reconSpace": (
        lambda header, acquisitions: (without(header, b"reconSpace"), acquisitions),
        "E201 .*without reconSpace",
    ),
    "MRIReco: no encodingLimits": (
        lambda header, acquisitions: (without(header, b"encodingLimits"), acquisitions),
        "E201 .*without encodingLimits",
    ),
    "KomaMRI: a sequence without its matrix": (
        text(b"<x>96</x><y>40</y>", b"<x>1</x><y>1</y>"),
        "E214 .*matrixSize.x is 1",
    ),
    "matrix as a fraction": (text(b"<x>96</x>", b"<x>96.0</x>"), "E214 .*matrixSize.x is not a number"),
    "pulseq: labels that begin above 0": (rows_from_five, "E303 .*outside the 40 rows"),
    "pulseq: no labels": (each(no_rows), "E304 "),
}


@pytest.mark.parametrize(("alter", "error"), REFUSED.values(), ids=REFUSED)
def test_refused(alter, error):
    header, acquisitions = alter(SCAN.header(), SCAN.acquisitions())
    with pytest.raises((DataError, HeaderError), match=error):
        prepared(header, acquisitions)


@pytest.mark.parametrize("unit", ["auto", "normalized_by_largest"])
def test_positions_divided_by_the_largest_of_both_axes(unit):
    """KomaMRI, where pixels are not square: both axes over one number."""
    header, acquisitions = radial_scan()
    header = re.sub(rb"(fieldOfView_mm><x>)[0-9.]+", rb"\g<1>40", header)
    expected = prepared(header, acquisitions)
    sent = [changed(acq, trajectory=acq.traj * np.array([1, 0.5], np.float32)) for acq in acquisitions]
    found = prepared(header, sent, **{"trajectory.unit": unit})
    assert found.trajectory == "radial (kxky, unit normalized_by_largest)"
    assert expected.trajectory == "radial (kxky, unit normalized)"  # a circle of cycles per pixel stays one
    assert torch.allclose(found.frame.trajectory, expected.frame.trajectory)


@pytest.mark.parametrize("which", [slice(1, None), slice(1, None, 2), slice(1, 3)])
def test_readouts_that_want_a_correction_are_readouts_all_the_same(which):
    """ismrmrd#246: siemens_to_ismrmrd marks those that want a factor per channel as surface coil correction."""
    expected = prepared_of(SCAN)
    acquisitions = SCAN.acquisitions()
    for acq in acquisitions[which]:
        acq.set_flag(SURFACE_COIL)
    found = prepared(SCAN.header(), acquisitions)
    assert torch.equal(found.frame.kspace, expected.frame.kspace)
    assert set(found.warnings) == {*expected.warnings, "RAW_CORRECTION_NOT_APPLIED"}


def test_interleaved_slices_with_a_flag_each_at_the_end_of_the_repetition():
    """bruker_to_ismrmrd: FIRST and LAST flags of slice and repetition at the first and last line of every slice."""
    scan = Scan(n_slices=3, interleave=True, acceleration=2)
    noise, *lines = unflagged(scan.acquisitions())
    for number in range(3):
        own = [acq for acq in lines if acq.idx.slice == number]
        for flag in (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION):
            own[-1].set_flag(flag)
    lines[-1].set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    _, _, frames = frames_of(scan.header(), [noise, *lines])
    assert [(frame.key.slice, len(frame.data)) for frame in frames] == [(n, len(lines) // 3) for n in range(3)]
    assert not any(frame.warnings for frame in frames)
