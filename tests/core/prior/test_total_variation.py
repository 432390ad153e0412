import numpy as np
import pytest
import torch
from helpers.simulated_scan import simulate
from scipy.optimize import minimize

from pogmdm_core.estimate.map_estimate import map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.prior.total_variation import TotalVariation


def random_image(shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def test_the_energy_is_the_sum_written_out():
    x = random_image((3, 4))
    expected = 0.0
    for i in range(3):
        for j in range(4):
            dy = abs(x[i + 1, j] - x[i, j]) if i < 2 else 0.0
            dx = abs(x[i, j + 1] - x[i, j]) if j < 3 else 0.0
            expected += 2.5 * float((dy**2 + dx**2 + 0.1**2) ** 0.5)
    assert float(TotalVariation(2.5, 0.1).energy(x)) == pytest.approx(expected, rel=1e-12)


def test_the_score_is_minus_the_gradient():
    prior = TotalVariation(0.3, 0.05)
    x = random_image((2, 7, 6)).requires_grad_(True)
    prior.energy(x).sum().backward()
    assert torch.allclose(prior.score(x.detach(), 0.1), -x.grad, atol=1e-12)


def test_the_curvature_bound_holds_and_is_not_idle():
    prior, shape = TotalVariation(0.3, 0.05), (12, 12)
    at, step = torch.zeros(shape, dtype=torch.complex128), 1e-7
    # the checkerboard is the worst direction
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    worst = (1.0 - 2.0 * ((y + x) % 2)).to(torch.complex128)
    slope = (prior.score(at - step * worst, 0) - prior.score(at, 0)).norm() / (step * worst.norm())
    bound = prior.lipschitz_bound(0.0, shape)
    assert 0.8 * bound < float(slope) <= bound * (1 + 1e-6)


def test_the_solution_is_that_of_a_general_minimiser():
    """L-BFGS of scipy in double precision on the same energy, data and coils."""
    scan = simulate((16, 14), n_coils=3, acceleration=2, n_centre=4, noise_std=0.02)
    model, prior = EncodingModel(scan.frame), TotalVariation(0.02, 0.01)
    found = map_estimate(model, prior, scan.csm, torch.zeros(16, 14, dtype=torch.complex64), 1.0, 0.0, 5000, 1e-7)

    def energy(flat):
        x = torch.from_numpy(flat).view(16, 14, 2).requires_grad_(True)
        image = torch.view_as_complex(x)
        misfit = model.for_image(scan.csm.to(torch.complex128)).forward(image) - scan.frame.kspace
        total = 0.5 * (misfit.abs() ** 2).sum() + prior.energy(image)
        total.backward()
        return float(total.detach()), x.grad.numpy().ravel()

    best = minimize(
        energy, np.zeros(16 * 14 * 2), jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-14}
    )
    reached = energy(torch.view_as_real(found.image.to(torch.complex128)).numpy().ravel())[0]
    assert reached == pytest.approx(best.fun, rel=1e-5)
    expected = torch.view_as_complex(torch.from_numpy(best.x).view(16, 14, 2))
    assert (found.image - expected).norm() < 2e-3 * expected.norm()
