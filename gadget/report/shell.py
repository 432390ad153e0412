"""Self-contained HTML pages: templates in one shell, light and dark, with their pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from gadget.files.atomic import complete_file


def write_page(path: Path, template: str, overwrite: bool = False, **values: object) -> None:
    """Fill in a template of this folder (everything is escaped) and write the page, which appears when complete.

    Raises
    ------
    OutputError
        E601, E603, see `complete_file`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gadget.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = _data_uri
    page = environment.get_template(template).render(**values)
    with complete_file(path, overwrite) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
