"""What is asked of BART and made of its answers; another program answers here."""

import numpy as np
import pytest
import torch
from helpers.simulated_scan import simulate

from gadget.evaluate import peers
from pogmdm_core import KSpaceFrame
from pogmdm_core.errors import ComputeError
from pogmdm_core.measurement.trajectories import radial

SHAPE = (48, 40)


@pytest.fixture
def bart(monkeypatch):
    """Answers nlinv and pics with ones, has no calibration region, and keeps what it was asked."""
    asked = []

    def answer(base, *arguments):
        asked.append(arguments)
        if arguments[0] == "ecalib":
            raise ComputeError(521, "bart ecalib failed with status 1: no calibration region.")
        if arguments[0] == "nlinv":
            peers.write_cfl(base / arguments[-2], np.ones(SHAPE))
            peers.write_cfl(base / arguments[-1], 3 * np.ones((*SHAPE, 1, 4)))
        else:
            maps = peers.read_cfl(base / arguments[-2])
            np.testing.assert_allclose((np.abs(maps) ** 2).sum(3), 1, rtol=1e-5)
            peers.write_cfl(base / arguments[-1], np.ones(SHAPE))

    monkeypatch.setattr(peers, "installed", lambda: True)
    monkeypatch.setattr(peers, "_bart", answer)
    return asked


def frames():
    made = simulate(SHAPE)
    spokes = radial(10, SHAPE)
    samples = torch.ones(4, spokes.k.shape[1], dtype=torch.complex64)
    return {"grid": made.frame, "spokes": KSpaceFrame.noncartesian(samples, spokes.k, SHAPE)}


@pytest.mark.parametrize("where", ["grid", "spokes"])
def test_pics_takes_the_maps_of_nlinv_where_there_is_no_calibration_region(bart, where):
    found = peers.run("bart_pics_tv", frames()[where], score=lambda image: -float(image.sum()))
    assert found.image.shape == SHAPE
    assert found.csm.shape == (4, *SHAPE)
    assert "maps of nlinv -i 6" in found.note
    programs = [arguments[0] for arguments in bart]
    assert ("ecalib" in programs) == (where == "grid")
    assert all(("-t" in arguments) == (where == "spokes") for arguments in bart if arguments[0] == "pics")
    assert programs.count("nlinv") == 7
    assert programs.count("pics") >= 7


def test_without_any_maps_the_reason_is_told(bart, monkeypatch):
    monkeypatch.setattr(peers, "_nlinv", lambda *_: peers.PeerResult(np.ones(SHAPE), None, ""))
    with pytest.raises(ComputeError, match="E521 .*no calibration region"):
        peers.run("bart_pics_tv", frames()["grid"], score=lambda _: 0.0)
