"""The interface every linear operator of this package has."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class LinearOperator(ABC):
    """A linear map between complex arrays; leading batch axes are allowed on both sides."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator."""

    @abstractmethod
    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Apply the adjoint: <forward(x), y> = <x, adjoint(y)>."""

    def normal(self, x: torch.Tensor) -> torch.Tensor:
        """Apply adjoint(forward(x)); overridden where a shorter way exists."""
        return self.adjoint(self.forward(x))


def inner(a: torch.Tensor, b: torch.Tensor, n_axes: int) -> torch.Tensor:
    """Real part of <a, b> over the last `n_axes` axes, kept as size 1, in the precision of `a`."""
    axes = tuple(range(-n_axes, 0))
    return (a.real * b.real + a.imag * b.imag).sum(dim=axes, keepdim=True)
