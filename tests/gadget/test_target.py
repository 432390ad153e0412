import contextlib
import gc
import logging
import socket
import threading
from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.fake_core import core, load_prior, reconstruct
from helpers.frames import prepared_of, with_channels
from helpers.mrd_factory import CANARY, Scan, radial_scan
from helpers.peer import configuration, item_message, run_in_process, stream

import gadget
import gadget.target
import pogmdm_core
from gadget.errors import ComputeError, ConfigError, DataError, HeaderError, TransportError
from gadget.scan.frames import AcquiredFrame
from gadget.settings.load import load
from pogmdm_core import KSpaceFrame, SamplerStatus


@pytest.fixture
def run(monkeypatch):
    """Play a scan to the gadget with another reconstruction behind the door."""

    def play(scan=None, items=None, config=b"", header=None, parts=None, hang_up=False, **replaced):
        monkeypatch.setattr(gadget.target, "resolve_core", lambda: core(**replaced))
        scan = scan or Scan()
        if parts is None:
            items = scan.acquisitions() if items is None else items
            parts = stream(header or scan.header(), items, config)
        return run_in_process(parts, gadget.pogmdm_recon, hang_up=hang_up)

    yield play
    logging.getLogger("pogmdm").setLevel(logging.NOTSET)


def failed(outcome, kind, text):
    """The client got one ERROR with the coded line, then CLOSE, and the launcher gets the exception."""
    assert isinstance(outcome.raised, kind), outcome.raised
    assert text in str(outcome.raised)
    assert outcome.errors == [str(outcome.raised)]
    assert outcome.closed
    assert outcome.order[-2:] == [8, 4]
    assert "\n" not in outcome.errors[0]
    assert CANARY not in outcome.errors[0]


def test_a_scan_gives_image_and_std_per_slice(run):
    outcome = run(Scan(n_slices=3, acceleration=2))
    assert outcome.raised is None
    assert outcome.errors == []
    assert outcome.closed
    assert [(i.image_series_index, i.slice, i.image_index) for i in outcome.images] == [
        (1, 0, 1), (10, 0, 1), (1, 1, 2), (10, 1, 2), (1, 2, 3), (10, 2, 3)
    ]  # fmt: skip
    assert all(i.data.shape == (1, 1, 40, 48) and np.isfinite(i.data).all() for i in outcome.images)


def test_images_come_before_the_scan_ends(run):
    """The first slice is sent while the second is still being acquired."""
    scan = Scan(n_slices=2)
    parts = stream(scan.header(), scan.acquisitions()[:-1], close=False)
    outcome = run(parts=parts, hang_up=True)
    assert len(outcome.images) == 2
    failed(outcome, TransportError, "E401")


@pytest.mark.fault("F44")
def test_images_are_linear_in_the_data(run):
    one, seven = run(Scan()), run(Scan(scale=7.0))
    for a, b in zip(one.images, seven.images, strict=True):
        np.testing.assert_allclose(b.data, 7 * a.data, rtol=1e-4, atol=1e-4)


