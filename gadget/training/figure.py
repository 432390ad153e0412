"""The figure of a prior: its kernels, its potentials as noise grows, and what its bank covers.

In the manner of Fig. 1 of Nagler, Zach & Pock, arXiv 2501.08662.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gadget.files.atomic import complete_file, refuse_existing
from gadget.training.model_card import ModelFacts
from pogmdm_core.prior.model import ProductPrior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

POTENTIAL_LEVELS = (0.0, 0.025, 0.05, 0.1, 0.2)
_GRID = 128  # pixels; kernels of all banks fit into it
_ENERGY_SHOWN = 0.995  # share of a kernel's energy inside its picture
_REACH = 1.0  # responses shown, |u| / ||K||
_N_RESPONSES = 241
_INK, _PALE, _ACCENT = "#1b2a38", "#8795a1", "#c2410c"


@dataclass(frozen=True)
class KernelPicture:
    """One filter: central part of its kernel `(side, side)`, L2 norm, and gain as learned."""

    pixels: torch.Tensor
    norm: float
    gain: float


def default_figure(facts: ModelFacts) -> Path:
    """NAME.png in the current folder, NAME the model's made safe for a file name."""
    return Path((re.sub(r"[^\w.-]+", "_", facts.prior.name).strip("._") or "prior") + ".png")


@torch.no_grad()
def kernel_pictures(prior: ProductPrior) -> list[KernelPicture]:
    """All kernels in the image domain, each cut to where 99.5 % of its energy is."""
    kernels = torch.fft.fftshift(torch.fft.ifft2(prior.bank.spectra((_GRID, _GRID))).real, dim=(1, 2))
    return [
        KernelPicture(_central(kernel), float(kernel.norm()), float(gain))
        for kernel, gain in zip(kernels, prior.bank.gains(), strict=True)
    ]


def _central(kernel: torch.Tensor) -> torch.Tensor:
    """The smallest centred square of odd side with nearly all the energy, 7 pixels at least."""
    centre = kernel.shape[-1] // 2
    energy = kernel.square()
    for half in range(3, centre):
        window = slice(centre - half, centre + half + 1)
        if energy[window, window].sum() >= _ENERGY_SHOWN * energy.sum():
            return kernel[window, window]
    return kernel


@torch.no_grad()
def potentials(prior: ProductPrior) -> tuple[torch.Tensor, torch.Tensor]:
    """Potentials -a_k log psi_k at `POTENTIAL_LEVELS`, their minimum moved to 0.

    Level 0 is the model's own limit of no noise: both kinds of experts are defined there, and their exponents
    are those of the lowest trained level.

    Returns
    -------
        Responses in units of the filter's L2 norm `(n,)`, and potentials `(level, filter, n)`, float64.
    """
    experts = prior.experts
    v = torch.linspace(-_REACH, _REACH, _N_RESPONSES)
    u = v * experts.width[:, None]
    lowest = prior.level_range[0]
    curves = [-experts.exponents(max(z, lowest))[:, None] * experts.log_psi(u, z) for z in POTENTIAL_LEVELS]
    found = torch.stack(curves).double()
    return v.double(), found - found.amin(dim=2, keepdim=True)


