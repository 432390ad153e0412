"""What users hold on to: names of the Python API, settings, Meta attributes, commands and chains.

    python tests/helpers/surface.py > tests/golden/surface.json

writes it anew; a change of that file is a change for users, and belongs into the CHANGELOG.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python_api():
    """Exported names; parameters of functions, fields of values."""
    import pogmdm_core as pg

    def parameters(function):
        return [str(p).partition(":")[0].partition(" =")[0] for p in inspect.signature(function).parameters.values()]

    return {
        "exported": sorted(pg.__all__),
        "reconstruct": parameters(pg.reconstruct),
        "load_prior": parameters(pg.load_prior),
        "zero_filled": parameters(pg.zero_filled),
        "KSpaceFrame.cartesian": parameters(pg.KSpaceFrame.cartesian),
        "KSpaceFrame.noncartesian": parameters(pg.KSpaceFrame.noncartesian),
        "ReconResult": [field.name for field in dataclasses.fields(pg.ReconResult)],
        "SamplerStatus": {status.name: status.value for status in pg.SamplerStatus},
        "exit status": {name: getattr(pg, name).exit_code for name in pg.__all__ if name.endswith("Error")},
    }


def settings():
    """Dotted name to default of every setting, and what the presets change."""
    from gadget.settings.configs import presets
    from gadget.settings.load import load

    def flat(values, before=""):
        for name, value in values.items():
            if isinstance(value, dict) and not name.endswith("_factors"):
                yield from flat(value, f"{before}{name}.")
            else:
                yield f"{before}{name}", value

    defaults = dict(flat(load().model_dump(mode="json")))
    chosen = {name: dict(flat(load(name).model_dump(mode="json"))) for name in presets()}
    return {
        "defaults": defaults,
        "presets": {
            name: {key: value for key, value in values.items() if value != defaults[key]}
            for name, values in chosen.items()
        },
    }


def meta():
    """Series number to the names of its Meta attributes, of all series at once."""
    from helpers.frames import emitted

    maps = "image,mean,phase,map,std,csm,samples"
    _, _, emitter, images = emitted(**{"output.maps": maps})
    del emitter
    return {str(int(image.image_series_index)): sorted(image.meta) for image in images}


def commands():
    """Options and arguments of every command."""
    from gadget.cli.command_line import _parser

    def options(parser):
        found = {}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {name: options(inner) for name, inner in action.choices.items()}
            elif action.dest != "help":
                found[" ".join(action.option_strings) or action.metavar] = str(action.default)
        return found

    return options(_parser())


def chains():
    """Shipped chains, and the properties of our node in each."""
    from xml.etree import ElementTree

    found = {}
    for path in sorted((ROOT / "xml_configs").glob("*.xml")):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - our own
        found[path.name] = sorted({p.get("name") for p in root.findall(".//external/configuration/property")})
    return found


def surface():
    return {
        "python": python_api(),
        "settings": settings(),
        "meta": meta(),
        "commands": commands(),
        "chains": chains(),
    }


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    sys.stdout.write(json.dumps(surface(), indent=1, sort_keys=True) + "\n")
