"""The coils' smoothness prior s(v) = 1/2 sum_c ||D v_c||^2 and its proximal map in closed form.

prox_{w s}(v) = B^T ( (B v) / (1 + w T) ), with B the sine (Dirichlet: zero just outside the field
of view, DST-I) or cosine (Neumann: free edge, DCT-II) basis that diagonalises the Laplacian with
eigenvalues T. This is eq. 11 of the paper with the weight in the right place.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch


@lru_cache(maxsize=16)
def _basis(n: int, boundary: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal basis `(frequency, position)` and eigenvalues of the 1-D negative Laplacian."""
    position = torch.arange(n, dtype=torch.float64)
    if boundary == "dirichlet":
        frequency = torch.arange(1, n + 1, dtype=torch.float64)
        basis = torch.sin(math.pi * frequency[:, None] * (position + 1) / (n + 1)) * math.sqrt(2 / (n + 1))
        eigenvalues = 2 - 2 * torch.cos(math.pi * frequency / (n + 1))
    else:
        frequency = torch.arange(n, dtype=torch.float64)
        basis = torch.cos(math.pi * frequency[:, None] * (position + 0.5) / n) * math.sqrt(2 / n)
        basis[0] /= math.sqrt(2)
        eigenvalues = 2 - 2 * torch.cos(math.pi * frequency / n)
    return basis.to(device), eigenvalues.to(device)


def prox_smoothness(v: torch.Tensor, weight: torch.Tensor | float, boundary: str = "dirichlet") -> torch.Tensor:
    """Proximal map of weight * s.

    Parameters
    ----------
    v
        Coils, real or complex, `(..., y, x)`.
    weight
        w >= 0, a number or broadcastable to `v`.
    boundary
        ``"dirichlet"`` or ``"neumann"``.

    Returns
    -------
        argmin_u weight s(u) + 1/2 ||u - v||^2, shape and dtype of `v`.
    """
    basis_y, eigen_y = _basis(v.shape[-2], boundary, v.device)
    basis_x, eigen_x = _basis(v.shape[-1], boundary, v.device)
    basis_y, basis_x = basis_y.to(v.dtype), basis_x.to(v.dtype)
    eigen = (eigen_y[:, None] + eigen_x[None, :]).to(v.real.dtype if v.is_complex() else v.dtype)
    coefficients = basis_y @ v @ basis_x.T
    return basis_y.T @ (coefficients / (1 + weight * eigen)) @ basis_x
