"""Linear operators: forward, adjoint, and the algebra of both.

``A(x)`` and ``A @ x`` apply an operator, ``A.H`` is its adjoint, ``A @ B`` first applies B. These check the shape of
what they are given; `forward`, `adjoint` and `normal`, which iterations call, do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import overload

import torch

from pogmdm_core import checks

Shape = tuple[int, ...]


class LinearOperator(ABC):
    """A linear map between complex arrays; leading batch axes are allowed on both sides."""

    @property
    @abstractmethod
    def domain(self) -> Shape:
        """Last axes of what it is applied to."""

    @property
    @abstractmethod
    def range(self) -> Shape:
        """Last axes of what it gives."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator."""

    @abstractmethod
    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint: <forward(x), y> = <x, adjoint(y)>."""

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Apply adjoint(forward(x)); overridden where a shorter way exists."""
        return self.adjoint(self.forward(x))

    @property
    def H(self) -> LinearOperator:  # noqa: N802 - as it is written
        """The adjoint as an operator."""
        return _Adjoint(self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator to an array whose last axes are its domain; DataError E305 for another shape."""
        checks.operand(type(self).__name__, x, self.domain)
        return self.forward(x)

    @overload
    def __matmul__(self, other: torch.Tensor) -> torch.Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    def __matmul__(self, other: torch.Tensor | LinearOperator) -> torch.Tensor | LinearOperator:
        """Apply to an array, or combine with an operator that is applied before."""
        return _Product(self, other) if isinstance(other, LinearOperator) else self(other)


class _Adjoint(LinearOperator):
    """A^H of an operator A."""

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator

    @property
    def domain(self) -> Shape:
        return self._operator.range

    @property
    def range(self) -> Shape:
        return self._operator.domain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._operator.adjoint(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._operator.forward(y)

    @property
    def H(self) -> LinearOperator:  # noqa: N802
        return self._operator


class _Product(LinearOperator):
    """A B of operators A and B; A^H A is A's normal operator."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        checks.product(type(left).__name__, left.domain, type(right).__name__, right.range)
        self._left, self._right = left, right
        self._is_normal = left.H is right

    @property
    def domain(self) -> Shape:
        return self._right.domain

    @property
    def range(self) -> Shape:
        return self._left.range

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._right.normal(x) if self._is_normal else self._left.forward(self._right.forward(x))

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._right.normal(y) if self._is_normal else self._right.adjoint(self._left.adjoint(y))


def inner(a: torch.Tensor, b: torch.Tensor, n_axes: int) -> torch.Tensor:
    """Real part of <a, b> over the last `n_axes` axes, kept as size 1, in the precision of `a`, summed in double."""
    axes = tuple(range(-n_axes, 0))
    total = (a.real * b.real + a.imag * b.imag).sum(dim=axes, keepdim=True, dtype=torch.float64)
    return total.to(a.real.dtype)
