"""ReconData messages, written by PyPI gadgetron's own structures, never from the sizes that our reader assumes."""

import ctypes
import gc
import logging
import struct
from types import SimpleNamespace

import gadgetron.types.recon_data as wire
import ismrmrd
import numpy as np
import pytest
from gadgetron.types.recon_data import SamplingDescription
from helpers.fake_core import core, reconstruct
from helpers.mrd_factory import Scan
from helpers.peer import configuration, item_message, run_in_process, stream

import gadget
import gadget.target
from gadget.errors import DataError, HeaderError, TransportError
from gadget.scan.frames import AcquiredFrame
from gadget.stream.recon_data import ReconBit


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(gadget.target, "resolve_core", lambda: core())
    yield lambda parts, **more: run_in_process(parts, gadget.pogmdm_recon, **more)
    logging.getLogger("pogmdm").setLevel(logging.NOTSET)


def buffer_of(data, heads, head_shape, trajectory=None):
    """PyPI gadgetron's own buffer; `heads` in Fortran order of `head_shape`."""
    headers = np.empty(len(heads), dtype=object)
    for number, head in enumerate(heads):  # all at once numpy would look into the structures
        headers[number] = head
    description = SamplingDescription(encoded_matrix=(data.shape[0], data.shape[1], data.shape[2]))
    return wire.ReconBuffer(data, trajectory, None, headers.reshape(head_shape, order="F"), description)


def message_of(*bits):
    """The message as PyPI gadgetron writes it."""
    written = bytearray()
    wire.write_recon_data(SimpleNamespace(write=lambda part: written.extend(bytes(part))), wire.ReconData(list(bits)))
    return bytes(written)


def buffers(scan, lines, n_slices=1, cropped=False):
    """Buffer `(RO, E1, 1, CHA, 1, 1, SLC)` of some acquisitions; `cropped` leaves out the empty lines of the data."""
    shape = (scan.nx_encoded, scan.ny, 1, scan.n_coils, 1, 1, n_slices)
    data = np.zeros(shape, np.complex64, order="F")
    heads = [ismrmrd.AcquisitionHeader() for _ in range(scan.ny * n_slices)]
    rows = sorted({acq.idx.kspace_encode_step_1 for acq in lines})
    for acq in lines:
        row, slc = acq.idx.kspace_encode_step_1, acq.idx.slice
        data[:, row, 0, :, 0, 0, slc] = acq.data.T
        heads[row + scan.ny * slc] = acq.getHead()
    if cropped:
        data = np.asfortranarray(data[:, rows])
    return buffer_of(data, heads, (scan.ny, 1, 1, 1, n_slices))


def message(scan, cropped_ref=True, noise=False):
    """A scan as BucketToBuffer and ReferencePrep hand it on: pure calibration lines are in the reference only."""
    lines = [a for a in scan.acquisitions() if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    pure = [a for a in lines if a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)]
    both = [a for a in lines if a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)]
    imaging = [a for a in lines if a not in pure]
    ref = buffers(scan, pure + both, scan.n_slices, cropped_ref) if pure else None
    return message_of(wire.ReconBit(buffers(scan, imaging, scan.n_slices), ref))


def same_images(a, b):
    assert len(a.images) == len(b.images) > 0
    for one, two in zip(a.images, b.images, strict=True):
        np.testing.assert_allclose(one.data, two.data, rtol=1e-5, atol=1e-6)
        assert bytes(one.getHead()) == bytes(two.getHead())


@pytest.mark.parametrize("cropped_ref", [True, False])
@pytest.mark.parametrize("acceleration", [1, 3])
def test_buffers_give_the_images_of_the_acquisitions(run, acceleration, cropped_ref):
    """Calibration lines come out of the reference, whether it was cropped to them or not."""
    scan = Scan(acceleration=acceleration, n_slices=2, noise_scan=False)
    expected = run(stream(scan.header(), scan.acquisitions()))
    found = run(stream(scan.header(), [message(scan, cropped_ref)]))
    assert found.raised is None
    same_images(found, expected)


def test_a_separate_reference_is_no_part_of_the_image(run):
    scan = Scan(acceleration=3, noise_scan=False)
    header = scan.header().replace(b"embedded", b"separate")
    found = run(stream(header, [message(scan)]))
    same_images(found, run(stream(header, scan.acquisitions())))


def test_the_number_of_samples_is_that_of_the_array(run):
    """The sampling description says otherwise on some chains, and headers keep what they said before a crop."""
    scan = Scan(noise_scan=False)
    plain = run(stream(scan.header(), [message(scan)]))
    raw = message(scan)
    size = ctypes.sizeof(SamplingDescription)
    lying = raw[: -1 - size] + b"\xff" * size + raw[-1:]  # before the flag that says no reference follows
    same_images(run(stream(scan.header(), [lying])), plain)


