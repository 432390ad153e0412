"""From the sources of settings to validated settings.

Later wins: schema defaults < preset < a service's own < YAML file < XML properties < overrides (JSON, ``--set``).
Reading the sources is `gadget.settings.sources`' work; here they are merged and validated.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from gadget.errors import ConfigError
from gadget.settings import configs, sources
from gadget.settings.schema import GadgetSettings
from pogmdm_core.settings import SamplerSettings, renamed


def load(
    preset: str | None = None,
    yaml: str | os.PathLike[str] | None = None,
    properties: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
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
    named_preset: object = preset
    for layer in reversed(layers):
        named_preset = named_preset or layer.get("preset")
    preset = str(named_preset or "default")
    last: dict[str, object] = {"preset": preset}
    merged: Mapping[str, object] = {}
    for layer in (_preset(preset), *layers, last):
        _refuse_old_names(layer)
        merged = sources.merge(merged, _sampler_names_down(layer))
    return _validated(merged)


def _file_of(source: dict[str, object]) -> str | None:
    """Take the name of a settings file out of a source."""
    name = source.pop("settings", None)
    if isinstance(name, dict):
        raise ConfigError(101, f"there is no setting 'settings.{next(iter(name), '')[:40]}'.", "settings names a file.")
    return None if name is None else str(name)


def from_xml(text: bytes) -> GadgetSettings:
    """Settings from the ``<configuration>`` node that Gadgetron hands over, as it was sent; nothing means defaults.

    Raises
    ------
    ConfigError
        Those of `gadget.settings.sources.parse_configuration`, `gadget.settings.sources.xml_properties` and `load`.
    """
    config = sources.parse_configuration(text)
    return load(properties={} if config is None else sources.xml_properties(config))


def _preset(name: str) -> dict[str, object]:
    available = configs.presets()
    if name not in available:
        raise ConfigError(
            104,
            f"there is no preset {name[:40]!r}{_did_you_mean(name, list(available))}.",
            f"Presets: {', '.join(available)}.",
        )
    return sources.read_yaml(available[name])


def _refuse_old_names(layer: dict[str, object]) -> None:
    old = renamed(layer)
    if old:
        raise ConfigError(101, f"the setting {old[0]!r} is now {old[1]!r}.")


def _sampler_names_down(layer: dict[str, object]) -> dict[str, object]:
    """Move sampler names given at the top into their section, so that layers merge."""
    short = {k: v for k, v in layer.items() if k in SamplerSettings.model_fields}
    rest = {k: v for k, v in layer.items() if k not in short}
    return sources.merge(rest, {"sampler": short}) if short else rest


def _validated(values: Mapping[str, object]) -> GadgetSettings:
    try:
        return GadgetSettings.model_validate(values)
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
