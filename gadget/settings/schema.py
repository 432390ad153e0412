"""Settings of the gadget: the core's schema plus what concerns the scanner side."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pogmdm_core.settings import Section, Settings

MapName = Literal["image", "mean", "phase", "map", "std", "csm", "samples"]


class NoiseSettings(Section):
    """Receiver noise."""

    whiten: Literal["auto", "on", "off", "upstream"] = Field(
        default="auto",
        description="auto: whiten when noise readouts arrive; on: refuse to go on without; off: never; "
        "upstream: a NoiseAdjustGadget has consumed them and whitened, its noise level is known",
    )


class TrajectorySettings(Section):
    """How positions off the Cartesian grid are read."""

    columns: Literal["auto", "kxky", "kxky_dcf", "kxkykz"] = Field(
        default="auto",
        description="what the columns of a trajectory are; auto: a third one that is >= 0, varies and grows with the "
        "radius is a density weight, a constant one kz, anything else is refused",
    )
    unit: Literal[
        "auto", "normalized", "normalized_by_largest", "per_fov", "radians", "per_encoded_fov", "per_m", "rad_per_m"
    ] = Field(
        default="auto",
        description="edge of k-space is at 0.5 (normalized; by_largest: along the axis of the smallest pixels), N/2 "
        "(per_fov: cycles per reconSpace field of view), pi (radians); per_encoded_fov: cycles per encodedSpace field "
        "of view; per_m, rad_per_m: 1/m, rad/m; auto: the one that fits the header's matrix, "
        "or where none of the first three does, its field of view",
    )
    radial: Literal["auto", "uniform", "golden", "tiny_golden"] = Field(
        default="auto",
        description="angles of spokes that carry no trajectory; spoke number kspace_encode_step_1; uniform over 180 "
        "degrees, 111.25 or 23.6 degrees apart; auto: as the header's trajectoryDescription names them",
    )
    fov_factor: Annotated[float, Field(ge=1, le=2)] | Literal["auto"] = Field(
        default="auto",
        description="how much larger than the field of view the object is (off the grid only): reconstructed larger, "
        "then cropped; auto: 1.5 where that explains data which 1 does not, 1 with limits.recon_deadline_s",
    )


class WindowSettings(Section):
    """Overlapping frames of radial and spiral scans."""

    shots: int = Field(
        default=0, ge=0, le=65535, description="readouts of a frame, whatever their repetition; 0: frames by index"
    )
    step: int = Field(default=10, ge=1, le=65535, description="readouts from one frame to the next, at most shots")

    @model_validator(mode="after")
    def _no_gap(self) -> WindowSettings:
        if self.shots and self.step > self.shots:
            raise ValueError(f"step {self.step} is larger than shots {self.shots}: readouts would be left out")
        return self


class OutputSettings(Section):
    """Which images are sent, and as what."""

    maps: tuple[MapName, ...] = Field(
        default=("image", "std"), description="series to send: image, mean, phase, map, std, csm, samples"
    )
    estimate: Literal["auto", "map", "mean"] = Field(
        default="auto",
        description="what the image series shows: MAP estimate, posterior mean, or auto: the MAP where there is one "
        "(it measures better than the mean of a few samples)",
    )
    dtype: Literal["float32", "uint16"] = Field(
        default="float32",
        description="pixel type (coil maps are complex64); uint16: 0 to 4095 with one slope per series, in the Meta",
    )
    window: float | None = Field(
        default=None,
        gt=0,
        description="intensity of the largest pixel with dtype=uint16 (not of std); empty: 1.25 times the brightest of "
        "the first image",
    )
    order: Literal["together", "image_first"] = Field(
        default="together",
        description="image_first: the image of a frame is sent as soon as it is final, its standard deviation and all "
        "else when they are done, with the labels that came up by then; soonest with map.prior_weight given, as in "
        "the preset fast. Not with estimate=mean",
    )
    waveforms: Literal["drop", "pass"] = Field(
        default="drop", description="what becomes of waveforms (ECG, breathing) that enter with the readouts"
    )
    series_base: int = Field(default=0, ge=0, le=65000, description="added to every image_series_index")

    @field_validator("maps", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [word.strip() for word in value.split(",") if word.strip()]
        return value

    @field_validator("maps")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one map, each once")
        return value


class LimitsSettings(Section):
    """Where the gadget refuses instead of running out of memory or waiting for ever."""

    max_matrix: int = Field(default=1024, ge=8, le=8192, description="largest image matrix; readouts may be twice that")
    max_coils: int = Field(
        default=256, ge=1, le=1024, description="most channels that are reconstructed; more are compressed to so many"
    )
    max_message_bytes: int = Field(default=1 << 28, ge=1 << 12, description="largest single message")
    max_buffer_bytes: int = Field(
        default=8 << 30,
        ge=1 << 12,
        description="most readout data held at a time, read ahead and waiting for frames together; 1 KiB per readout "
        "on top",
    )
    idle_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=86400,
        description="seconds without a byte that end the scan; a message may take as long plus 0.1 s per byte",
    )
    recon_deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=86400,
        description="seconds a frame may take; then the best image so far is sent, labelled DEADLINE. Empty: no limit",
    )
    max_accel: float = Field(
        default=20.0,
        ge=1,
        le=1000,
        description="most points of the k-space grid per sampled one; off the grid per one with a sample near it, and "
        "only if shots are missing that the header announces",
    )


class GadgetSettings(Settings):
    """Everything the gadget can be told; `pogmdm_core.Settings` and the scanner side."""

    preset: str = Field(default="default", description="shipped preset: default, fast, quality, paper")
    prior: str = Field(default="default", description="name of shipped weights, or path of a .safetensors file")
    noise: NoiseSettings = Field(default_factory=NoiseSettings)
    trajectory: TrajectorySettings = Field(default_factory=TrajectorySettings)
    window: WindowSettings = Field(default_factory=WindowSettings)
    trigger: Literal["auto", "slice", "repetition", "measurement"] = Field(
        default="auto",
        description="what completes a frame. auto: any LAST_IN_SLICE/REPETITION/MEASUREMENT flag, or all "
        "lines present when another index begins (Cartesian); else that flag alone. The end of the scan always does",
    )
    output: OutputSettings = Field(default_factory=OutputSettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    on_failure: Literal["error", "fallback"] = Field(
        default="error", description="fallback: send a labelled zero-filled image when computing a frame fails"
    )
    dump: str = Field(
        default="",
        description="folder (mode 0700) for what scans send, to be replayed with pogmdm run; empty: nothing is kept",
    )
    log: Literal["debug", "info", "warning", "error"] = Field(default="info", description="log level (stderr)")