@torch.no_grad()
def radial_profile(coverage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, lowest and highest coverage over rings of a square map with DC at [0, 0].

    Returns
    -------
        Radii in cycles per pixel `(ring,)` up to 0.5, and `(ring, 3)`.
    """
    n = coverage.shape[0]
    axis = torch.fft.fftfreq(n)
    ring = (torch.hypot(axis[:, None], axis[None, :]) * n).round().long()
    rows = [torch.stack([(c := coverage[ring == r]).mean(), c.amin(), c.amax()]) for r in range(n // 2 + 1)]
    return torch.arange(n // 2 + 1) / n, torch.stack(rows)


def write_figure(facts: ModelFacts, path: Path, overwrite: bool = False) -> None:
    """Draw the figure and write it; raises OutputError as `complete_file`."""
    refuse_existing(path, overwrite)
    figure = draw(facts)
    with complete_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix.lower().lstrip(".") or "png", facecolor="white")


def draw(facts: ModelFacts) -> Figure:
    """The whole figure; the caller saves it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    prior = facts.prior
    n_filters = prior.bank.n_filters
    columns = next((c for c in (8, 10, 7, 6) if n_filters % c == 0), 8)
    rows = math.ceil(n_filters / columns)
    style: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 8, "text.color": _INK, "axes.labelcolor": _INK}
    style |= {"axes.edgecolor": _PALE, "xtick.color": _INK, "ytick.color": _INK, "axes.linewidth": 0.6}
    with mpl.rc_context(style):
        heights = [0.62, 1.72 * rows * 1.12, 3.0]
        figure = Figure(figsize=(1.32 * columns + 0.5, sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=heights)
        title, filters, bottom = parts
        _draw_title(title, facts)
        _draw_filters(filters, prior, rows, columns)
        _draw_bottom(bottom, facts)
    return figure


def _draw_title(part: SubFigure, facts: ModelFacts) -> None:
    prior = facts.prior
    low, high = prior.level_range
    part.text(0.012, 0.66, f"{prior.name}", fontsize=16, fontweight="bold", va="center")
    facts_line = f"{facts.bank}  ·  {facts.experts}  ·  {prior.n_parameters} learned numbers"
    part.text(0.012, 0.17, facts_line, fontsize=8.5, va="center", color=_INK)
    levels = f"noise levels {low:g} to {high:g}"
    digest = f"sha256 {prior.sha256[:12]}"
    part.text(0.988, 0.17, f"{levels}  ·  {digest}", fontsize=8.5, ha="right", va="center", color=_PALE)


def _level_colours() -> list[tuple[float, float, float, float]]:
    import matplotlib as mpl

    shades = mpl.colormaps["viridis"]
    return [shades(0.02 + 0.9 * i / (len(POTENTIAL_LEVELS) - 1)) for i in range(len(POTENTIAL_LEVELS))]


def _draw_filters(part: SubFigure, prior: ProductPrior, rows: int, columns: int) -> None:
    """Every filter: kernel above, its potentials below."""
    pictures = kernel_pictures(prior)
    v, curves = (found.numpy() for found in potentials(prior))
    grid = {"height_ratios": [1, 0.72] * rows, "hspace": 0.02}
    axes = part.subplots(2 * rows, columns, gridspec_kw=grid, squeeze=False)
    colours = _level_colours()
    for k in range(rows * columns):
        above, below = axes[2 * (k // columns), k % columns], axes[2 * (k // columns) + 1, k % columns]
        if k >= len(pictures):
            above.axis("off")
            below.axis("off")
            continue
        _draw_kernel(above, pictures[k])
        top = float(curves[:, k].max())
        for level in reversed(range(len(POTENTIAL_LEVELS))):
            below.plot(v, curves[level, k] / top, color=colours[level], lw=1.2)
        below.set(xlim=(-_REACH, _REACH), ylim=(-0.05, 1.05), yticks=[], xticks=[-_REACH, 0, _REACH])
        below.tick_params(length=2, labelsize=6, pad=1.5, labelbottom=k // columns == rows - 1)
        below.spines[["top", "right", "left"]].set_visible(False)
        below.axvline(0, color=_PALE, lw=0.4, zorder=0)
    part.supxlabel(r"filter response $u_k\,/\,\|K_k\|$, units of the image scale", fontsize=8)


def _draw_kernel(axes: Axes, picture: KernelPicture) -> None:
    side = picture.pixels.shape[0]
    limit = float(picture.pixels.abs().max()) or 1.0
    axes.imshow(picture.pixels.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cbd2d9")
    axes.set_title(rf"$\gamma$ {picture.gain:.2f}   $\|K\|$ {picture.norm:.2f}", fontsize=6.8, pad=2.5)
    axes.text(0.97, 0.03, f"{side} px", transform=axes.transAxes, ha="right", va="bottom", fontsize=5.5, color=_PALE)


def _draw_bottom(part: SubFigure, facts: ModelFacts) -> None:
    """Legend of the potentials, coverage as a map and a profile, validation."""
    legend, spectrum, profile, psnr = part.subplots(1, 4, gridspec_kw={"width_ratios": [0.75, 1.0, 1.35, 1.35]})
    legend.axis("off")
    labels = [rf"$\sqrt{{2t}}$ = {level:g}" for level in POTENTIAL_LEVELS]
    for label, colour in zip(labels, _level_colours(), strict=True):
        legend.plot([], [], color=colour, lw=2.5, label=label)
    name = r"potentials $-\alpha_k\,\log\psi_k$"
    legend.legend(title=name, loc="center left", frameon=False, fontsize=8.5, title_fontsize=8.5)

    coverage = facts.prior.coverage((_GRID, _GRID))
    top = max(1.0, float(coverage.max()))
    extent = (-0.5, 0.5, 0.5, -0.5)
    image = spectrum.imshow(torch.fft.fftshift(coverage).numpy(), cmap="magma", vmin=0, vmax=top, extent=extent)
    spectrum.set(xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5], xlabel="cycles per pixel")
    spectrum.set_title(r"coverage $G(\omega)=\Sigma_k\,|K_k(\omega)|^2$", fontsize=8.5)
    part.colorbar(image, ax=spectrum, shrink=0.8, aspect=18).outline.set_visible(False)

    radius, rings = (found.numpy() for found in radial_profile(coverage))
    for label, share in _shares(facts.prior):
        means = radial_profile(share)[1][:, 0].numpy()
        profile.plot(radius, means, lw=1, color=_PALE)
        peak = int(means.argmax())
        profile.annotate(
            label, (radius[peak], means[peak]), (0, 2), textcoords="offset points", ha="center", fontsize=6
        )
    profile.fill_between(radius, rings[:, 1], rings[:, 2], color=_ACCENT, alpha=0.18, lw=0, label="lowest to highest")
    profile.plot(radius, rings[:, 0], color=_ACCENT, lw=1.8, label="mean of the ring")
    profile.axhline(1, color=_PALE, lw=0.7, ls=(0, (4, 3)))
    profile.set(xlim=(0, 0.5), ylim=(0, 1.15 * top), xlabel="radius, cycles per pixel")
    profile.set_title("coverage over radius, scale by scale", fontsize=8.5)
    profile.legend(frameon=False, fontsize=7, loc="center right")
    _draw_validation(psnr, facts)
    for axes in (profile, psnr):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", lw=0.6)
        axes.set_axisbelow(True)


@torch.no_grad()
def _shares(prior: ProductPrior) -> list[tuple[str, torch.Tensor]]:
    """What the filters of each scale add to the coverage, with a label."""
    power = prior.bank.spectra((_GRID, _GRID)).abs() ** 2
    return [(label, power[chosen].sum(0)) for label, chosen in prior.bank.scale_groups()]


def _draw_validation(axes: Axes, facts: ModelFacts) -> None:
    axes.set_title("denoising of held-out subjects, PSNR / dB", fontsize=8.5)
    if not facts.validation:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", color=_PALE, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    levels = [float(level) for level, _, _ in facts.validation]
    denoised = [psnr for _, psnr, _ in facts.validation]
    axes.plot(levels, denoised, color=_INK, lw=1.8, marker="o", ms=4, label="denoised")
    known = [(float(level), noisy) for level, _, noisy in facts.validation if noisy is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=_PALE, lw=1.4, marker="o", ms=3.5, label="noisy")
    for level, psnr in zip(levels, denoised, strict=True):
        axes.annotate(f"{psnr:.1f}", (level, psnr), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.set(xlabel="noise level", ylim=(min(denoised + [n for _, n in known]) - 2, max(denoised) + 4))
    axes.legend(frameon=False, fontsize=7, loc="lower left")