def test_compressed_channels_need_not_be_those_of_the_header(run):
    scan = Scan(noise_scan=False)
    header = scan.header().replace(b"<receiverChannels>4", b"<receiverChannels>32")
    assert len(run(stream(header, [message(scan)])).images) == 2


def test_images_beside_buffers_pass_unchanged(run):
    image = ismrmrd.Image.from_array(np.ones((4, 5), np.float32), transpose=False, image_series_index=77)
    scan = Scan(noise_scan=False)
    outcome = run(stream(scan.header(), [image, message(scan)]))
    assert item_message(outcome.images[0]) == item_message(image)
    assert len(outcome.images) == 3


def test_whitening_upstream_is_told_by_the_setting(run):
    config = configuration(noise__whiten="upstream")

    def meta(scan):
        return run(stream(scan.header(), [message(scan)], config)).images[0].meta

    # variance 2 x .793 per complex sample is what that gadget leaves
    told = meta(Scan(noise_scan=False, scale=1.26 / 0.01))
    assert told["POGMDM_NoiseWhitened"] == "upstream"
    assert "NOT_WHITENED" not in told["POGMDM_Warnings"]
    # noise of a hundredth: nobody has whitened
    told = meta(Scan(noise_scan=False))
    assert told["POGMDM_NoiseWhitened"] == "False"
    assert "NOT_WHITENED" in told["POGMDM_Warnings"]


def failed(outcome, kind, text):
    assert isinstance(outcome.raised, kind), outcome.raised
    assert text in str(outcome.raised)
    assert outcome.errors == [str(outcome.raised)]


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (struct.pack("<Q", 2**60), TransportError, "E404 a ReconData message announces"),
        (struct.pack("<9Q", 1, 7, 2**20, 2**20, 1, 2**10, 1, 1, 1), DataError, "E302 the size of a ReconData message"),
        (struct.pack("<2Q", 1, 2**50), TransportError, "E404 an array of a ReconData message has"),
        (struct.pack("<2Q", 1, 3), TransportError, "E404 an array of a ReconData message has 3 axes, expected 7"),
        (struct.pack("<9Q", 1, 7, *[1] * 7) + bytes(8) + b"\7", TransportError, "E404 a flag of a ReconData message"),
        (struct.pack("<9Q", 1, 7, *[1] * 7) + bytes(3), TransportError, "E402"),
    ],
    ids=["bits", "34 GB", "rank 2^50", "rank 3", "flag", "short"],
)
@pytest.mark.fault("F12", "F02")
def test_lies_about_sizes_are_refused_before_memory_is_taken(run, body, kind, text):
    parts = stream(Scan().header(), [struct.pack("<H", 1023) + body], close=False)
    failed(run(parts, hang_up=True), kind, text)


def test_what_is_not_two_dimensional_on_a_grid_is_refused(run):
    head = ismrmrd.AcquisitionHeader()
    head.number_of_samples = 8
    for shape, trajectory, kind, text in [
        ((8, 1, 2, 1, 1, 1, 1), None, HeaderError, "E204 ReconData with 2 partitions"),
        ((8, 1, 1, 1, 1, 1, 1), np.zeros((2, 8, 1, 1, 1, 1, 1), np.float32), DataError, "E320 ReconData with a traj"),
        ((8, 2, 1, 1, 1, 1, 1), None, DataError, "E305 a ReconData buffer has 2 lines"),
        ((8, 1, 1, 1, 1, 1, 2), None, DataError, "E305 ReconData arrays"),
    ]:
        n_heads = shape[2]
        made = buffer_of(np.ones(shape, np.complex64), [head] * n_heads, (1, shape[2], 1, 1, 1), trajectory)
        failed(run(stream(Scan().header(), [message_of(wire.ReconBit(made))])), kind, text)


def test_a_buffer_without_sampled_lines_is_no_success(run):
    made = buffer_of(np.zeros((8, 2, 1, 1, 1, 1, 1), np.complex64), [ismrmrd.AcquisitionHeader()] * 2, (2, 1, 1, 1, 1))
    failed(run(stream(Scan().header(), [message_of(wire.ReconBit(made))])), TransportError, "E405")


