"""One self-contained HTML page about a reconstruction: its pictures, its facts, what the std map means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gadget.report.shell import write_page

_PREFIX = "POGMDM_"


def write_report(
    source: Path, pictures: Mapping[str, bytes], path: Path, group: str = "dataset", overwrite: bool = False
) -> None:
    """Write the page of an output file of `pogmdm run`.

    Parameters
    ----------
    source
        The output file.
    pictures
        Of its series, from `gadget.report.preview.draw_previews`; at least one.
    path
        The .html file to make; it appears when complete.
    group
        Group that holds the series.
    overwrite
        Replace an existing file.

    Raises
    ------
    OutputError
        E601, E603.
    """
    facts = {name: _facts(source, group, name) for name in pictures}
    figures = [
        (name, picture, facts[name].get("Std") or f"image ({facts[name].get('Estimate', 'no estimate named')})")
        for name, picture in pictures.items()
    ]
    first = _facts(source, group, _first_series(source, group))
    write_page(path, "reconstruction.html", overwrite, title=source.name, figures=figures, facts=first)


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
    facts: dict[str, object] = {
        "Images": count,
        "Matrix": " x ".join(str(n) for n in head["matrix_size"][:2]),
        "Field of view": " x ".join(f"{mm:g}" for mm in head["field_of_view"]) + " mm",
    }
    facts |= {key.removeprefix(_PREFIX): value for key, value in meta.items() if key.startswith(_PREFIX)}
    return {name: " ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()}
