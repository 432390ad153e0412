"""Recorded scans through the command line and the wire: shape, orientation, finiteness, quality."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadget.cli import main
from gadget.evaluate import peers
from gadget.evaluate.data import read_frame, read_full_scan
from gadget.evaluate.metrics import scaled_psnr
from gadget.images.recon_space import to_recon_linear
from pogmdm_core import zero_filled

DATA = Path(os.environ.get("POGMDM_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "mrd"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real scans are not here (set POGMDM_DATA)"),
]

QUICK = ["preset=fast", "map.steps=8", "coils.newton_steps=9"]
SCANS = {
    "pulseq_brain16_R4": (128, 128),
    "espirit_brain8_R4": (230, 180),
    "larson_knee1_R4": (332, 640),
    "siemens_skyra_phantom14_R3": (144, 192),
    "virtual_shepp4_R2": (256, 256),
}


def adjoint_of(name: str) -> np.ndarray:
    """Zero-filled image of a scan on the grid of its header."""
    prepared = read_frame(DATA / f"{name}.h5")
    return to_recon_linear(zero_filled(prepared.frame).numpy(), prepared.fov_mm, prepared.encoding.recon)


def replay(name: str, output: Path, settings: list[str]) -> dict[int, ismrmrd.Image]:
    arguments = ["run", str(DATA / f"{name}.h5"), "-o", str(output)]
    for setting in settings:
        arguments += ["--set", setting]
    assert main(arguments) == 0
    with contextlib.closing(ismrmrd.Dataset(str(output), "dataset", create_if_needed=False)) as data:
        return {number: data.read_image(f"image_{number}", 0) for number in (1, 10)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name == "larson_knee1_R4" else name for name in SCANS],
)
def test_image_and_std_of_a_recorded_scan(name, tmp_path):
    images = replay(name, tmp_path / "out.h5", QUICK)
    for image in images.values():
        assert image.data.shape == (1, 1, *SCANS[name])
        assert np.isfinite(image.data).all()
        assert image.data.min() >= 0
        assert image.meta["POGMDM_Status"] == "ok"
        assert image.meta["POGMDM_Trajectory"] == "cartesian"
    assert images[10].data.max() > 0
    if name == "virtual_shepp4_R2":  # its noise scan is of another scale; the spread in air is 5 to 6
        assert "NOISE_SCALE_MISMATCH" in images[10].meta["POGMDM_Warnings"]
        assert 2 < float(np.median(images[10].data)) < 15
    assert images[10].meta["GADGETRON_DataRole"] == "STD_MAP"
    # same way up as the adjoint image: every flip or transpose correlates less
    adjoint = adjoint_of(name)
    found = images[1].data[0, 0]

    def similarity(a: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), adjoint.ravel())[0, 1])

    upright = similarity(found)
    assert upright > 0.8
    assert all(upright > similarity(flipped) for flipped in (found[::-1], found[:, ::-1], found[::-1, ::-1]))


@pytest.mark.parametrize(
    ("name", "bart"),
    [("pulseq_brain16", 29.11), pytest.param("espirit_brain8", 32.10, marks=pytest.mark.slow)],
)
def test_quality_on_brains(name, bart, tmp_path):
    """At least 6 dB over zero-filling and above BART 0.8 nlinv at its best Newton step (figures measured once)."""
    image = replay(f"{name}_R4", tmp_path / "out.h5", ["preset=fast"])[1].data[0, 0]
    reference = read_full_scan(DATA / f"{name}_full.h5").reference
    psnr = scaled_psnr(image, reference)
    assert psnr > scaled_psnr(adjoint_of(f"{name}_R4"), reference) + 6
    assert psnr > bart + 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
@pytest.mark.parametrize("name", ["pulseq_brain16", "espirit_brain8"])
def test_figures_of_bart_still_hold(name):
    reference = read_full_scan(DATA / f"{name}_full.h5").reference
    frame = read_frame(DATA / f"{name}_R4.h5").frame
    best = peers.run("bart_nlinv", frame, lambda image: scaled_psnr(image, reference)).image
    expected = {"pulseq_brain16": 29.11, "espirit_brain8": 32.10}[name]
    assert scaled_psnr(best, reference) == pytest.approx(expected, abs=0.1)
