"""PNG previews of the image series in an output file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pogmdm_core.errors import OutputError

_PHASE = 2  # ISMRMRD image type
_WINDOW_PERCENTILE = 99.5
_STD_OFFSET = 10


def write_previews(source: Path, folder: Path, group: str = "dataset") -> list[Path]:
    """Write one PNG per image series: grey for images, a perceptual map with a colour bar for std maps.

    Parameters
    ----------
    source
        Output file of `pogmdm run`.
    folder
        Made when missing. Files are named ``image_<series>.png``; existing ones are replaced.
    group
        Group that holds the series.

    Returns
    -------
        The files, in the order of the series. Series of complex images are left out.

    Raises
    ------
    OutputError
        E606 when the file has no image series to show, E601 when a picture cannot be written.
    """
    import h5py

    make_folder(folder)
    pictures = []
    try:
        with h5py.File(source, "r") as file:
            series = file.get(group, {})
            for name in sorted(series, key=_series_number):
                if "header" in series[name] and series[name]["data"].dtype.kind in "fui":
                    pictures.append(_write_series(series[name], name, folder / f"{name}.png"))
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not pictures:
        raise OutputError(606, f"{source.name} has no real-valued image series in the group {group!r}.")
    return pictures


def make_folder(folder: Path) -> None:
    """Make the folder of the previews where it is missing; OutputError E601 when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> OutputError:
    return OutputError(601, f"cannot write previews to {folder}: {error.strerror or error}.")


def montage(slices: np.ndarray) -> np.ndarray:
    """Tile slices `(slice, y, x)` row by row into one picture `(rows * y, columns * x)`; empty tiles are 0."""
    n, ny, nx = slices.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    tiles = np.zeros((rows * columns, ny, nx), dtype=slices.dtype)
    tiles[:n] = slices
    return tiles.reshape(rows, columns, ny, nx).swapaxes(1, 2).reshape(rows * ny, columns * nx)


def _series_number(name: str) -> tuple[int, str]:
    number = name.rpartition("_")[2]
    return (int(number) if number.isdigit() else 1 << 30, name)


def _write_series(series: Any, name: str, path: Path) -> Path:
    """Draw one series; the first row is on top, as images are stored."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = np.asarray(series["data"][:], dtype=np.float32)
    picture = np.nan_to_num(montage(data.reshape(-1, *data.shape[-2:])), posinf=0, neginf=0)
    is_std = _is_std(series, name)
    is_phase = int(series["header"][0]["image_type"]) == _PHASE
    top = float(np.percentile(picture, _WINDOW_PERCENTILE)) or 1.0
    low, high = (-np.pi, np.pi) if is_phase else (0.0, top)
    colours = "magma" if is_std else "twilight" if is_phase else "gray"

    height, width = picture.shape
    size = 4.5 * max(1.0, math.sqrt(len(data) / 2))
    figure = Figure(figsize=(size * width / max(height, width) + 1.0, size * height / max(height, width) + 0.4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest", origin="upper")
    axes.set_axis_off()
    if is_std:
        axes.set_title("posterior standard deviation, units of the image", fontsize=9)
    if is_std or is_phase:
        figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.05)
    return path


def _is_std(series: Any, name: str) -> bool:
    """Whether a series is a standard-deviation map: by its role, else by its number."""
    attributes = series["attributes"][0] if "attributes" in series else ""
    text = attributes.decode("utf-8", "replace") if isinstance(attributes, bytes) else str(attributes)
    return "STD_MAP" in text if "DataRole" in text else _series_number(name)[0] % 100 == _STD_OFFSET