def test_image_is_the_object(run):
    scan = Scan(noise_std=1e-4)
    image = run(scan).series(1)[0].data[0, 0]
    start = scan.nx_encoded // 2 - scan.nx // 2
    truth = np.sqrt((np.abs(scan.coils() * scan.image()) ** 2).sum(0))[:, start : start + scan.nx]
    assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.98
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (row > scan.ny // 2, column < scan.nx // 2) == (True, True)  # the spot, not its mirror image


def test_no_configuration_and_no_optional_parts(run):
    scan = Scan(measurement=False, limits=False, noise_scan=False, last_flags=False, directions=False)
    outcome = run(scan)
    assert outcome.raised is None
    assert len(outcome.images) == 2
    assert "NOT_WHITENED" in outcome.images[0].meta["POGMDM_Warnings"]


def test_settings_arrive(run):
    outcome = run(
        config=configuration(preset="fast", sampler__n_samples=2, output__maps="mean", output__series_base=50)
    )
    assert [i.image_series_index for i in outcome.images] == [52]
    assert outcome.images[0].meta["POGMDM_NSamples"] == "2"
    assert outcome.images[0].meta["POGMDM_NSteps"] == "20"


def test_images_in_the_stream_pass_through(run):
    image = ismrmrd.Image.from_array(np.ones((4, 5), np.float32), transpose=False, image_series_index=77)
    outcome = run(items=[image, *Scan().acquisitions()])
    assert item_message(outcome.images[0]) == item_message(image)
    assert len(outcome.images) == 3
    assert run(items=[image]).raised is None  # a chain of images alone is no failure


def test_waveforms_go_on_as_the_settings_say(run):
    waveform = ismrmrd.Waveform.from_array(np.arange(100, dtype=np.uint32).reshape(2, 50))
    scan = Scan()
    items = [waveform, *scan.acquisitions()]
    assert run(parts=stream(scan.header(), items)).waveforms == []
    outcome = run(parts=stream(scan.header(), items, configuration(output__waveforms="pass")))
    assert [item_message(w) for w in outcome.waveforms] == [item_message(waveform)]
    assert len(outcome.images) == 2
    # a scan of which only waveforms come back is no success
    alone = stream(scan.header(), [waveform], configuration(output__waveforms="pass"))
    failed(run(parts=alone), TransportError, "E405")


@pytest.mark.fault("F36")
def test_noise_only_scan_is_a_success_without_images(run, caplog):
    caplog.set_level(logging.INFO)
    outcome = run(items=Scan().acquisitions()[:1])
    assert (outcome.raised, outcome.images, outcome.errors) == (None, [], [])
    assert "0 frame(s); readouts: 1 noise" in caplog.text


def navigators(acquisitions):
    for acq in acquisitions:
        acq.set_flag(ismrmrd.ACQ_IS_NAVIGATION_DATA)
    return acquisitions


@pytest.mark.fault("F07")
@pytest.mark.parametrize("items", [[], navigators(Scan(noise_scan=False).acquisitions())])
def test_no_image_is_no_success(run, items):
    failed(
        run(items=items),
        TransportError,
        f"E405 no acquisitions: the scan ended with no imaging readouts among {len(items)}",
    )


@pytest.mark.fault("F20")
def test_header_without_encoding(run):
    raw = Scan().header()
    end = raw.index(b"</encoding>") + len(b"</encoding>")
    failed(run(header=raw[: raw.index(b"<encoding>")] + raw[end:]), HeaderError, "E202")


def test_three_dimensional_scan(run):
    """Partitions of which only one comes are those of a 2-D scan, unless several slices are wanted."""
    header = Scan(overrides={"ez": 8}).header()
    assert len(run(header=header).images) == 2
    before, after = header.split(b"<reconSpace>")
    failed(run(header=before + b"<reconSpace>" + after.replace(b"<z>1</z>", b"<z>8</z>", 1)), DataError, "E204")


def test_wrong_settings(run):
    failed(run(config=configuration(sampler__n_sampels=2)), ConfigError, "did you mean 'sampler.n_samples'")


def test_missing_weights(run):
    failed(run(config=configuration(prior="/nowhere/w.safetensors")), ConfigError, "E120")


@pytest.mark.fault("F42")
def test_nan_samples(run):
    acquisitions = Scan().acquisitions()
    for acq in acquisitions[1:5]:
        acq.data[:, 3] = np.nan
    failed(run(items=acquisitions), DataError, "E330 slice 0: 4 of 40")


@pytest.mark.fault("F02")
def test_truncated_stream(run):
    parts = stream(Scan().header(), Scan().acquisitions(), close=False)
    parts[-1] = parts[-1][:-7]
    failed(run(parts=parts, hang_up=True), TransportError, "E402")


@pytest.mark.fault("F16")
@pytest.mark.fault("F64")
def test_unexpected_errors_tell_their_type_only(run, caplog):
    def broken(*_args, **_kwargs):
        raise KeyError(CANARY)

    caplog.set_level(logging.DEBUG, "pogmdm")
    outcome = run(reconstruct=broken, config=configuration(log="debug"))
    failed(outcome, ComputeError, "E599 unexpected KeyError")
    assert "KeyError, where it happened" in caplog.text
    assert outcome.raised.__cause__ is None
    assert CANARY not in caplog.text


def test_missing_module_is_named(run):
    def broken(*_args):
        raise ImportError("x", name="torch")

    failed(run(load_prior=broken), ComputeError, "E598 the module torch cannot be imported")


def diverged(frame, *args, **kwargs):
    result = reconstruct(frame, *args, **kwargs)
    object.__setattr__(result, "status", SamplerStatus.DIVERGED)
    object.__setattr__(result, "image", torch.full(frame.shape, float("nan")))
    return result


def out_of_memory(*_args, **_kwargs):
    raise RuntimeError("CUDA out of memory")


@pytest.mark.parametrize(("fault", "text"), [(diverged, "E510"), (out_of_memory, "E599 unexpected RuntimeError")])
@pytest.mark.fault("F45")
def test_failed_computation_is_an_error_or_a_labelled_fallback(run, fault, text, caplog):
    failed(run(reconstruct=fault), ComputeError, text)
    outcome = run(reconstruct=fault, config=configuration(on_failure="fallback"))
    assert outcome.raised is None
    assert [i.image_series_index for i in outcome.images] == [90]
    assert outcome.images[0].meta["POGMDM_Status"] == "fallback"
    assert "sending the fallback image" in caplog.text


def flat(frame):
    return torch.ones(frame.shape)


@pytest.mark.fault("F45")
def test_a_joint_start_that_fails_has_a_fallback_too(run, caplog):
    """Off the grid it is tried before the frame is reconstructed."""
    header, acquisitions = radial_scan()
    parts = stream(header, acquisitions, configuration(on_failure="fallback"))
    outcome = run(parts=parts, reconstruct=out_of_memory, zero_filled=flat)
    assert outcome.raised is None
    assert [i.image_series_index for i in outcome.images] == [90]
    assert caplog.text.count("sending the fallback image") == 1


@pytest.mark.fault("F24")
def test_without_positions_there_is_no_fallback(run):
    header, acquisitions = radial_scan()
    bare = []
    for acq in acquisitions:
        head = acq.getHead()
        head.trajectory_dimensions = 0
        bare.append(ismrmrd.Acquisition(head, data=acq.data))
    parts = stream(header, bare, configuration(on_failure="fallback"))
    outcome = run(parts=parts, zero_filled=flat)
    assert outcome.images == []
    failed(outcome, DataError, "E320")


@pytest.mark.fault("F26")
def test_how_a_trajectory_was_read_is_told(run, caplog):
    caplog.set_level(logging.INFO)
    header, acquisitions = radial_scan()

    def gridded(frame, *args, **kwargs):
        shape = (frame.n_coils, *frame.shape)
        on_grid = KSpaceFrame.cartesian(torch.ones(shape, dtype=torch.complex64), torch.ones(frame.shape, dtype=bool))
        return reconstruct(on_grid, *args, **kwargs)

    outcome = run(parts=stream(header, acquisitions), reconstruct=gridded)
    assert outcome.images[0].meta["POGMDM_Trajectory"] == "radial (kxky, unit normalized)"
    assert "trajectory: kxky, unit normalized, 2000 samples in 25 readouts, 0 dropped" in caplog.text


@pytest.mark.fault("F30", "F31")
def test_what_was_dropped_or_never_came_is_told_in_the_meta(run, caplog):
    acquisitions = Scan().acquisitions()[:30]
    head = acquisitions[4].getHead()
    head.number_of_samples = 10
    acquisitions[4] = ismrmrd.Acquisition(head, data=np.ones((4, 10), np.complex64))
    outcome = run(items=acquisitions)
    for image in outcome.images:
        assert {"INCOMPLETE", "MIXED_SHAPES"} <= set(image.meta["POGMDM_Warnings"].split())
    assert "dropped readouts: 1 of another shape\n" in caplog.text


@pytest.mark.fault("F32")
@pytest.mark.parametrize(("numbered", "whitened"), [((0, 2, 3), "True"), ((0, 2, 5), "False")])
def test_a_noise_scan_of_other_channels_is_matched_or_told(run, numbered, whitened, caplog):
    """Four channels of noise, three of data."""
    scan = Scan()
    noise, *lines = scan.acquisitions()
    noise = with_channels(noise, range(4))
    lines = [with_channels(acq, (0, 2, 3), numbered) for acq in lines]
    header = scan.header().replace(b"<receiverChannels>4<", b"<receiverChannels>3<")
    outcome = run(header=header, items=[noise, *lines])
    assert outcome.raised is None
    assert outcome.images[0].meta["POGMDM_NoiseWhitened"] == whitened
    assert ("NOT_WHITENED" in outcome.images[0].meta["POGMDM_Warnings"]) == (whitened == "False")
    assert ("not whitened" in caplog.text) == (whitened == "False")


def test_wrong_settings_have_no_fallback(run):
    def refuse(*_, **__):
        raise ConfigError(127, "too high.")

    failed(run(reconstruct=refuse, config=configuration(on_failure="fallback")), ConfigError, "E127")


def test_bad_weights_have_no_fallback(run):
    failed(run(config=configuration(prior="no", on_failure="fallback")), ConfigError, "E120")


def test_frames_before_a_fault_are_sent(run):
    acquisitions = Scan(n_slices=2).acquisitions()
    for acq in acquisitions[60:]:
        acq.data[:] = np.nan
    outcome = run(Scan(n_slices=2), items=acquisitions)
    assert [i.slice for i in outcome.images] == [0, 0]
    failed(outcome, DataError, "E330 slice 1")


@pytest.mark.fault("F64")
def test_logs_hold_no_patient_data(run, caplog):
    caplog.set_level(logging.DEBUG)
    run(config=configuration(log="debug"))
    assert "scan: cartesian 96x40 -> 48x40" in caplog.text
    assert CANARY not in caplog.text


def test_prior_is_loaded_by_its_setting(run):
    names = []

    def loader(name="default", device="cpu"):
        names.append(name)
        return load_prior()

    run(load_prior=loader, config=configuration(prior="other"))
    assert names == ["other"]


@pytest.mark.fault("F01")
def test_complete_frames_are_sent_before_a_broken_end(run):
    scan = Scan(n_slices=2, interleave=True, last_flags=False)
    acquisitions = scan.acquisitions()
    outcome = run(parts=stream(scan.header(), acquisitions[:-1], close=False), hang_up=True)
    assert [i.slice for i in outcome.images] == [0, 0]  # slice 1 lacks a line
    assert "NO_LAST_FLAG" in outcome.images[0].meta["POGMDM_Warnings"]
    failed(outcome, TransportError, "E401")


@pytest.mark.fault("F15")
def test_a_client_that_stops_reading_ends_the_sampling(monkeypatch):
    """Images of 12 MB fit no socket buffer; the second frame must not be reconstructed for nobody."""
    n_frames = []

    def count(*args, **kwargs):
        n_frames.append(1)
        return reconstruct(*args, **kwargs)

    monkeypatch.setattr(gadget.target, "resolve_core", lambda: core(reconstruct=count))
    scan = Scan(nx=512, ny=512, n_coils=1, oversampling=1, n_slices=3, noise_scan=False)
    config = configuration(limits__idle_timeout_s=0.5, output__maps="samples", sampler__n_samples=12)
    parts = stream(scan.header(), scan.acquisitions(), config)
    ours, theirs = socket.socketpair()
    raised = []

    def child():
        from gadgetron.external.connection import Connection

        try:
            with Connection(theirs) as connection:
                gadget.pogmdm_recon(connection)
        except TransportError as error:
            raised.append(error)

    def feed():
        with contextlib.suppress(OSError):
            for part in parts:
                ours.sendall(part)

    threads = [threading.Thread(target=child), threading.Thread(target=feed)]
    before = threading.active_count()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    ours.close()
    assert [error.code for error in raised] == [407]
    assert len(n_frames) == 1
    assert threading.active_count() == before


def test_samples_are_let_go_once_they_are_prepared(run):
    """While a frame is reconstructed, its readouts are in memory once: as the k-space of the prepared frame."""
    waiting = []

    def watching(frame, prior, settings, **more):
        gc.collect()
        waiting.append(sum(type(thing) is AcquiredFrame for thing in gc.get_objects()))
        return reconstruct(frame, prior, settings, **more)

    # one flag completes both slices: the second waits while the first is reconstructed
    config = configuration(trigger="measurement")
    assert len(run(Scan(n_slices=2), config=config, reconstruct=watching).images) == 4
    assert waiting == [1, 0]


def test_the_fallback_shows_the_field_of_view_that_was_found(run):
    """Image and coils fit with a larger one only; then the reconstruction fails."""

    def failing(frame, prior, settings, **more):
        if settings.map.steps:
            raise MemoryError
        fits = frame.shape != (40, 40)
        return replace(any_result, data_residual=1.0 if fits else 4.0, warnings=() if fits else ("MODEL_ERROR",))

    any_result = reconstruct(prepared_of(Scan()).frame, None, load())
    header, spokes = radial_scan((40, 40))
    parts = stream(header, spokes, configuration(on_failure="fallback"))
    outcome = run(parts=parts, reconstruct=failing, zero_filled=pogmdm_core.zero_filled)
    (image,) = outcome.images
    assert {"LARGER_FOV", "FALLBACK"} <= set(image.meta["POGMDM_Warnings"].split())


def told_early(frame, prior, settings, early=None, **more):
    """A reconstruction whose image is final before its standard deviation is known."""
    result = reconstruct(frame, prior, settings, **more)
    if early is not None:
        early(replace(result, std=None, uncertainty_method="off", n_samples=0))
        early(replace(result, std=None, image=2 * result.image))  # tried again after running out of memory
    return replace(result, warnings=("LATE",))


def test_the_image_can_be_sent_before_its_standard_deviation(run):
    together = run(Scan(n_slices=2), reconstruct=told_early)
    first = run(Scan(n_slices=2), reconstruct=told_early, config=configuration(output__order="image_first"))
    assert [i.image_series_index for i in first.images] == [1, 10, 1, 10]
    for a, b in zip(first.images, together.images, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.image_index == b.image_index
    assert [i.meta["POGMDM_Warnings"].endswith("LATE") for i in first.images] == [False, True, False, True]
    assert all(i.meta["POGMDM_Warnings"].endswith("LATE") for i in together.images)


def test_an_image_sent_first_is_kept_when_the_rest_fails(run):
    def failing(frame, prior, settings, **more):
        told_early(frame, prior, settings, **more)
        raise ComputeError(510, "the sampler diverged")

    outcome = run(reconstruct=failing, config=configuration(output__order="image_first"))
    assert [i.image_series_index for i in outcome.images] == [1]
    assert "E510" in outcome.errors[0]


@pytest.mark.parametrize("maps, estimate", [("std", "auto"), ("image,std,mean", "mean")])
def test_nothing_is_sent_first_that_is_not_final(run, maps, estimate):
    def judged(frame, prior, settings, early=None, **more):
        assert early is None
        return reconstruct(frame, prior, settings, **more)

    config = configuration(output__order="image_first", output__maps=maps, output__estimate=estimate)
    outcome = run(reconstruct=judged, config=config)
    assert outcome.raised is None
    assert len(outcome.images) == len(maps.split(","))
