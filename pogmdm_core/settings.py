"""Settings of the reconstruction: one frozen schema, documented field by field.

`gadget.settings.schema` extends the same schema with what concerns the scanner side, so there is one
set of names from XML property to sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self  # pydantic's own; in typing from Python 3.11 on

from pogmdm_core.registry import SAMPLERS

# Names that settings had before.
_RENAMED = {
    "sampler.map_steps": "map.steps",
    "sampler.map_level": "map.level",
    "sampler.map_tolerance": "map.tolerance",
    "sampler.prior_weight": "map.prior_weight",
}

# Learned by benchmarks/calibration.py, which prints them.
SAMPLE_FACTORS: Mapping[Literal["lines", "points", "shots"], float] = {"lines": 2.3, "points": 3.2, "shots": 2.5}
# A left-out shot lies in a gap twice as wide as those between the acquired ones; for lines the gaps are modelled, and
# random points have neighbours all the same.
FOLD_FACTORS: Mapping[Literal["lines", "points", "shots"], float] = {"lines": 1.0, "points": 1.0, "shots": 1.6}
INTERVAL_FACTORS = (0.63, 1.26, 2.12)


class Section(BaseModel):
    """A frozen group of settings in which unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def renamed(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """First setting under a name it had before, among the names at the top and in their sections, and its name now."""
    for old, new in _RENAMED.items():
        section, _, name = old.partition(".")
        inside = values.get(section)
        if name in values:
            return name, new
        if isinstance(inside, Mapping) and name in inside:
            return old, new
    return None


class SamplerSettings(Section):
    """Posterior sampling."""

    method: str = Field(
        "renoise",
        description="renoise: denoise, conjugate-gradient data step, fresh noise; "
        "langevin: annealed preconditioned Langevin, the honest posterior under the model when run long; "
        "paper: Algorithm 1 of the paper",
        json_schema_extra={"enum": list(SAMPLERS)},
    )
    n_samples: int = Field(4, ge=0, le=256, description="posterior samples; 0 gives the MAP image alone")
    n_steps: int = Field(20, ge=1, le=5000, description="noise levels the sampler visits")
    start_level: float = Field(
        0.2, gt=0.05, le=10, description="noise level the sampler starts from, units of the image scale"
    )
    end_level: float | None = Field(
        None, gt=0, le=1, description="last noise level, units of the image scale; empty: from the noise"
    )
    corrector: int = Field(1, ge=0, le=20, description="Langevin corrector steps per level (paper only)")
    likelihood: Literal["exact", "unit", "annealed"] = Field(
        "exact",
        description="exact: weighted by the measured noise (renoise, langevin); "
        "unit: step 1 of the paper; annealed: step level^2/(level^2 + noise^2) (both paper only)",
    )
    cg_steps: int = Field(4, ge=1, le=50, description="conjugate-gradient steps of one data step (not paper)")
    langevin_step: float = Field(0.3, gt=0, le=1, description="step of langevin; variances are off by up to half of it")
    seed: int = Field(0, ge=0, le=2**43 - 1, description="sample i uses a generator of its own, seeded from (seed, i)")
    batch: int = Field(0, ge=0, description="samples computed at once; 0 chooses. Results do not depend on it")

    @field_validator("method")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in SAMPLERS:
            raise ValueError(f"expected one of {', '.join(SAMPLERS)}")
        return value

    @model_validator(mode="after")
    def _likelihood_belongs_to_method(self) -> SamplerSettings:
        if self.method != "paper" and self.likelihood != "exact":
            raise ValueError(f"likelihood={self.likelihood} belongs to method=paper; {self.method} uses exact")
        if self.method == "paper" and self.likelihood == "exact":
            raise ValueError("method=paper needs likelihood=unit or annealed")
        if self.end_level is not None and self.end_level >= self.start_level:
            raise ValueError(f"end_level {self.end_level} must be below start_level {self.start_level}")
        return self


class MapSettings(Section):
    """Maximum a-posteriori (MAP) image."""

    steps: int = Field(200, ge=0, le=5000, description="most iterations; 0 skips it")
    tolerance: float = Field(3e-4, ge=0, lt=1, description="relative change per step at which it stops")
    level: float | None = Field(
        None, gt=0, le=0.5, description="noise level at which the prior is taken; empty: from the noise"
    )
    prior_weight: float | None = Field(
        None,
        gt=0,
        le=10,
        description="weight of the prior against the data; empty: 1 or 0.5, whichever predicts held-out k-space better "
        "(uncertainty.method calibrated or folds), else 1",
    )


class CoilSettings(Section):
    """Coil sensitivities: how they are found and whether they move during sampling."""

    n_virtual: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] | None = Field(
        None,
        description="compress to this many virtual coils after whitening; auto: to those that hold 99.9 % of the "
        "signal, which is faster and costs up to 0.6 dB; empty: all",
    )
    init: Literal["nlinv", "zero_filled", "acs"] = Field(
        "nlinv", description="warm start: joint Gauss-Newton estimate, zero-filled (paper), or k-space centre"
    )
    newton_steps: int = Field(
        16,
        ge=1,
        le=20,
        description="most Gauss-Newton steps of the nlinv warm start; it stops when the residual reaches the noise",
    )
    wrapped: Literal["auto", "off"] = Field(
        "auto",
        description="objects larger than the field of view of a Cartesian scan, which fold back: auto reconstructs "
        "on one twice as large where the image reaches an edge and that explains k-space better (init nlinv)",
    )
    update_every: int = Field(
        0, ge=0, le=1000, description="update the maps every so many sampler levels; 0 keeps the warm start's"
    )
    smoothness: float = Field(1.0, gt=0, le=1000, description="weight mu of the smoothness prior in an update")
    boundary: Literal["dirichlet", "neumann"] = Field(
        "dirichlet", description="maps at the edge of the field of view: zero or free"
    )


