"""Settings of the gadget: the core's schema plus what concerns the scanner side.

Later wins: schema defaults < preset < a service's own < YAML file < XML properties < overrides (JSON, ``--set``).
Reading the sources is `gadget.settings.sources`' work; here they are merged and validated.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gadget.errors import ConfigError
from gadget.settings import sources
from pogmdm_core.settings import SamplerSettings, Section, Settings

PRESETS = Path(__file__).parent / "presets"

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
    unit: Literal["auto", "normalized", "per_fov", "radians"] = Field(
        default="auto",
        description="edge of k-space is at 0.5 (normalized), N/2 (per_fov: cycles per reconSpace field of view), "
        "pi (radians); auto: the one that fits the header's matrix",
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


def load(
    preset: str | None = None,
    yaml: str | os.PathLike[str] | None = None,
    properties: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> GadgetSettings:
    """Merge all sources of settings and validate them.

    Parameters
    ----------
    preset
        Name of a shipped preset; wins over a ``preset`` in the other sources.
    yaml
        Path of a settings file; wins over a ``settings`` in `properties` and `overrides`.
    properties
        Dotted names to values, e.g. ``{"sampler.n_samples": "4"}``, as XML properties give them.
    overrides
        Like `properties`, and stronger (JSON of a client, ``--set``).
    defaults
        Like `properties`, and weaker than everything but a preset (what a service was started with). A settings file
        that they name is read beside one that others name.

    Raises
    ------
    ConfigError
        E101 unknown name, E103 wrong value, E104 no such preset, and those of `gadget.settings.sources`.
    """
    base, *named = (sources.nested(source or {}) for source in (defaults, properties, overrides))
    base_file, *files = (_file_of(source) for source in (base, *named))
    path = yaml or files[1] or files[0]
    layers = [sources.read_yaml(base_file) if base_file else {}, base, sources.read_yaml(path) if path else {}, *named]
    for layer in reversed(layers):
        preset = preset or layer.get("preset")
    preset = str(preset or "default")
    merged: dict[str, Any] = {}
    for layer in (_preset(preset), *layers, {"preset": preset}):
        merged = sources.merge(merged, _sampler_names_down(layer))
    return _validated(merged)


def _file_of(source: dict[str, Any]) -> str | None:
    """Take the name of a settings file out of a source."""
    name = source.pop("settings", None)
    if isinstance(name, dict):
        raise ConfigError(101, f"there is no setting 'settings.{next(iter(name), '')[:40]}'.", "settings names a file.")
    return name


def from_xml(text: bytes) -> GadgetSettings:
    """Settings from the ``<configuration>`` node that Gadgetron hands over, as it was sent; nothing means defaults.

    Raises
    ------
    ConfigError
        Those of `gadget.settings.sources.parse_configuration`, `gadget.settings.sources.xml_properties` and `load`.
    """
    config = sources.parse_configuration(text)
    return load(properties={} if config is None else sources.xml_properties(config))


def _preset(name: str) -> dict[str, Any]:
    available = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in available:
        raise ConfigError(
            104,
            f"there is no preset {name[:40]!r}{_did_you_mean(name, available)}.",
            f"Presets: {', '.join(available)}.",
        )
    return sources.read_yaml(PRESETS / f"{name}.yaml")


def _sampler_names_down(layer: dict[str, Any]) -> dict[str, Any]:
    """Move sampler names given at the top into their section, so that layers merge."""
    short = {k: v for k, v in layer.items() if k in SamplerSettings.model_fields}
    rest = {k: v for k, v in layer.items() if k not in short}
    return sources.merge(rest, {"sampler": short}) if short else rest


def _validated(values: dict[str, Any]) -> GadgetSettings:
    try:
        return GadgetSettings(**values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        raise ConfigError(
            101,
            f"there is no setting {path[:80]!r}{_did_you_mean(path, known_names())}{more}.",
            "List them with: pogmdm configs show --schema",
        )
    found = "" if isinstance(first["input"], dict) else f" is {str(first['input'])[:60]!r}:"
    reason = first["msg"].removeprefix("Value error, ")
    raise ConfigError(103, f"setting {path or 'combination'}{found} {reason}{more}.")


def known_names(model: type[BaseModel] = GadgetSettings, prefix: str = "") -> list[str]:
    """All dotted names of the schema."""
    names = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += known_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _did_you_mean(name: str, known: list[str]) -> str:
    tails = {full.rpartition(".")[2]: full for full in reversed(known)}
    # by whole name where a section is given, else (or if that is unlike any) by the last part
    close = difflib.get_close_matches(name, known, n=1) if "." in name or tails.keys() == set(known) else []
    close = close or [tails[t] for t in difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=1)]
    return f" (did you mean {close[0]!r}?)" if close else ""
