"""Recorded scans through reading, buffering and preparing; the reconstruction has tests of its own."""

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.fake_core import zero_filled
from helpers.frames import prepared

from gadget.images.recon_space import to_recon_linear
from gadget.scan.header import to_xml
from pogmdm_core.measurement.noise_check import against_kspace


def prepared_of(path):
    with ismrmrd.File(str(path), "r") as file:  # a Dataset would lock it against other tests
        scan = file["dataset"]
        return prepared(to_xml(scan.header), list(scan.acquisitions))


@pytest.mark.parametrize(
    ("name", "shape", "n_rows", "warnings"),
    [
        ("pulseq_brain16_R4", (16, 128, 128), 39, ()),
        ("pulseq_phantom16_R4", (16, 128, 128), 39, ()),
        ("espirit_brain8_R4", (8, 230, 180), 72, ()),
        ("larson_knee1_R4", (1, 332, 640), 104, ()),
        ("siemens_skyra_phantom14_R3", (14, 144, 192), 68, ()),
        ("virtual_shepp4_R2", (4, 256, 256), 142, ()),
    ],
)
def test_recorded_scans_are_prepared(mrd_data, name, shape, n_rows, warnings):
    prepared = prepared_of(mrd_data / f"{name}.h5")
    frame = prepared.frame
    assert tuple(frame.kspace.shape) == shape
    assert int(frame.mask.any(dim=1).sum()) == n_rows
    assert prepared.whitened
    assert prepared.warnings == warnings
    recon = prepared.encoding.recon
    image = to_recon_linear(zero_filled(frame).numpy(), prepared.fov_mm, recon)
    assert image.shape == recon.matrix[1::-1]
    # the object is in the middle, the corners are air
    corners = np.concatenate(
        [image[y, x].ravel() for y in (slice(8), slice(-8, None)) for x in (slice(8), slice(-8, None))]
    )
    ny, nx = image.shape
    assert np.median(image[ny // 4 : -ny // 4, nx // 4 : -nx // 4]) > 2 * np.median(corners)


@pytest.mark.fault("F67")
def test_a_noise_scan_that_the_data_were_scaled_without_is_found_out(mrd_data):
    """Its simulator scaled the data, but not its noise scan."""
    level = against_kspace(prepared_of(mrd_data / "virtual_shepp4_R2.h5").frame)
    assert level.warnings == ("NOISE_SCALE_MISMATCH",)
    assert level.std == pytest.approx(13.6, rel=0.05)  # k-space levels off there


@pytest.mark.parametrize("name", ["pulseq_brain16_R4", "espirit_brain8_R4", "larson_knee1_R4"])
def test_level_of_the_noise_scan_is_that_of_the_data(mrd_data, name):
    """At the corners of k-space, where there is hardly any signal."""
    frame = prepared_of(mrd_data / f"{name}.h5").frame
    rows = frame.mask.any(dim=1)
    kspace = frame.kspace[:, rows]
    corners = torch.cat([kspace[:, :8, :6].flatten(), kspace[:, -8:, -6:].flatten()])
    assert float(torch.view_as_real(corners).std()) == pytest.approx(frame.noise_std, rel=0.08)


@pytest.mark.parametrize(
    ("name", "n_coils", "n_samples"),
    [
        ("lustig_spiral8_phantom_R5", 8, 12 * 1182),
        ("lustig_spiral8_phantom_full", 8, 60 * 1182),
        ("tugraz_cardiac_radial25_12ch_full", 12, 25 * 256),
    ],
)
def test_recorded_trajectories_are_read(mrd_data, name, n_coils, n_samples):
    prepared = prepared_of(mrd_data / f"{name}.h5")
    assert prepared.frame.kspace.shape == (n_coils, n_samples)
    assert prepared.frame.shape == (256, 256)
    assert prepared.fov_mm == (256.0, 256.0)
    # 12 of the 60 interleaves that its header announces
    assert prepared.warnings == (("INCOMPLETE", "NOT_WHITENED") if name.endswith("R5") else ("NOT_WHITENED",))
    # normalised positions reach the edge of the matrix, and not beyond
    assert 0.9 * 128 < float(prepared.frame.positions.abs().max()) <= 128
    assert prepared.frame.density is None


@pytest.mark.fault("F25")
def test_the_weights_of_the_recorded_spiral_are_weights(mrd_data):
    plain = prepared_of(mrd_data / "lustig_spiral8_phantom_full.h5").frame
    weighted = prepared_of(mrd_data / "lustig_spiral8_phantom_full_dcf3.h5").frame
    assert torch.equal(weighted.positions, plain.positions)
    assert torch.equal(weighted.kspace, plain.kspace)
    assert weighted.density is not None
    assert 0 < float(weighted.density.min()) < float(weighted.density.max()) == 1
