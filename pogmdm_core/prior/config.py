"""What defines an untrained prior: the kinds of its two parts and their sizes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from pogmdm_core.prior.grid_mixture import GridMixtureExperts
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.prior.multiscale import DEFAULT_SCALES, MultiscaleBank
from pogmdm_core.prior.scale_mixture import ScaleMixtureExperts
from pogmdm_core.prior.shearlets import ShearletBank
from pogmdm_core.settings import Section


def _increasing(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] < value[1] < math.inf:
        raise ValueError(f"{value} is not 0 < lowest < highest")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_increasing)]


class ShearletConfig(Section):
    """The paper's filter bank."""

    kind: Literal["shearlet"] = "shearlet"
    tight_frame: float | None = Field(0.1, gt=0, lt=1, description="g0, or empty for the paper's own bank")

    def build(self) -> ShearletBank:
        """Make the bank."""
        return ShearletBank(self.tight_frame)


# a kernel of one tap has no zero-mean part; the upper limits keep a damaged file from asking for gigabytes
Dilation = Annotated[int, Field(ge=1, le=64)]
Side = Annotated[int, Field(ge=2, le=63)]
Filters = Annotated[int, Field(ge=1, le=128)]


class MultiscaleConfig(Section):
    """The learned multi-scale bank."""

    kind: Literal["multiscale"] = "multiscale"
    scales: tuple[tuple[Dilation, Side, Filters], ...] = Field(
        DEFAULT_SCALES, min_length=1, max_length=8, description="(dilation, side, filters) each"
    )
    tight_frame: float = Field(0.02, gt=0, lt=1, description="g0")

    def build(self) -> MultiscaleBank:
        """Make the bank."""
        return MultiscaleBank(self.scales, self.tight_frame)


class GridMixtureConfig(Section):
    """The paper's experts."""

    kind: Literal["grid_mixture"] = "grid_mixture"
    n_means: int = Field(125, ge=3, le=1025, description="mixture components per expert, odd")
    half_range: float = Field(0.5, gt=0, le=10, description="means lie on [-half_range, half_range]")

    @field_validator("n_means")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; a mean at 0 needs an odd number")
        return value

    def build(self, n_filters: int) -> GridMixtureExperts:
        """Make the experts."""
        return GridMixtureExperts(n_filters, self.n_means, self.half_range)


class ScaleMixtureConfig(Section):
    """Gaussian-scale-mixture experts."""

    kind: Literal["scale_mixture"] = "scale_mixture"
    n_scales: int = Field(14, ge=2, le=64, description="mixture components per expert")
    scale_range: Range = Field((0.004, 8.0), description="smallest and largest scale")
    n_knots: int = Field(1, ge=1, le=16, description="noise levels at which the mixture weights are learned")

    def build(self, n_filters: int) -> ScaleMixtureExperts:
        """Make the experts."""
        return ScaleMixtureExperts(n_filters, self.n_scales, self.scale_range, self.n_knots)


BankConfig = Annotated[ShearletConfig | MultiscaleConfig, Field(discriminator="kind")]
ExpertConfig = Annotated[GridMixtureConfig | ScaleMixtureConfig, Field(discriminator="kind")]


def build_prior(
    bank: ShearletConfig | MultiscaleConfig,
    experts: GridMixtureConfig | ScaleMixtureConfig,
    level_range: tuple[float, float],
    name: str,
) -> ProductPrior:
    """Make an untrained prior with widths measured."""
    filters = bank.build()
    prior = ProductPrior(filters, experts.build(filters.n_filters), level_range, name)
    prior.measure_widths()
    return prior
