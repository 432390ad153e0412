"""Bytes that a real Gadgetron 4.7.2 sent to an external node, where they are at hand: images as of the scan itself."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from helpers.peer import configuration, run_in_process, stream

import gadget
from gadget.files.scan_file import open_scan

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.fault("F76")]

ROOT = Path(__file__).parents[2]

# images of each series, and how near they come to those of the scan file after one scale: those that Gadgetron whitened
# differ by its estimate of the noise covariance (16 x 96 samples, one readout of 64 in buffers_separate)
EXPECTED = {
    "acq_standalone": (1, 0.0),
    "acq_cartesian": (1, 0.005),
    "acq_cartesian_nonoise": (1, 0.005),
    "acq_noncartesian": (1, 0.005),
    "buffers_embedded": (2, 0.005),
    "buffers_separate": (4, 0.02),
    "no_configuration": (1, 0.0),
}


@pytest.fixture(scope="module")
def recordings():
    folder = ROOT.parent / "shared" / "cases" / "recordings"
    if not folder.is_dir():
        pytest.skip("no recordings of a real Gadgetron here")
    return folder


def play(parts):
    outcome = run_in_process(parts, gadget.pogmdm_recon, timeout=100)
    assert outcome.raised is None
    return outcome


def recorded(folder, name):
    return play([gzip.decompress((folder / f"{name}.bin.gz").read_bytes())])


def of_the_file(folder, name, **settings):
    with open_scan(str(folder / f"{name}.scan.h5")) as scan:
        return play(stream(scan.header, list(scan.messages), configuration(**settings)))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recording_gives_the_images_of_its_scan(recordings, name):
    n_images, tolerance = EXPECTED[name]
    found = recorded(recordings, name)
    expected = of_the_file(recordings, name, preset="default" if name == "no_configuration" else "fast")
    for number, slack in ((1, 1), (10, 10)):
        one, other = ([np.float64(i.data) for i in outcome.series(number)] for outcome in (found, expected))
        assert len(one) == len(other) == n_images
        for a, b in zip(one, other, strict=True):
            scale = (a * b).sum() / (a * a).sum()
            assert np.linalg.norm(scale * a - b) <= slack * tolerance * np.linalg.norm(b), number
            assert scale == 1 or tolerance > 0
    told = found.images[0].meta["POGMDM_Warnings"].split()
    assert ("NOT_WHITENED" in told) == (name == "acq_cartesian_nonoise")


def test_a_scan_whose_client_died_is_labelled(recordings):
    found = recorded(recordings, "aborted")
    assert len(found.images) == 2
    for image in found.images:
        assert {"INCOMPLETE", "NO_LAST_FLAG"} <= set(image.meta["POGMDM_Warnings"].split())
