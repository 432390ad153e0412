"""The MAP image that is judged on held-out k-space."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.simulated_scan import simulate

from pogmdm_core import Settings, load_prior, reconstruct
from pogmdm_core.estimate.joint_start import nlinv, smooth_phase_into_coils
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.reconstruction import image_scale
from pogmdm_core.run import Run
from pogmdm_core.uncertainty.judged_map import PRIOR_WEIGHTS, judged_map


@pytest.fixture(scope="module")
def case():
    frame = simulate().frame
    model = EncodingModel(frame, image_scale(frame))
    return model, smooth_phase_into_coils(nlinv(model, 8)), frame.noise_std / model.scale


def judge(case, run=None, prior_weight=None, **values):
    model, start, eta = case
    settings = Settings(map={"steps": 40, "prior_weight": prior_weight}, device="cpu", **values)
    return judged_map(model, load_prior(), start, eta, eta, settings, run or Run(None, None))


@pytest.mark.parametrize("order", [PRIOR_WEIGHTS, PRIOR_WEIGHTS[::-1]])
def test_the_weight_that_predicts_best_is_kept(case, order, monkeypatch):
    monkeypatch.setattr(sys.modules["pogmdm_core.uncertainty.judged_map"], "PRIOR_WEIGHTS", order)
    alone = {weight: judge(case, prior_weight=weight) for weight in order}
    chosen = judge(case)
    assert chosen.weight == min(order, key=lambda weight: alone[weight].held.misfit)
    assert chosen.held.misfit == pytest.approx(alone[chosen.weight].held.misfit, rel=0.02)
    assert torch.linalg.vector_norm(chosen.image - alone[chosen.weight].image) < 0.02 * torch.linalg.vector_norm(
        chosen.image
    )


def test_misfit_is_noise_and_more(case):
    """Left-out samples hold the noise, and the error of their prediction beside it."""
    eta = case[2]
    assert eta < judge(case, prior_weight=1).held.misfit < 10 * eta


def test_more_prior_is_a_more_likely_image(case):
    prior, level = load_prior(), 0.03
    energies = [float(prior.energy(judge(case, prior_weight=w, n_samples=0).image, level)) for w in (0.25, 1, 4)]
    assert energies[0] > energies[1] > energies[2]


@pytest.mark.parametrize("method", ["samples", "off"])
def test_without_held_out_samples_the_prior_counts_as_trained(case, method):
    found = judge(case, uncertainty={"method": method})
    assert found.weight == 1 and found.held is None


def test_time_up_in_the_second_attempt_keeps_the_first(case):
    """Stopped while the held-out samples of the second weight are made: what was finished counts."""
    first = judge(case, prior_weight=1)
    stage, steps = [], []

    def see(progress):
        if not stage or stage[-1] != progress.stage:
            stage.append(progress.stage)
        steps.append(progress)

    run = Run(see, lambda: len(stage) == 4)
    found = judge(case, run)
    assert stage == ["MAP", "held-out k-space", "MAP", "held-out k-space"] and run.status == "cancelled"
    assert found.weight == 1 and torch.equal(found.image, first.image)
    assert found.held.n_groups == found.held.n_planned  # of the first weight: the second's were not finished
    assert found.held.misfit == pytest.approx(first.held.misfit, rel=0.05)  # a choice of weights takes a finer look
    shares = [p.done / p.total for p in steps if p.stage == "held-out k-space"]
    at_once = min(4, torch.get_num_threads())  # groups of the second weight that had begun
    assert shares == sorted(shares) and 0.5 < shares[-1] <= 0.575 + 0.125 * at_once


def test_the_result_tells_the_weight():
    scan = simulate()
    result = reconstruct(
        scan.frame, load_prior(), Settings(n_samples=0, map={"steps": 20, "prior_weight": 0.7}, device="cpu")
    )
    assert result.prior_weight == 0.7
