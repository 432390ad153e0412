"""The gadget as Gadgetron launches it: a child process, TCP, the server's part played by a test peer."""

import ismrmrd
import numpy as np
import pytest
from helpers.mrd_factory import CANARY, Scan, radial_scan
from helpers.peer import configuration, run_child, run_in_process, stream

import gadget

pytestmark = pytest.mark.e2e

SCAN = Scan(acceleration=2)
SMALL = {"sampler__n_samples": 2, "sampler__n_steps": 4, "map__steps": 5, "device": "cpu"}


def failed(outcome, text):
    assert len(outcome.errors) == 1, outcome.stderr
    assert text in outcome.errors[0]
    assert outcome.closed
    assert outcome.returncode not in (0, None)
    assert outcome.stdout == ""  # in a pipe, stdout carries the data
    assert CANARY not in outcome.stderr + outcome.errors[0]


def test_scan_in_image_and_std_out():
    outcome = run_child(stream(SCAN.header(), SCAN.acquisitions(), configuration(**SMALL)))
    assert outcome.errors == [], outcome.stderr
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.closed
    assert outcome.stdout == ""
    assert [i.image_series_index for i in outcome.images] == [1, 10]
    image, std = outcome.images
    for one in outcome.images:
        assert one.data.shape == (1, 1, SCAN.ny, SCAN.nx)
        assert one.data.dtype == np.float32
        assert np.isfinite(one.data).all()
        assert one.data.min() >= 0
        assert one.image_type == ismrmrd.IMTYPE_MAGNITUDE
        assert list(one.field_of_view) == [96.0, 80.0, 5.0]
        assert len(one.meta["POGMDM_WeightsSha256"]) == 64
    assert std.data.max() > 0
    assert image.meta["POGMDM_NoiseWhitened"] == "True"
    assert std.meta["DataRole"] == ["Quantitative", "STD_MAP"]
    # the object, where it is
    start = SCAN.nx_encoded // 2 - SCAN.nx // 2
    truth = np.sqrt((np.abs(SCAN.coils() * SCAN.image()) ** 2).sum(0))[:, start : start + SCAN.nx]
    assert np.corrcoef(image.data.ravel(), truth.ravel())[0, 1] > 0.9
    assert CANARY not in outcome.stderr


@pytest.mark.fault("F43")
def test_a_scan_of_zeros_gives_an_image_of_zeros_no_std_and_says_so():
    acquisitions = SCAN.acquisitions()
    for acq in acquisitions[1:]:  # after the noise
        acq.data[:] = 0
    outcome = run_in_process(
        stream(SCAN.header(), acquisitions, configuration(**SMALL)), gadget.pogmdm_recon, timeout=60
    )
    assert outcome.raised is None
    assert [i.image_series_index for i in outcome.images] == [1]
    for image in outcome.images:
        assert not image.data.any()
        assert "NO_SIGNAL" in image.meta["POGMDM_Warnings"].split()
        assert image.meta["POGMDM_Status"] == "no_signal"


@pytest.mark.fault("F46")
def test_one_sample_is_the_mean_and_has_no_std():
    config = configuration(
        **{**SMALL, "sampler__n_samples": 1, "uncertainty__method": "samples"}, output__maps="image,mean,std"
    )
    outcome = run_in_process(stream(SCAN.header(), SCAN.acquisitions(), config), gadget.pogmdm_recon, timeout=60)
    assert [i.image_series_index for i in outcome.images] == [1, 2]
    assert {i.meta["POGMDM_NSamples"] for i in outcome.images} == {"1"}


def test_intensity_is_linear_in_kspace():
    """A power of two changes no rounding, so it shows linearity itself; seven shows it up to amplified rounding."""
    images = {}
    for scale in (1.0, 7.0, 8.0):
        parts = stream(SCAN.header(), Scan(acceleration=2, scale=scale).acquisitions(), configuration(**SMALL))
        outcome = run_in_process(parts, gadget.pogmdm_recon, timeout=90)
        assert outcome.raised is None
        images[scale] = [i.data / scale for i in outcome.images]

    def distances(scale):
        return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(images[scale], images[1.0], strict=True)]

    assert max(distances(8.0)) < 1e-6
    image, std = distances(7.0)
    assert image < 1e-3
    # a spread of two samples after four steps: rounding of 1e-7 comes out at 1e-3
    assert std < 1e-2