# Methods of the uncertainty that rest on held-out k-space.
HELD_OUT_METHODS = ("calibrated", "folds")


class UncertaintySettings(Section):
    """The standard-deviation map."""

    method: Literal["calibrated", "folds", "samples", "off"] = Field(
        "calibrated",
        description="calibrated: scale and pattern from held-out k-space and posterior samples; folds: from "
        "held-out k-space alone, no samples are drawn; samples: raw spread of the posterior samples, "
        "relative, not a calibrated error bar; off: no map, no samples unless asked for",
    )
    n_folds: int = Field(4, ge=2, le=16, description="parts of the acquired k-space that are left out in turn")
    sample_factors: dict[Literal["lines", "points", "shots"], float] = Field(
        default_factory=lambda: dict(SAMPLE_FACTORS),
        description="how many times too narrow the samples are, by how k-space was sampled: learned on development "
        "scans (calibrated only)",
    )
    fold_factors: dict[Literal["lines", "points", "shots"], float] = Field(
        default_factory=lambda: dict(FOLD_FACTORS),
        description="how many times larger the error of left-out samples is than that of samples never acquired, by "
        "how k-space was sampled: learned on development scans (calibrated and folds)",
    )
    interval_factors: tuple[float, float, float] = Field(
        INTERVAL_FACTORS,
        description="half-widths of the 50, 80 and 95 % intervals in standard deviations, learned on development "
        "scans (calibrated and folds)",
    )


class Settings(Section):
    """Everything `reconstruct` can be told.

    The names of the `sampler` section may be given directly: ``Settings(n_samples=10)`` is
    ``Settings(sampler={"n_samples": 10})``.
    """

    sampler: SamplerSettings = Field(default_factory=SamplerSettings)
    map: MapSettings = Field(default_factory=MapSettings)
    coils: CoilSettings = Field(default_factory=CoilSettings)
    uncertainty: UncertaintySettings = Field(default_factory=UncertaintySettings)
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU when there is one; cpu; cuda[:n]"
    )

    @model_validator(mode="after")
    def _folds_need_the_map(self) -> Settings:
        if self.uncertainty.method in HELD_OUT_METHODS and self.map.steps == 0:
            raise ValueError(
                f"uncertainty.method={self.uncertainty.method} needs map.steps > 0; set it to samples or off"
            )
        return self

    def joint_start_only(self) -> Self:
        """Return a copy for image and coils from the data alone: no MAP, no samples, no standard deviation."""
        parts: dict[str, Section] = {
            "sampler": self.sampler.model_copy(update={"n_samples": 0}),
            "map": self.map.model_copy(update={"steps": 0}),
            "uncertainty": self.uncertainty.model_copy(update={"method": "off"}),
        }
        return self.model_copy(update=parts)

    @model_validator(mode="before")
    @classmethod
    def _sampler_names_at_top(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        old = renamed(values)
        if old:
            raise ValueError(f"{old[0]} is now {old[1]}")
        short = {k: v for k, v in values.items() if k in SamplerSettings.model_fields}
        if not short:
            return values
        sampler = values.get("sampler", {})
        if isinstance(sampler, SamplerSettings):
            sampler = sampler.model_dump(exclude_unset=True)
        if not isinstance(sampler, dict):
            raise ValueError(f"the section sampler holds {sampler!r}, expected names and values")
        clash = sorted(short.keys() & sampler.keys())
        if clash:
            raise ValueError(f"{clash[0]} is given twice: at the top and in the section sampler")
        rest = {k: v for k, v in values.items() if k not in short}
        return {**rest, "sampler": {**sampler, **short}}
