"""Where settings come from: YAML files, XML properties, dotted names. Parsing only, no schema."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import yaml

from gadget.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
# What Gadgetron sends where a chain has no <configuration>: an XML declaration and nothing else.
_NOTHING = re.compile(rb"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*", re.DOTALL)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(105, f"the key {str(key)[:40]!r} in line {key_node.start_mark.line + 1} is no name.")
            if key in seen:
                raise ConfigError(102, f"{key!r} is given twice, again in line {key_node.start_mark.line + 1}.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, object]:
    """Read a settings file.

    Raises
    ------
    ConfigError
        E102 duplicate key, E105 not readable as YAML settings, E106 over 1 MB, E107 no such file.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(107, f"the settings file {file.name!r} cannot be read: {error.strerror}.") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(106, f"the settings file {file.name!r} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not text"
        raise ConfigError(105, f"the settings file {file.name!r}{where} is not plain YAML: {reason}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(105, f"the settings file {file.name!r} must hold names and values.")
    return nested(values)


def parse_configuration(text: bytes) -> Element | None:
    """Root element of a configuration as it was sent; None where it is missing.

    Missing is an empty text and one that holds an XML declaration or comments alone. A byte order mark and NUL bytes
    at the end are left out.

    Raises
    ------
    ConfigError
        E108 not XML, or XML with a document type, whose entities may name files or grow without end.
    """
    text = text.removeprefix(b"\xef\xbb\xbf").strip(b"\0 \t\r\n")
    if _NOTHING.fullmatch(text):
        return None
    if b"<!DOCTYPE" in text.replace(b"\0", b""):
        raise ConfigError(108, "the configuration has a document type, which may hide anything.", "Leave it out.")
    try:
        return ElementTree.fromstring(text)  # noqa: S314 - no document type, so no entities
    except (ElementTree.ParseError, ValueError, LookupError):
        raise ConfigError(108, "the configuration that was sent is not XML.", "Check the chain's XML file.") from None


def xml_properties(config: Element) -> dict[str, str]:
    """Collect ``<property name= value=>`` and ``<property><name/><value/></property>``.

    Empty values count as not given.

    Raises
    ------
    ConfigError
        E108 anything else below ``<configuration>``, or settings, weights or a dump that are not named by an absolute
        path (which folder a running server works in, nobody can tell); E102 a name given twice.
    """
    found: dict[str, str] = {}
    for child in config:
        if child.tag != "property":
            raise ConfigError(
                108,
                f"<configuration> holds <{str(child.tag)[:40]}>.",
                'Write <property name="..." value="..."/>.',
            )
        name = child.get("name", child.findtext("name"))
        value = child.get("value", child.findtext("value"))
        if not name or not name.strip() or value is None:
            raise ConfigError(108, "a <property> has no name or no value.", 'Write <property name="..." value="..."/>.')
        name, value = name.strip(), value.strip()
        if name in found:
            raise ConfigError(102, f"the property {name[:80]!r} is given twice.")
        found[name] = value
    for name in ("settings", "prior", "dump"):
        path = PurePath(found.get(name, ""))
        is_file = bool(path.name) and (name != "prior" or len(path.parts) > 1 or bool(path.suffix))
        if is_file and (not path.is_absolute() or ".." in path.parts):
            raise ConfigError(108, f"the property {name!r} names {str(path)[:60]!r}.", "Give its full path.")
    return {name: value for name, value in found.items() if value}


def nested(flat: Mapping[str, object]) -> dict[str, object]:
    """Turn dotted names into sections: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``."""
    result: dict[str, object] = {}
    for name, value in flat.items():
        first, *below = str(name).split(".")
        inner: object = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(below):
            inner = {part: inner}
        result = merge(result, {first: inner})
    return result


def merge(base: Mapping[str, object], top: Mapping[str, object]) -> dict[str, object]:
    """Merge sections; `top` wins."""
    merged = dict(base)
    for name, value in top.items():
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
