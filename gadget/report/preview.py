"""PNG previews of the image series in an output file."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pogmdm_core.errors import OutputError

if TYPE_CHECKING:
    import h5py

_PHASE = 2  # ISMRMRD image type
_WINDOW_PERCENTILE = 99.5
_STD_OFFSET = 10


def draw_previews(source: Path, group: str = "dataset") -> dict[str, bytes]:
    """Draw every image series: grey for images, a perceptual map with a colour bar for std maps.

    Parameters
    ----------
    source
        Output file of `pogmdm run`.
    group
        Group that holds the series.

    Returns
    -------
        Name of the series to PNG, in the order of the series. Series of complex images are left out.

    Raises
    ------
    OutputError
        E606 when the file cannot be read or has no image series to show.
    """
    import h5py

    try:
        with h5py.File(source, "r") as file:
            series = file.get(group, {})
            pictures = {
                name: _draw(series[name], name)
                for name in sorted(series, key=_series_number)
                if "header" in series[name] and series[name]["data"].dtype.kind in "fui"
            }
    except OSError as error:
        raise OutputError(606, f"{source.name} cannot be read: {error.strerror or 'no HDF5 file'}.") from error
    if not pictures:
        raise OutputError(606, f"{source.name} has no real-valued image series in the group {group!r}.")
    return pictures


def write_previews(pictures: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write drawn series as ``image_<series>.png``; existing ones are replaced.

    Parameters
    ----------
    pictures
        From `draw_previews`.
    folder
        Made when missing.

    Returns
    -------
        The files.

    Raises
    ------
    OutputError
        E601 when a picture cannot be written.
    """
    make_folder(folder)
    files = {folder / f"{name}.png": picture for name, picture in pictures.items()}
    try:
        for path, picture in files.items():
            path.write_bytes(picture)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return list(files)


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


def _draw(series: h5py.Group, name: str) -> bytes:
    """PNG of one series; the first row is on top, as images are stored."""
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
        axes.set_title("standard deviation, units of the image", fontsize=9)
    if is_std or is_phase:
        figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.05)
    return buffer.getvalue()


def _is_std(series: h5py.Group, name: str) -> bool:
    """Whether a series is a standard-deviation map: by its role, else by its number."""
    attributes = series["attributes"][0] if "attributes" in series else ""
    text = attributes.decode("utf-8", "replace") if isinstance(attributes, bytes) else str(attributes)
    return "STD_MAP" in text if "DataRole" in text else _series_number(name)[0] % 100 == _STD_OFFSET
