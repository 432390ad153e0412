"""Objects larger than the field of view, off the grid."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.frames import frames_of
from helpers.frames import prepared as off_grid
from helpers.mrd_factory import Scan, radial_scan
from helpers.peer import configuration, run_in_process, stream

from gadget.kspace.field_of_view import LARGER, FieldOfView
from gadget.settings.load import load
from gadget.target import pogmdm_recon


class Trying:
    """Counts tries; `residuals` by field of view, the model does not fit where it is above 3."""

    def __init__(self, scan, residuals, **settings):
        self.acquired, self.prepared = frames_of(*scan)[2][0], off_grid(*scan)
        self.tried, self.residuals = [], residuals
        self.field_of_view = FieldOfView(load(properties=settings), self.prepare, self.compute)

    def prepare(self, acquired, settings):
        assert settings.trajectory.fov_factor == LARGER
        assert acquired is self.acquired
        return self.prepared

    def compute(self, prepared, settings):
        assert (settings.map.steps, settings.sampler.n_samples, settings.uncertainty.method) == (0, 0, "off")
        factor = LARGER if "LARGER_FOV" in prepared.warnings else 1.0
        self.tried.append(factor)
        residual = self.residuals[factor]
        warnings = ("MODEL_ERROR",) if residual > 3 else ()
        return SimpleNamespace(warnings=warnings, data_residual=residual, start=f"start at {factor}")

    def fitted(self):
        return self.field_of_view.fitted(self.acquired, self.prepared)

    def factor(self):
        found = self.fitted()
        return LARGER if "LARGER_FOV" in found.warnings else 1


@pytest.mark.parametrize(
    ("residuals", "factor", "tried"),
    [
        ({1.0: 1.1}, 1, [1.0]),
        ({1.0: 4.5, LARGER: 3.3}, LARGER, [1.0, LARGER]),
        ({1.0: 4.5, LARGER: 4.4}, 1, [1.0, LARGER]),
    ],
    ids=["fits", "sticks out", "is wrong for another reason"],
)
def test_the_first_frame_settles_it(residuals, factor, tried):
    trying = Trying(radial_scan(), residuals)
    # what was found with it is not computed again
    assert trying.fitted().start == f"start at {float(factor)}"
    for _ in range(3):
        assert trying.factor() == factor
        assert trying.fitted().start is None
    assert trying.tried == tried


def test_each_slice_is_settled_by_its_own_first_frame():
    trying = Trying(radial_scan(), {1.0: 1.1})
    assert trying.factor() == 1
    trying.residuals = {1.0: 4.5, LARGER: 3.3}  # another slice's object sticks out
    trying.acquired = replace(trying.acquired, key=trying.acquired.key._replace(slice=1))
    assert trying.factor() == LARGER
    trying.acquired = replace(trying.acquired, key=trying.acquired.key._replace(repetition=1))
    assert trying.factor() == LARGER
    assert trying.tried == [1.0, 1.0, LARGER]


@pytest.mark.parametrize(
    "settings",
    [{"trajectory.fov_factor": "1"}, {"limits.recon_deadline_s": "60"}, {"preset": "paper"}],
    ids=["given", "deadline", "no joint start"],
)
def test_where_nothing_is_tried(settings):
    trying = Trying(radial_scan(), {}, **settings)
    assert trying.factor() == 1
    assert trying.tried == []


def test_on_the_grid_nothing_is_tried():
    scan = Scan()
    trying = Trying((scan.header(), scan.acquisitions()), {})
    assert trying.factor() == 1
    assert trying.tried == []


def test_an_object_that_sticks_out_is_reconstructed_as_if_it_did_not():
    """Spokes of an object of 40 pixels; the header's field of view ends after 30."""
    header, acquisitions = radial_scan((40, 40), n_spokes=40, n_coils=4, noise_std=0.02)
    text = header.decode().replace(">40<", ">30<").replace(">80.0<", ">60.0<").replace(">80<", ">60<")
    assert text.count(">30<") >= 4
    small = {"sampler__n_samples": 0, "map__steps": 30, "uncertainty__method": "off", "output__maps": "image"}
    images = {}
    for factor in ("auto", "1"):
        config = configuration(**small, trajectory__fov_factor=factor)
        outcome = run_in_process(stream(text.encode(), acquisitions, config), pogmdm_recon, timeout=60)
        assert outcome.errors == []
        images[factor] = outcome.images[0]
    whole = run_in_process(stream(header, acquisitions, configuration(**small)), pogmdm_recon, timeout=60).images[0]
    assert "LARGER_FOV" in images["auto"].meta["POGMDM_Warnings"]
    assert "LARGER_FOV" not in images["1"].meta["POGMDM_Warnings"] + whole.meta["POGMDM_Warnings"]
    # the unitary transform knows the matrix of the header
    expected = 30 / 40 * whole.data[0, 0, 5:35, 5:35]
    errors = {f: float(np.linalg.norm(i.data[0, 0] - expected) / np.linalg.norm(expected)) for f, i in images.items()}
    assert images["auto"].data.shape == (1, 1, 30, 30)
    assert errors["auto"] < 0.015
    assert errors["1"] > 0.04
