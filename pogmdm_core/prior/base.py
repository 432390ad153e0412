"""What the reconstruction asks of a prior, and the two parts our own is made of.

Any object with the members of `Prior` will do. `ProductPrior` (`.model`) is one, of a `FilterBank` and `Experts`: a
further bank or kind of experts is a subclass, and its settings in `.config`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from typing_extensions import Self  # pydantic's own; in typing from Python 3.11 on

from pogmdm_core.prior.tables import ScoreTable


@runtime_checkable
class Prior(Protocol):
    """An image prior at every noise level.

    Images are real or complex, `(..., y, x)`, of intensity about 1. `level` is the standard deviation of the noise that
    they carry per real and imaginary part, > 0. On a CPU several threads ask at the same time.

    Attributes
    ----------
    name
        What to call it in results.
    sha256
        Of its weights file, or an empty string.
    level_range
        Lowest and highest noise level it was trained on.
    """

    name: str
    sha256: str
    level_range: tuple[float, float]

    def score(self, x: torch.Tensor, level: float, /) -> torch.Tensor:
        """Gradient of the log prior, shape and dtype of `x`."""

    def denoise(self, y: torch.Tensor, level: float, /) -> torch.Tensor:
        """Expected clean image given a noisy one, shape and dtype of `y`."""

    def energy(self, x: torch.Tensor, level: float, /) -> torch.Tensor:
        """Minus the log prior up to a constant, `(...)`."""

    def lipschitz_bound(self, level: float, shape: tuple[int, int], /) -> float:
        """Upper bound of the curvature of the energy for images of a shape `(y, x)`."""

    def to(self, device: torch.device, /) -> Self:
        """Return the same on a device."""


class FilterBank(torch.nn.Module, ABC):
    """Real filters whose spectra can be sampled on any grid.

    Attributes
    ----------
    kind
        Its name in weights files.
    n_filters
        Number of filters.
    gain
        Learned, one number per filter; `gains` says what it does.
    """

    kind: str
    n_filters: int
    gain: torch.nn.Parameter

    @abstractmethod
    def spectra(self, shape: tuple[int, int]) -> torch.Tensor:
        """Spectra of all filters on an `(ny, nx)` torus, complex `(n_filters, ny, nx)`, DC at [0, 0]."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild this bank."""

    @abstractmethod
    def filter_parameters(self) -> list[torch.nn.Parameter]:
        """Filter taps, for the optimiser's group of that name."""

    @abstractmethod
    def project(self) -> None:
        """Put the parameters back on their constraints."""

    @abstractmethod
    def scale_groups(self) -> list[tuple[str, torch.Tensor]]:
        """Filters of one scale each: a label, and which they are, bool `(n_filters,)`."""

    def gains(self) -> torch.Tensor:
        """What each filter is multiplied with, `(n_filters,)`."""
        return self.gain


class Experts(torch.nn.Module, ABC):
    """One-dimensional densities psi_k, one per filter, taken to the powers a_k.

    Attributes
    ----------
    kind
        Its name in weights files.
    n_filters
        Number of experts.
    width
        Standard deviation of filtered white noise of standard deviation 1, `(n_filters,)`.
    """

    kind: str
    n_filters: int
    width: torch.Tensor

    @abstractmethod
    def config(self) -> dict[str, object]:
        """Return what the weights file must record to rebuild these experts."""

    @abstractmethod
    def mixture_parameters(self) -> list[torch.nn.Parameter]:
        """Mixture weights, for the optimiser's group of that name."""

    @abstractmethod
    def scalar_parameters(self) -> list[torch.nn.Parameter]:
        """Exponents, for the optimiser's group of scalars."""

    @abstractmethod
    def exponents(self, level: torch.Tensor | float) -> torch.Tensor:
        """a_k at a noise level (or a batch of levels in front), `(..., n_filters)`."""

    @abstractmethod
    def log_psi(self, u: torch.Tensor, level: float) -> torch.Tensor:
        """Logarithm of psi_k(u), direct; `u` real `(n_filters, ...)`."""

    @abstractmethod
    def score(self, u: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Direct d/du log psi_k and its derivative; `u` real `(n_filters, n)`, any precision."""

    @abstractmethod
    def table(self, level: float, tolerance: float = 1e-5) -> ScoreTable:
        """Table of a_k d/du log psi_k(u, level), error-checked against `score`."""

    @abstractmethod
    def curvature_bound(self, level: float) -> torch.Tensor:
        """Upper bound of the curvature of -a_k log psi_k, `(n_filters,)`."""

    @abstractmethod
    def training_score(self, u: torch.Tensor, levels: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """Differentiable a_k phi_k(u) of a batch.

        Parameters
        ----------
        u
            Filter responses, real `(batch, n_filters, n)`.
        levels
            Noise level of each batch element, `(batch,)`.
        widths
            xi_k, `(n_filters,)`.
        """