def test_missing_weights():
    failed(run_child(stream(SCAN.header(), SCAN.acquisitions(), configuration(prior="/nowhere/w.safetensors"))), "E12")


def test_nan_samples():
    acquisitions = SCAN.acquisitions()
    for acq in acquisitions[3:9]:
        acq.data[:] = np.nan
    failed(run_child(stream(SCAN.header(), acquisitions, configuration(**SMALL))), "E330 slice 0: 6 of")


def test_no_acquisitions():
    failed(run_child(stream(SCAN.header(), [], configuration(**SMALL))), "E405 no acquisitions")


def test_stream_that_ends_inside_a_readout():
    parts = stream(SCAN.header(), SCAN.acquisitions()[:4], configuration(**SMALL), close=False)
    parts[-1] = parts[-1][:200]
    failed(run_child(parts, hang_up=True), "E402")


def test_wrong_setting():
    outcome = run_child(stream(SCAN.header(), SCAN.acquisitions(), configuration(sampler__n_sampels=2)))
    failed(outcome, "E101 there is no setting 'sampler.n_sampels' (did you mean 'sampler.n_samples'?)")
    assert outcome.stderr.count("E101") == 3  # our line, the launcher's, and the exception it raises


def test_header_without_encoding():
    raw = SCAN.header()
    raw = raw[: raw.index(b"<encoding>")] + raw[raw.index(b"</encoding>") + len(b"</encoding>") :]
    failed(run_child(stream(raw, SCAN.acquisitions())), "E202")


def test_unreadable_header_ends_the_process():
    """Gadgetron's own launcher parses the header before the gadget runs; it must not look like success."""
    outcome = run_child(stream(b"<html>", SCAN.acquisitions()))
    assert outcome.returncode not in (0, None)
    assert outcome.images == []


def test_broken_installation_reaches_the_client(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart', name='torch')\n")
    outcome = run_child(stream(SCAN.header(), SCAN.acquisitions()), env={"PYTHONPATH": str(tmp_path)})
    failed(outcome, "E598 the module torch cannot be imported")


@pytest.mark.fault("F23")
def test_spokes_in_image_and_std_out():
    """A radial scan under a cartesian header: the positions win, and the object is where it was."""
    header, acquisitions = radial_scan(n_spokes=30, n_coils=3, noise_std=0.01)
    header = header.replace(b">radial<", b">cartesian<")
    outcome = run_child(
        stream(header, acquisitions, configuration(**SMALL, trajectory__fov_factor=1.2, noise__whiten="off"))
    )
    assert outcome.errors == [], outcome.stderr
    assert outcome.returncode == 0, outcome.stderr
    assert [i.image_series_index for i in outcome.images] == [1, 10]
    scan = Scan(nx=40, ny=40, n_coils=3, oversampling=1)
    truth = np.sqrt((np.abs(scan.coils() * scan.image()) ** 2).sum(0))
    image, std = outcome.images
    assert image.data.shape == std.data.shape == (1, 1, 40, 40)
    assert list(image.field_of_view) == [80.0, 80.0, 5.0]
    assert np.corrcoef(image.data.ravel(), truth.ravel())[0, 1] > 0.9
    # as bright as the truth, and where it is: a shift by a pixel in any direction fits worse
    found = image.data[0, 0]
    assert float((found * truth).sum() / (truth * truth).sum()) == pytest.approx(1, abs=0.15)
    moved = [np.sum((np.roll(found, shift, axis) - truth) ** 2) for axis in (0, 1) for shift in (-1, 1)]
    assert np.sum((found - truth) ** 2) < min(moved)
    assert image.meta["POGMDM_Trajectory"] == "other (kxky, unit normalized)"
    assert "TRAJECTORY_NOT_CARTESIAN" in image.meta["POGMDM_Warnings"]
    assert outcome.stderr.count("unit normalized") == 1
