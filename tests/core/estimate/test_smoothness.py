import pytest
import torch

from pogmdm_core.estimate.smoothness import prox_smoothness

BOUNDARIES = ("dirichlet", "neumann")


def laplacian(n, boundary):
    """D^T D of the differences: n + 1 of them with zeros outside, or n - 1 with free edges."""
    if boundary == "dirichlet":
        d = torch.zeros(n + 1, n, dtype=torch.float64)
        d[:n] += torch.eye(n)
        d[1:] -= torch.eye(n)
    else:
        d = torch.eye(n, dtype=torch.float64)[1:] - torch.eye(n, dtype=torch.float64)[:-1]
    return d.T @ d


def smoothness(v, boundary):
    ny, nx = v.shape[-2:]
    ly, lx = laplacian(ny, boundary).to(v.dtype), laplacian(nx, boundary).to(v.dtype)
    return 0.5 * (v.conj() * (ly @ v + v @ lx)).real.sum((-2, -1))


def random(*shape, dtype=torch.complex128, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (1, 5)])
@pytest.mark.parametrize("weight", [0.1, 10.0])
def test_prox_equals_a_dense_solve(boundary, shape, weight):
    ny, nx = shape
    v = random(ny, nx)
    system = torch.kron(laplacian(ny, boundary), torch.eye(nx, dtype=torch.float64))
    system += torch.kron(torch.eye(ny, dtype=torch.float64), laplacian(nx, boundary))
    system = torch.eye(ny * nx, dtype=torch.float64) + weight * system
    expected = torch.linalg.solve(system.to(v.dtype), v.reshape(-1)).reshape(shape)
    assert (prox_smoothness(v, weight, boundary) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_prox_minimises_its_objective(boundary):
    v, w = random(8, 5), 3.0
    u = prox_smoothness(v, w, boundary)

    def objective(z):
        return float(w * smoothness(z, boundary) + 0.5 * (z - v).abs().square().sum())

    for seed in range(5):
        assert objective(u + 0.1 * random(8, 5, seed=seed + 1)) > objective(u)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_firmly_non_expansive(boundary):
    for seed in range(5):
        a, b = random(3, 9, 11, seed=seed), random(3, 9, 11, seed=seed + 50)
        pa, pb = prox_smoothness(a, 2.0, boundary), prox_smoothness(b, 2.0, boundary)
        left = (pa - pb).abs().square().sum()
        assert left <= ((pa - pb).conj() * (a - b)).real.sum() + 1e-12
        assert left < (a - b).abs().square().sum()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_weight_zero_is_the_identity(boundary):
    v = random(2, 6, 7)
    assert torch.allclose(prox_smoothness(v, 0.0, boundary), v, atol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64, torch.complex128])
def test_shape_dtype_and_parts(boundary, dtype):
    v = random(2, 3, 6, 7, dtype=dtype)
    out = prox_smoothness(v, 1.5, boundary)
    assert out.shape == v.shape and out.dtype == dtype
    assert torch.allclose(out[1, 2], prox_smoothness(v[1, 2], 1.5, boundary), atol=1e-6)
    if dtype.is_complex:
        assert torch.allclose(out.imag, prox_smoothness(v.imag, 1.5, boundary), atol=1e-6)


def test_one_weight_per_batch_element():
    v = random(2, 3, 6, 7)
    weight = torch.tensor([0.5, 20.0], dtype=torch.float64)[:, None, None, None]
    out = prox_smoothness(v, weight)
    assert torch.allclose(out[0], prox_smoothness(v[0], 0.5))
    assert torch.allclose(out[1], prox_smoothness(v[1], 20.0))


def test_constant_images():
    v = torch.ones(8, 9, dtype=torch.complex128) * (2 - 1j)
    assert torch.allclose(prox_smoothness(v, 100.0, "neumann"), v, atol=1e-12)
    pulled = prox_smoothness(v, 10.0, "dirichlet").abs()
    assert pulled[0, 0] < 0.5 * pulled[4, 4] < pulled[4, 4] < v[0, 0].abs()
