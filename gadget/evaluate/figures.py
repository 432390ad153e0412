"""Pictures of the report as PNG bytes: rows of methods with zoom, error and standard deviation; coil residuals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gadget.evaluate.metrics import Reference, least_squares_scale, null_space_residual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ERROR_GAIN = 5.0
_ZOOM = 0.3  # of the field of view
_DARK = "#0d1117"
_TEXT = "#e6edf3"

Panel = tuple[str, np.ndarray, "np.ndarray | None"]


def comparison(reference: Reference, panels: Sequence[Panel]) -> bytes:
    """Draw one column per method.

    Parameters
    ----------
    reference
        Shown first.
    panels
        (title, image, std or None) each; images are scaled to the reference.

    Returns
    -------
        PNG: whole image, zoom, five-fold error and standard deviation, all at one window.
    """
    with_std = any(std is not None for _, _, std in panels)
    rows, columns = 3 + with_std, 1 + len(panels)
    ny, nx = reference.image.shape
    figure, axes = _grid(rows, columns, ny, nx)
    top = float(np.quantile(reference.image[reference.mask], 0.998))
    box = _detail(reference)
    for column, (title, image, std) in enumerate((("full scan", reference.image, None), *panels)):
        scale = least_squares_scale(image[reference.mask], reference.image[reference.mask])
        error = np.where(reference.mask, np.abs(scale * image - reference.image), 0)
        _show(axes[0][column], scale * image, top, "gray", title)
        _show(axes[1][column], (scale * image)[box], top, "gray")
        _frame(axes[0][column], box)
        if column:
            _show(axes[2][column], _ERROR_GAIN * error, top, "inferno")
        if std is not None:
            _show(axes[3][column], np.where(reference.mask, _ERROR_GAIN * scale * std, 0), top, "inferno")
    for row, label in enumerate(("image", "detail", "|error| x 5", "std x 5")[:rows]):
        axes[row][0].text(
            -0.06, 0.5, label, rotation=90, va="center", ha="right", color=_TEXT, transform=axes[row][0].transAxes
        )
    return _png(figure)


def coil_residuals(coil_images: np.ndarray, maps: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """Draw c <c, y> - y of fully sampled y, one panel per set of maps, at a tenth of the image's window."""
    ny, nx = coil_images.shape[-2:]
    figure, axes = _grid(1, len(maps), ny, nx)
    top = float(np.quantile(np.linalg.norm(coil_images, axis=0), 0.998)) / 10
    for column, (title, csm) in enumerate(maps):
        _show(axes[0][column], null_space_residual(csm, coil_images), top, "viridis", title)
    return _png(figure)


def calibration(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> bytes:
    """Draw measured against nominal coverage, one line (label, nominal, measured) per method."""
    figure = _figure(4.2, 4.0)
    axes = figure.add_subplot()
    axes.set_facecolor(_DARK)
    axes.plot([0, 1], [0, 1], "--", color="#6e7681", label="perfect")
    for label, nominal, measured in curves:
        axes.plot(nominal, measured, "o-", label=label)
    axes.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="nominal coverage", ylabel="share of pixels inside")
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    axes.tick_params(colors=_TEXT)
    axes.legend(fontsize=8, facecolor=_DARK, labelcolor=_TEXT)
    return _png(figure)


def _detail(reference: Reference) -> tuple[slice, slice]:
    """Return the window of 30 % of the field of view in which the reference varies most."""
    from scipy.ndimage import uniform_filter

    size = [max(8, round(_ZOOM * n)) for n in reference.image.shape]
    gradient = np.hypot(*np.gradient(reference.image * reference.mask))
    total = uniform_filter(gradient, size, mode="constant")
    half = [n // 2 for n in size]
    inner = total[half[0] : -half[0], half[1] : -half[1]]
    y, x = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return slice(int(y), int(y) + size[0]), slice(int(x), int(x) + size[1])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=_DARK)
    FigureCanvasAgg(figure)
    return figure


def _grid(rows: int, columns: int, ny: int, nx: int) -> tuple[Figure, np.ndarray]:
    width = 2.2
    figure = _figure(width * columns, width * ny / nx * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.02, right=1, bottom=0, top=1 - 0.3 / (width * rows), wspace=0.03, hspace=0.03)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _show(axis: Axes, image: np.ndarray, top: float, colours: str, title: str = "") -> None:
    axis.imshow(image, cmap=colours, vmin=0, vmax=top or 1.0, interpolation="nearest")
    if title:
        axis.set_title(title, fontsize=8, color=_TEXT, pad=3)


def _frame(axis: Axes, box: tuple[slice, slice]) -> None:
    from matplotlib.patches import Rectangle

    corner = (box[1].start - 0.5, box[0].start - 0.5)
    size = (box[1].stop - box[1].start, box[0].stop - box[0].start)
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#58a6ff", linewidth=0.8))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=_DARK, bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()
