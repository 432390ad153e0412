import pytest
import torch
from helpers.simulated_scan import simulate

from pogmdm_core import KSpaceFrame, load_prior
from pogmdm_core.estimate.map_estimate import level_for, map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.fourier import centred_fft
from pogmdm_core.prior.grid_mixture import GridMixtureExperts
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.prior.shearlets import ShearletBank


def gaussian_prior():
    """All means at 0: every expert is one Gaussian, the posterior is Gaussian."""
    experts = GridMixtureExperts(20, 3, 1e-7)
    prior = ProductPrior(ShearletBank(), experts).requires_grad_(False)
    prior.measure_widths()
    experts.sigma_0.fill_(0.1)
    experts.exponent.zero_()
    return prior


@pytest.fixture(scope="module")
def scan():
    return simulate((40, 36), n_coils=4, acceleration=2, noise_std=0.01)


@pytest.fixture(scope="module")
def prior():
    return load_prior()


def total_gradient(scan, prior, x, eta, level):
    model = EncodingModel(scan.frame)
    return model.grad_image(x, scan.csm) / eta**2 - prior.score(x, level)


@pytest.mark.parametrize("which", ["shipped", "gaussian"])
def test_the_gradient_vanishes_at_the_solution(which, scan, prior):
    prior = prior if which == "shipped" else gaussian_prior()
    start = torch.zeros(40, 36, dtype=torch.complex64)
    eta, level = 0.05, 0.05
    found = map_estimate(EncodingModel(scan.frame), prior, scan.csm, start, eta, level, 3000, 1e-6)
    before = total_gradient(scan, prior, start, eta, level).norm()
    assert total_gradient(scan, prior, found.image, eta, level).norm() < 2e-3 * before
    assert found.n_steps < 3000


def test_gaussian_prior_and_full_sampling_have_a_closed_form():
    """Quadratic everything: x^ = y^ / (1 + eta^2 G), per frequency."""
    prior, eta, level = gaussian_prior(), 0.05, 0.1
    y = torch.randn(31, 37, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    frame = KSpaceFrame.cartesian(centred_fft(y)[None], torch.ones(31, 37, dtype=torch.bool))
    csm = torch.ones(1, 31, 37, dtype=torch.complex64)
    found = map_estimate(EncodingModel(frame), prior, csm, torch.zeros_like(y), eta, level, 500, 1e-7)
    curvature = prior.bank.spectra((31, 37)).abs() ** 2 / prior.experts.variance(level)[:, None, None]
    expected = torch.fft.ifft2(torch.fft.fft2(y) / (1 + eta**2 * curvature.sum(0)))
    assert (found.image - expected).norm() < 1e-4 * expected.norm()
    assert (expected - y).norm() > 0.03 * y.norm()  # the prior matters


def test_map_lowers_the_objective_and_the_error(scan, prior):
    model, eta = EncodingModel(scan.frame), 0.01
    level = level_for(eta)
    start = (scan.csm.conj() * model.adjoint_data).sum(0)
    found = map_estimate(model, prior, scan.csm, start, eta, level)

    def objective(x):
        return 0.5 * (2 * model.n_measured) * (model.residual_std(x, scan.csm) / eta) ** 2 + float(
            prior.energy(x, level)
        )

    assert objective(found.image) < objective(start)
    error, before = ((x - scan.image).norm() for x in (found.image, start))
    assert error < 0.7 * before
    assert found.image.dtype == torch.complex64 and found.image.shape == (40, 36)


def test_stops_by_tolerance_or_steps(scan, prior):
    model, start = EncodingModel(scan.frame), torch.zeros(40, 36, dtype=torch.complex64)
    loose = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 500, 1e-2)
    tight = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 500, 1e-4)
    assert 1 < loose.n_steps < tight.n_steps < 500
    assert loose.change < 1e-2 and tight.change < 1e-4
    short = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 7, 0.0)
    assert short.n_steps == 7 and short.change > 0


def test_falling_levels_lead_to_the_same_minimum(scan, prior):
    model, start = EncodingModel(scan.frame), torch.zeros(40, 36, dtype=torch.complex64)
    without, with_levels = (
        map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 500, 1e-5, first) for first in (None, 0.2)
    )
    assert (with_levels.image - without.image).norm() < 2e-3 * without.image.norm()
    # nothing to fall from
    at_once = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 3, 0.0, 0.03)
    assert torch.equal(at_once.image, map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 3, 0.0).image)


def test_the_levels_alone_get_near(scan, prior):
    model = EncodingModel(scan.frame)
    start = (scan.csm.conj() * model.adjoint_data).sum(0)
    goal = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 500, 1e-6).image
    levels = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 8, 0.0, 0.2)
    assert levels.n_steps == 8
    assert (levels.image - goal).norm() < 0.2 * (start - goal).norm()


def test_changes_relative_to_the_way_made(scan, prior):
    """From near the minimum a tolerance relative to the image ends at once, one relative to the way does not."""
    model, start = EncodingModel(scan.frame), torch.zeros(40, 36, dtype=torch.complex64)
    goal = map_estimate(model, prior, scan.csm, start, 0.02, 0.03, 500, 1e-6).image
    near = goal + 1e-3 * torch.randn(40, 36, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    plain = map_estimate(model, prior, scan.csm, near, 0.02, 0.03, 100, 5e-2)
    by_way = map_estimate(model, prior, scan.csm, near, 0.02, 0.03, 100, 5e-2, origin=near)
    assert plain.n_steps == 2 < by_way.n_steps < 100
    assert (by_way.image - goal).norm() < 0.3 * (near - goal).norm()


def test_steps_that_overshoot_are_corrected(scan):
    """A prior far stiffer than it says: the first guess of the Hessian is wrong by a factor of a thousand."""
    model = EncodingModel(scan.frame)

    class Stiff:
        def score(self, x, level):
            return -x / level**2

        def lipschitz_bound(self, level, shape):
            return 1e-3 / level**2

    found = map_estimate(model, Stiff(), scan.csm, scan.image.clone(), 0.02, 0.03, 100, 1e-5)
    gradient = model.grad_image(found.image, scan.csm) / 0.02**2 - Stiff().score(found.image, 0.03)
    start = model.grad_image(scan.image, scan.csm) / 0.02**2 - Stiff().score(scan.image, 0.03)
    assert gradient.norm() < 1e-3 * start.norm() and found.n_steps < 100


def test_reports_and_stops_on_request(scan, prior):
    model, start = EncodingModel(scan.frame), torch.zeros(40, 36, dtype=torch.complex64)
    seen = []
    found = map_estimate(
        model,
        prior,
        scan.csm,
        start,
        0.02,
        0.03,
        50,
        0.0,
        report=lambda *args: seen.append(args),
        should_stop=lambda: len(seen) == 4,
    )
    assert seen == [(1, 50), (2, 50), (3, 50), (4, 50)]
    assert found.n_steps == 4
    assert torch.isfinite(torch.view_as_real(found.image)).all()


def test_the_start_survives(scan, prior):
    start = scan.image.clone()
    map_estimate(EncodingModel(scan.frame), prior, scan.csm, start, 0.02, 0.03, 3)
    assert torch.equal(start, scan.image)


@pytest.mark.parametrize(("noise", "level"), [(1e-4, 0.015), (0.02, 0.026), (0.03, 0.039), (0.3, 0.05)])
def test_level_for(noise, level):
    assert level_for(noise) == pytest.approx(level)
