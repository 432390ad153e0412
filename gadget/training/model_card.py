"""What a weights file says about itself: as text for a terminal, as a Markdown model card.

Everything shown is read from the weights file; nothing about a particular model is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gadget.files.atomic import complete_file
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.prior.weights import load_prior, read_card, shipped_weights

_UNKNOWN = "not recorded"
_BANKS = {"multiscale": "learned multi-scale bank", "shearlet": "shearlet bank (the paper's)"}
_EXPERTS = {"scale_mixture": "Gaussian scale mixtures", "grid_mixture": "Gaussian mixtures on a grid (the paper's)"}


@dataclass(frozen=True)
class ModelFacts:
    """A prior and the training record of its weights file."""

    prior: ProductPrior
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bank(self) -> str:
        """Kind of filter bank and number of filters."""
        kind = self.prior.bank.kind
        return f"{_BANKS.get(kind, kind)}, {self.prior.bank.n_filters} filters"

    @property
    def experts(self) -> str:
        """Kind of experts and components of each."""
        experts = self.prior.experts
        config = experts.config()
        n_components = config.get("n_scales", config.get("n_means"))
        text = f"{_EXPERTS.get(experts.kind, experts.kind)}, {n_components} components each"
        n_knots = int(str(config.get("n_knots", 1)))
        return text if n_knots == 1 else f"{text}, weights learned at {n_knots} noise levels"

    @property
    def settings(self) -> dict[str, str]:
        """Training settings as name and text, nested ones with dots."""
        return dict(_flat(self.training.get("settings", {})))

    @property
    def validation(self) -> list[tuple[str, float, float | None]]:
        """(noise level, PSNR of the denoised, PSNR of the noisy image or None), dB."""
        noisy = self.training.get("validation_psnr_noisy", {})
        return [(level, psnr, noisy.get(level)) for level, psnr in self.training.get("validation_psnr", {}).items()]

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """Records of the training data (`gadget.training.train.source_records`)."""
        return list(self.training.get("sources", []))


def read_facts(name_or_path: str | Path) -> ModelFacts:
    """Load weights by shipped name or path, with their record; raises as `load_prior`."""
    prior = load_prior(name_or_path)
    path = shipped_weights().get(str(name_or_path), Path(name_or_path))
    return ModelFacts(prior, read_card(path).training)


def card_beside(weights: Path) -> Path:
    """Where the model card of a weights file belongs."""
    return weights.with_suffix(".md")


def write_card(facts: ModelFacts, path: Path, overwrite: bool = False) -> None:
    """Write the Markdown model card; raises OutputError as `complete_file`."""
    with complete_file(path, overwrite) as partial:
        partial.write_text(as_markdown(facts), encoding="utf-8")


def as_text(facts: ModelFacts) -> str:
    """Lines for a terminal."""
    prior, record = facts.prior, facts.training
    low, high = prior.level_range
    rows = [
        ("name", prior.name),
        ("filters", facts.bank),
        ("experts", facts.experts),
        ("learned", f"{prior.n_parameters} numbers"),
        ("noise levels", f"{low:g} to {high:g} of the image scale"),
        ("sha256", prior.sha256),
        ("images", _counts(record)),
        ("subjects", str(record.get("subjects", _UNKNOWN))),
        ("settings", ", ".join(f"{key}={value}" for key, value in facts.settings.items()) or _UNKNOWN),
    ]
    lines = [f"{what:14}{value}" for what, value in rows]
    for number, source in enumerate(facts.sources):
        lines.append(f"{'trained on' if number == 0 else '':14}{source.get('images', '?')} x {_attribution(source)}")
    lines += ["", "denoising PSNR on held-out subjects (dB, peak 1)"]
    if facts.validation:
        lines.append(f"{'noise level':>12} {'noisy':>8} {'denoised':>9} {'gain':>7}")
        lines += [
            f"{level:>12} {_db(noisy):>8} {_db(psnr):>9} {_gain(psnr, noisy):>7}"
            for level, psnr, noisy in facts.validation
        ]
    else:
        lines.append(f"  {_UNKNOWN}")
    return "\n".join(lines) + "\n"


def as_markdown(facts: ModelFacts) -> str:
    """The model card."""
    return "\n".join([*_about(facts), *_data(facts), *_how_well(facts), *_use(facts)]) + "\n"


def _about(facts: ModelFacts) -> Iterator[str]:
    prior = facts.prior
    low, high = prior.level_range
    yield f"# Model card: `{prior.name}`"
    yield ""
    yield "An image prior for MRI: a product of Gaussian mixture diffusion model"
    yield "([arXiv:2501.08662](https://arxiv.org/abs/2501.08662)). It gives the energy and the score of an image"
    yield "at any noise level; `pogmdm` reconstructs with it."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| filters | {facts.bank} |"
    yield f"| experts | {facts.experts} |"
    yield f"| learned numbers | {prior.n_parameters} |"
    yield f"| noise levels | {low:g} to {high:g}, as a share of the image scale (99.9 % quantile of the magnitude) |"
    yield f"| sha256 of the weights | `{prior.sha256}` |"
    yield ""


def _data(facts: ModelFacts) -> Iterator[str]:
    record = facts.training
    yield "## Training data"
    yield ""
    yield f"Images: {_counts(record)}. Subjects: {record.get('subjects', _UNKNOWN)}."
    yield "Part of the subjects of every anatomy with more than one is held out for the table below."
    yield ""
    if facts.sources:
        yield "| source and licence | anatomy | images | subjects | files | pixel, mm |"
        yield "|---|---|---|---|---|---|"
        for source in facts.sources:
            anatomies = ", ".join(source.get("anatomies", []))
            formats = ", ".join(source.get("formats", []))
            counts = f"{source.get('images', '?')} | {source.get('subjects', '?')}"
            yield f"| {_attribution(source)} | {anatomies} | {counts} | {formats} | {_pixel(source)} |"
    else:
        yield f"Sources: {_UNKNOWN} in this weights file."
    yield ""
    yield "## Training settings"
    yield ""
    yield "| setting | value |"
    yield "|---|---|"
    for key, value in facts.settings.items():
        yield f"| {key} | {value} |"
    yield f"| sha256 of all settings | {record.get('settings_sha256', _UNKNOWN)} |"
    yield ""


def _how_well(facts: ModelFacts) -> Iterator[str]:
    yield "## Validation"
    yield ""
    if not facts.validation:
        yield f"{_UNKNOWN.capitalize()} in this weights file."
        yield ""
        return
    yield "Denoising of central 128 x 128 crops of held-out subjects, mean PSNR in dB (peak 1):"
    yield ""
    yield "| noise level | noisy | denoised | gain |"
    yield "|---|---|---|---|"
    for level, psnr, noisy in facts.validation:
        yield f"| {level} | {_db(noisy)} | {_db(psnr)} | {_gain(psnr, noisy)} |"
    yield ""


def _use(facts: ModelFacts) -> Iterator[str]:
    low, high = facts.prior.level_range
    anatomies = ", ".join(sorted(facts.training.get("images", {}))) or _UNKNOWN
    yield "## Intended use and limits"
    yield ""
    yield "- Research on MRI reconstruction. **Not for diagnostic use.**"
    yield f"- Noise levels {low:g} to {high:g}. Outside, the model warns and extrapolates."
    yield "- Images must be scaled to a 99.9 % quantile of about 1; the reconstruction does that."
    yield "- It is not scale invariant: structures are learned in pixels. Pixel sizes far from those of the training"
    yield "  images, where known in the table above, are outside what it has seen."
    yield f"- It has seen magnitude images of: {anatomies}. Complex images are treated as independent real and"
    yield "  imaginary parts, which it has not been trained on. Other anatomies and contrasts are not validated."
    if any({"jpg", "jpeg"} & set(source.get("formats", [])) for source in facts.sources):
        share = sum(s.get("images", 0) for s in facts.sources if {"jpg", "jpeg"} & set(s.get("formats", [])))
        yield f"- {share} of its images are 8-bit JPEG files: their compression limits what it knows at the lowest"
        yield "  noise levels."
    yield "- Scanner images are themselves noisy, interpolated and filtered; the model learns that as well."
    yield "- It knows small neighbourhoods, not anatomy: it cannot tell a lesion from an artefact."
    yield ""
    yield "Written by `pogmdm inspect --card` from the weights file."


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", f"{value:g}" if isinstance(value, float) else str(value)


def _counts(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {anatomy}" for anatomy, count in sorted(record.get("images", {}).items())) or _UNKNOWN


def _attribution(source: Mapping[str, Any]) -> str:
    return str(source.get("attribution") or "source without attribution").replace("|", "/")


def _pixel(source: Mapping[str, Any]) -> str:
    sizes = source.get("pixel_mm")
    if not sizes:
        return "unknown"
    return f"{sizes[0]:g}" if sizes[0] == sizes[1] else f"{sizes[0]:g} to {sizes[1]:g}"


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gain(psnr: float, noisy: float | None) -> str:
    return "-" if noisy is None else f"{psnr - noisy:+.2f}"
