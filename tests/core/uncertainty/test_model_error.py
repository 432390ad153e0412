"""Faults of the model and of the coils: told, and in the standard deviation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.simulated_scan import line_mask, simulate

from pogmdm_core import KSpaceFrame, Settings, load_prior, reconstruct
from pogmdm_core.measurement.trajectories import radial
from pogmdm_core.uncertainty.combine import object_mask
from pogmdm_core.uncertainty.leave_out import grid_positions
from pogmdm_core.uncertainty.model_error import FITS, model_error, widening

FOLDS = Settings(map={"prior_weight": 0.7}, uncertainty={"method": "folds"}, device="cpu")


@pytest.fixture(scope="module")
def prior():
    return load_prior()


def std_over_error(result, truth: torch.Tensor) -> float:
    inside = object_mask(truth)
    scale = float((result.image * truth)[inside].sum() / result.image[inside].square().sum())
    error = (scale * result.image - truth)[inside]
    return float(scale * result.std[inside].square().mean().sqrt() / error.square().mean().sqrt())


def frame_on_a_grid(shape=(96, 96), n_centre=16) -> KSpaceFrame:
    mask = line_mask(shape, 2, n_centre)
    return KSpaceFrame.cartesian(torch.ones(4, *shape, dtype=torch.complex64), mask, 0.1)


def test_a_fit_to_the_noise_has_no_model_error():
    frame = frame_on_a_grid()
    squares = 0.1**2 * torch.ones(int(frame.mask.sum()), dtype=torch.float64)
    assert model_error(frame, squares, 0.1) == pytest.approx(1)


def test_the_worst_band_near_the_centre_counts():
    frame = frame_on_a_grid()
    radius = torch.hypot(*grid_positions(frame.shape))[frame.mask]
    for low, high, seen in ((0.0, 0.015, False), (0.045, 0.065, True), (0.12, 0.5, False)):
        squares = torch.full((len(radius),), 0.01, dtype=torch.float64)
        squares[(low < radius) & (radius < high)] *= 100
        assert (model_error(frame, squares, 0.1) > 5) == seen


def test_off_the_grid_bands_are_by_radius_too():
    traj, shot = radial(21, (64, 64))
    samples = torch.ones(4, traj.shape[1], dtype=torch.complex64)
    frame = KSpaceFrame.noncartesian(samples, traj, (64, 64), None, 0.1, shot)
    radius = torch.hypot(*(frame.positions / 64)).double()
    squares = torch.where((radius > 0.045) & (radius < 0.065), 0.16, 0.01).double()
    assert 2 < model_error(frame, squares, 0.1) < 4


def test_too_few_samples_near_the_centre_tell_nothing():
    frame = frame_on_a_grid((16, 16), 4)
    assert model_error(frame, torch.ones(int(frame.mask.sum()), dtype=torch.float64), 0.1) == 0


def test_the_std_is_wider_by_the_root():
    assert widening(4 * FITS) == pytest.approx(2)
    assert widening(0.9) == widening(FITS) == 1


@pytest.mark.parametrize("fault", [None, "gain", "phase"])
def test_readouts_that_err_are_told_and_counted(fault, prior):
    scan = simulate(shape=(96, 96), n_coils=8, n_centre=16, noise_std=0.01)
    generator = torch.Generator().manual_seed(3)
    errors = 0.1 * torch.randn(96, 1, generator=generator)
    factor = {None: torch.ones(96, 1), "gain": 1 + errors, "phase": torch.polar(torch.ones(96, 1), errors)}[fault]
    result = reconstruct(replace(scan.frame, kspace=scan.frame.kspace * factor), prior, FOLDS)
    assert ("MODEL_ERROR" in result.warnings) == (fault is not None)
    assert (result.model_error > FITS) == (fault is not None)
    assert 0.5 < std_over_error(result, scan.image.abs()) < 2
    if fault is not None:
        wider = math.sqrt(result.model_error / FITS)
        inside = object_mask(result.image)
        assert float(result.std[inside].square().mean().sqrt()) == pytest.approx(
            wider * result.uncertainty["folds"], rel=1e-3
        )


@pytest.mark.parametrize(("n_centre", "acceleration"), [(1, 2), (4, 3)])
def test_coils_that_little_tells_err_openly(n_centre, acceleration, prior):
    scan = simulate(shape=(80, 64), n_coils=6, n_centre=n_centre, acceleration=acceleration, noise_std=0.01)
    result = reconstruct(scan.frame, prior, FOLDS)
    assert "STD_LOWER_BOUND" in result.warnings
    assert 0.5 < std_over_error(result, scan.image.abs()) < 3