@pytest.mark.fault("F76")
@pytest.mark.parametrize(("n_counter", "s_counter"), [("contrast", "average"), ("contrast", "set"), ("phase", "set")])
def test_several_images_in_one_message(run, n_counter, s_counter):
    """N, S and slices of one buffer as the acquisitions would have them: averages are parts of an image, others not."""
    scan = Scan(acceleration=1, n_slices=2, noise_scan=False)
    lines, both = scan.acquisitions(), []
    one = buffers(scan, lines, 2)
    shape, n_heads = (scan.nx_encoded, scan.ny, 1, scan.n_coils, 2, 3, 2), scan.ny
    data, headers = np.zeros(shape, np.complex64, order="F"), np.empty((n_heads, 1, 2, 3, 2), dtype=object)
    for n, s, slc, row in np.ndindex(2, 3, 2, n_heads):
        data[:, row, 0, :, n, s, slc] = (1 + n + 10 * s) * one.data[:, row, 0, :, 0, 0, slc]
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(bytes(one.headers[row, 0, 0, 0, slc]))
        setattr(head.idx, n_counter, n)
        setattr(head.idx, s_counter, s)
        headers[row, 0, n, s, slc] = head
        both.append(ismrmrd.Acquisition(head, data=np.ascontiguousarray(data[:, row, 0, :, n, s, slc].T)))
        both[-1].clear_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        both[-1].clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
        both[-1].clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    buffer = wire.ReconBuffer(data, None, None, headers, SamplingDescription())

    def by_place(outcome):
        return {(i.image_series_index, i.slice, i.contrast, i.phase, i.set): i.data for i in outcome.images}

    found = by_place(run(stream(scan.header(), [message_of(wire.ReconBit(buffer))])))
    expected = by_place(run(stream(scan.header(), both)))
    assert len(found) == 2 * 2 * 2 * (1 if s_counter == "average" else 3)
    assert found.keys() == expected.keys()
    for place in found:
        np.testing.assert_allclose(found[place], expected[place], rtol=1e-4, atol=1e-5)


def test_repetitions_come_in_messages_of_their_own(run):
    scan = Scan(n_repetitions=2, noise_scan=False)
    lines = scan.acquisitions()
    parts = [message_of(wire.ReconBit(buffers(scan, [a for a in lines if a.idx.repetition == r]))) for r in range(2)]
    same_images(run(stream(scan.header(), parts)), run(stream(scan.header(), lines)))


def test_buffers_are_let_go_once_their_frames_are_made(monkeypatch):
    """A message is a whole scan: it is not kept beside the frames that were made of it."""
    alive = []

    def watching(*args, **more):
        gc.collect()
        alive.append(sum(type(thing) in (ReconBit, AcquiredFrame) for thing in gc.get_objects()))
        return reconstruct(*args, **more)

    monkeypatch.setattr(gadget.target, "resolve_core", lambda: core(reconstruct=watching))
    scan = Scan(n_slices=2, noise_scan=False)
    assert len(run_in_process(stream(scan.header(), [message(scan)]), gadget.pogmdm_recon).images) == 4
    assert alive == [1, 0]  # the frame of the second slice, then nothing


def test_a_slice_that_is_broken_does_not_lose_the_one_before(run):
    scan = Scan(n_slices=2, noise_scan=False)
    lines = scan.acquisitions()
    for acq in lines:
        if acq.idx.slice == 1:
            acq.data[:] = np.nan
    outcome = run(stream(scan.header(), [message_of(wire.ReconBit(buffers(scan, lines, 2), None))]))
    assert [image.slice for image in outcome.images] == [0, 0]
    failed(outcome, DataError, "E330 slice 1")


@pytest.mark.parametrize("problem", ["E204", "E320", "E305"])
def test_a_bit_that_is_refused_loses_neither_those_beside_it_nor_later_messages(run, problem):
    scan = Scan(n_repetitions=3, noise_scan=False)
    lines = scan.acquisitions()
    one, two, three = (
        wire.ReconBit(buffers(scan, [a for a in lines if a.idx.repetition == r]), None) for r in range(3)
    )
    head = lines[0].getHead()
    bad = {
        "E204": buffer_of(np.ones((8, 1, 2, 1, 1, 1, 1), np.complex64), [head] * 2, (1, 2, 1, 1, 1)),
        "E320": buffer_of(
            np.ones((8, 1, 1, 1, 1, 1, 1), np.complex64),
            [head],
            (1, 1, 1, 1, 1),
            np.zeros((2, 8, 1, 1, 1, 1, 1), np.float32),
        ),
        "E305": buffer_of(np.ones((8, 2, 1, 1, 1, 1, 1), np.complex64), [head], (1, 1, 1, 1, 1)),
    }[problem]
    outcome = run(stream(scan.header(), [message_of(one, wire.ReconBit(bad, None), two), message_of(three)]))
    assert [image.repetition for image in outcome.images] == [0, 0, 1, 1, 2, 2]
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith(problem)
    assert "1 frame(s) lost" in outcome.errors[0]
