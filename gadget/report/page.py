"""One self-contained HTML page about a reconstruction: its pictures, its facts, what the std map means."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from gadget.files.atomic import complete_file
from gadget.report.preview import write_previews

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1f2328;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1,h2{font-weight:600}figure{display:inline-block;width:48%;min-width:320px;margin:.5rem 1% 1rem 0;vertical-align:top}
img{max-width:100%}figcaption,.small{color:#59636e;font-size:.9rem}table{border-collapse:collapse}
td{padding:.2rem .8rem .2rem 0;border-bottom:1px solid #d1d9e0;vertical-align:top;overflow-wrap:anywhere}"""
_MEANING = """<p>The standard deviation has the units of the image. It is large where other images would explain the
measured k-space as well. Neighbouring pixels err together, and a small structure that is missing from the image has a
small standard deviation there: the map is no probability of a lesion. It knows nothing of motion, field errors or
anatomy unlike the training images.</p>"""
_PREFIX = "POGMDM_"


def write_report(source: Path, path: Path, group: str = "dataset", overwrite: bool = False) -> None:
    """Write the page of an output file of `pogmdm run`.

    Parameters
    ----------
    source
        The output file.
    path
        The .html file to make; it appears when complete.
    group
        Group that holds the series.
    overwrite
        Replace an existing file.

    Raises
    ------
    OutputError
        E601, E603, and E606 when there is no image series to show.
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = [
            _figure(picture, _facts(source, group, picture.stem))
            for picture in write_previews(source, Path(folder), group)
        ]
    first = _facts(source, group, _first_series(source, group))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in first.items())
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(source.name)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{escape(source.name)}</h1>"
        f"<p class='small'>Research use only, not for diagnostic use.</p>{''.join(figures)}"
        f"<h2>What the standard deviation means</h2>{_MEANING}<h2>Facts</h2><table>{rows}</table></body></html>\n"
    )
    with complete_file(path, overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _figure(picture: Path, facts: Mapping[str, str]) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    name = escape(picture.stem)
    caption = escape(facts.get("Std") or f"image ({facts.get('Estimate', 'no estimate named')})")
    picture_tag = f"<img alt='{name}' src='data:image/png;base64,{data}'>"
    return f"<figure>{picture_tag}<figcaption>{name}: {caption}</figcaption></figure>"


def _first_series(source: Path, group: str) -> str:
    import h5py

    with h5py.File(source, "r") as file:
        names: list[str] = [name for name in file[group] if name.rpartition("_")[2].isdigit()]
    return min(names, key=lambda name: int(name.rpartition("_")[2]))


def _facts(source: Path, group: str, series: str) -> dict[str, str]:
    """``POGMDM_*`` attributes of a series' first image, and its geometry; nothing else of the Meta is shown."""
    import h5py
    import ismrmrd

    with h5py.File(source, "r") as file:
        images = file[group][series]
        text, head = images["attributes"][0], images["header"][0]
        count = len(images["header"])
    meta = ismrmrd.Meta.deserialize(text.decode("utf-8") if isinstance(text, bytes) else text)
    facts: dict[str, Any] = {
        "Images": count,
        "Matrix": " x ".join(str(n) for n in head["matrix_size"][:2]),
        "Field of view": " x ".join(f"{mm:g}" for mm in head["field_of_view"]) + " mm",
    }
    facts |= {key.removeprefix(_PREFIX): value for key, value in meta.items() if key.startswith(_PREFIX)}
    return {name: " ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()}
