"""Each shipped chain with what a real Gadgetron hands to our node of it: images as of the scan by itself."""

import ismrmrd
import numpy as np
import pytest
from helpers.peer import run_in_process, stream
from helpers.upstream import is_noise, noise_adjust, recon_data, remove_oversampling

import gadget
from gadget.phantom.sampling import ScanPlan
from gadget.phantom.write import write_phantom
from gadget.scan.header import to_xml
from gadget.settings.configs import gadget_configuration

pytestmark = [pytest.mark.e2e, pytest.mark.fault("F76")]

N = 40
FAST = [("preset", "fast"), ("device", "cpu"), ("map.steps", "80")]
# a chain without a <configuration>, and the bytes that Gadgetron 4.7.2 sends for it
NOTHING = b'<?xml version="1.0"?>\n'


def scan_of(folder, **plan):
    path = folder / "scan.h5"
    write_phantom(path, ScanPlan(shape=(N, N), n_coils=4, noise=0.02, seed=3, **plan), overwrite=True)
    with ismrmrd.File(str(path), "r") as file:
        dataset = file["dataset"]
        return to_xml(dataset.header), dataset.acquisitions[:]


@pytest.fixture(scope="module")
def cartesian(tmp_path_factory):
    header, readouts = scan_of(tmp_path_factory.mktemp("cartesian"), acceleration=2, n_slices=2)
    return header, readouts, play(header, readouts, "pogmdm_standalone.xml")


@pytest.fixture(scope="module")
def radial(tmp_path_factory):
    header, readouts = scan_of(tmp_path_factory.mktemp("radial"), trajectory="radial", shots=24)
    return header, readouts, play(header, readouts, "pogmdm_standalone.xml")


def play(header, items, chain, changes=()):
    config = NOTHING if chain is None else gadget_configuration(chain, [*FAST, *changes])
    outcome = run_in_process(stream(header, items, config), gadget.pogmdm_recon, timeout=100)
    assert outcome.raised is None
    assert outcome.errors == []
    return outcome


def same_after_one_scale(found, expected, image=0.01, std=0.05):
    """Two series of images each; the noise covariance is estimated a little otherwise upstream."""
    assert len(found.images) == len(expected.images)
    for number, tolerance in ((1, image), (10, std)):
        pairs = list(zip(found.series(number), expected.series(number), strict=True))
        stack, wanted = (np.stack([np.float64(pair[k].data) for pair in pairs]) for k in (0, 1))
        scale = (stack * wanted).sum() / (stack * stack).sum()
        assert np.linalg.norm(scale * stack - wanted) < tolerance * np.linalg.norm(wanted), number
        assert [pair[0].slice for pair in pairs] == [pair[1].slice for pair in pairs]


def upstream(readouts, bandwidth=1.0):
    return remove_oversampling(noise_adjust(readouts, bandwidth), N)


def test_connect(cartesian):
    header, readouts, expected = cartesian
    found = play(header, readouts, "pogmdm_connect.xml")
    for one, other in zip(found.images, expected.images, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


@pytest.mark.parametrize("chain", ["pogmdm_cartesian.xml", "pogmdm_beside_grappa.xml"])
def test_readouts_that_gadgetron_prepared(cartesian, chain):
    header, readouts, expected = cartesian
    found = play(header, upstream(readouts), chain)
    assert {i.meta["POGMDM_NoiseWhitened"] for i in found.images} == {"upstream"}
    if "grappa" in chain:  # a range of series of its own
        assert {i.image_series_index for i in found.images} == {501, 510}
        for image in found.images:
            image.image_series_index -= 500
    same_after_one_scale(found, expected)


def test_buffers(cartesian):
    header, readouts, expected = cartesian
    found = play(header, [recon_data(upstream(readouts), N)], "pogmdm_cartesian_buffers.xml")
    same_after_one_scale(found, expected)


def test_dicom(cartesian):
    header, readouts, expected = cartesian
    found = play(header, upstream(readouts), "pogmdm_dicom.xml")
    assert {i.data.dtype for i in found.images} == {np.dtype(np.uint16)}
    same_after_one_scale(found, expected)


def test_noncartesian(radial):
    header, readouts, expected = radial
    same_after_one_scale(play(header, noise_adjust(readouts, 1.0), "pogmdm_noncartesian.xml"), expected)


def test_without_a_configuration(cartesian):
    """As a worker of <distributed> has it; a preset cannot be named there, so the images are the defaults'."""
    header, readouts, _ = cartesian
    first = [acq for acq in readouts if is_noise(acq) or acq.idx.slice == 0]
    found = play(header, first, None)
    assert [(i.image_series_index, i.slice, i.image_index) for i in found.images] == [(1, 0, 1), (10, 0, 1)]
    assert found.images[0].meta["POGMDM_UncertaintyMethod"] == "calibrated"


def test_no_noise_readouts(cartesian):
    """NoiseAdjustGadget passes the data on; told, and the image is that of the scan without noise readouts."""
    header, readouts, _ = cartesian
    lines = [acq for acq in readouts if not is_noise(acq)]
    found = play(header, upstream(lines), "pogmdm_cartesian.xml")
    same_after_one_scale(found, play(header, lines, "pogmdm_standalone.xml"), image=0.02, std=0.1)
    for image in found.images:
        assert {"NOT_WHITENED", "NOISE_SCALE_MISMATCH"} <= set(image.meta["POGMDM_Warnings"].split())
    assert found.images[0].data.max() > 3 * found.images[0].data.mean()  # not flat
    for image, std in zip(found.series(1), found.series(10), strict=True):
        inside = image.data > 0.2 * image.data.max()
        assert 0.003 < std.data[inside].mean() / image.data.max() < 0.2
