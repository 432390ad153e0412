"""The dot test: <A x, y> = <x, A^H y>, shapes first, because flattening hides errors."""

from collections.abc import Sequence

import torch

TOLERANCE = {torch.complex128: 1e-10, torch.complex64: 1e-4}


def dot_test(
    operator,
    domain: Sequence[int],
    target: Sequence[int],
    dtype: torch.dtype = torch.complex128,
    n_draws: int = 10,
) -> None:
    """Check shapes, dtypes and adjointness of `operator` from `domain` to `target` on random draws.

    The two sides are compared relative to |A x| |y|, the largest they can be.
    """
    for shape, announced in ((domain, operator.domain), (target, operator.range)):
        assert tuple(shape)[-len(announced) :] == announced, f"the operator announces {announced} for {tuple(shape)}"
    generator = torch.Generator().manual_seed(0)
    seen = 0.0
    for _ in range(n_draws):
        x = torch.randn(*domain, dtype=dtype, generator=generator)
        y = torch.randn(*target, dtype=dtype, generator=generator)
        ax, ahy = operator.forward(x), operator.adjoint(y)
        assert ax.shape == tuple(target), f"forward gives {tuple(ax.shape)}, expected {tuple(target)}"
        assert ahy.shape == tuple(domain), f"adjoint gives {tuple(ahy.shape)}, expected {tuple(domain)}"
        assert ax.dtype == dtype and ahy.dtype == dtype, f"dtype changed: {ax.dtype}, {ahy.dtype}"
        left = torch.vdot(y.flatten(), ax.flatten())
        right = torch.vdot(ahy.flatten(), x.flatten())
        size = float(ax.norm() * y.norm())
        assert abs(left - right) <= TOLERANCE[dtype] * size, f"<y, A x> = {left}, <A^H y, x> = {right}"
        seen = max(seen, size)
    assert seen > 0, "the operator is zero"


def normal_test(operator, domain: Sequence[int], dtype: torch.dtype = torch.complex128) -> None:
    """Check that normal(x) is adjoint(forward(x))."""
    x = torch.randn(*domain, dtype=dtype, generator=torch.Generator().manual_seed(1))
    long, short = operator.adjoint(operator.forward(x)), operator.normal(x)
    assert short.shape == long.shape and short.dtype == long.dtype
    assert (short - long).norm() <= TOLERANCE[dtype] * long.norm()
