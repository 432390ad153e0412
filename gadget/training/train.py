"""`pogmdm train`: images in, weights out, with progress, validation and checkpoints."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from gadget.files.atomic import complete_file, refuse_existing
from gadget.progress import ProgressDisplay
from gadget.settings.sources import read_yaml
from gadget.training.image_files import FoundSource, ImageSource, read_sources
from gadget.training.model_card import card_beside, read_facts, write_card
from pogmdm_core.errors import ConfigError, DataError
from pogmdm_core.prior.training import Trainer, TrainingSettings, Validation, run
from pogmdm_core.prior.weights import save_prior
from pogmdm_core.settings import Section


class TrainingFile(Section):
    """A training settings file: how to train, and how to read each source of images."""

    training: TrainingSettings = Field(default_factory=TrainingSettings)
    sources: tuple[ImageSource, ...] = ()


def train_command(
    images: Sequence[Path], output: Path, settings_file: Path | None, resume: bool, overwrite: bool
) -> None:
    """Train a prior and write its weights, and a model card beside them.

    Parameters
    ----------
    images
        Files and folders of training images.
    output
        Weights file; ``OUTPUT.checkpoint`` beside it is written at every validation and removed at the end.
    settings_file
        YAML with the sections `TrainingFile` has; None for the defaults.
    resume
        Go on from the checkpoint.
    overwrite
        Replace `output` and its card.
    """
    refuse_existing(output, overwrite)
    refuse_existing(card_beside(output), overwrite)
    file = _read_settings(settings_file)
    display = ProgressDisplay()
    sources = read_sources(images, file.sources)
    found = [image for source in sources for image in source.images]
    per_anatomy = ", ".join(f"{count} {name}" for name, count in sorted(Counter(i.anatomy for i in found).items()))
    display.log(f"{len(found)} images of {len({i.subject for i in found})} subjects: {per_anatomy}")
    trainer = Trainer(found, file.training)
    checkpoint = output.with_name(output.name + ".checkpoint")
    if resume:
        trainer.restore(_read_checkpoint(checkpoint))
        display.log(f"resumed at step {trainer.step}")
    last: Validation | None = None
    for last in run(trainer, progress=lambda done, total: display.update("training", done, total)):
        display.log(str(last))
        _write_checkpoint(trainer, checkpoint)
    last = last or trainer.validate()
    with complete_file(output, overwrite) as partial:
        digest = save_prior(trainer.finished(), partial, _record(file, sources, last))
    write_card(read_facts(output), card_beside(output), overwrite)
    checkpoint.unlink(missing_ok=True)
    display.close()
    display.log(f"{output}: sha256 {digest}")


def _read_settings(path: Path | None) -> TrainingFile:
    if path is None:
        return TrainingFile.model_validate({})
    try:
        return TrainingFile.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(103, f"training settings {path.name}: {where}: {first['msg']}.") from error


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(345, f"no usable checkpoint {path.name}: {error}.", "Train without --resume.") from error


def _write_checkpoint(trainer: Trainer, path: Path) -> None:
    with complete_file(path, overwrite=True) as partial:
        partial.write_bytes(save({name: value.contiguous() for name, value in trainer.state().items()}))


def _record(file: TrainingFile, sources: Sequence[FoundSource], validation: Validation) -> dict[str, Any]:
    """What the weights file says about where it comes from; no paths, no subjects' names."""
    settings = file.model_dump_json()
    images = [image for source in sources for image in source.images]
    return {
        "settings": file.training.model_dump(mode="json"),
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "images": dict(Counter(i.anatomy for i in images)),
        "subjects": len({i.subject for i in images}),
        "sources": source_records(sources),
        "validation_psnr": {f"{level:g}": round(value, 3) for level, value in validation.psnr.items()},
        "validation_psnr_noisy": {f"{level:g}": round(value, 3) for level, value in validation.psnr_noisy.items()},
    }


def source_records(sources: Sequence[FoundSource]) -> list[dict[str, Any]]:
    """Per reading rule that gave images: attribution, counts, kinds of files, range of pixel sizes (mm)."""
    by_rule: dict[ImageSource, list[FoundSource]] = defaultdict(list)
    for source in sources:
        if source.found:
            by_rule[source.rule].append(source)
    records = []
    for rule, read in by_rule.items():
        found = [item for source in read for item in source.found]
        sizes = sorted(item.pixel_mm for item in found if item.pixel_mm)
        records.append(
            {
                "match": rule.match,
                "attribution": rule.attribution,
                "anatomies": sorted({item.image.anatomy for item in found}),
                "images": len(found),
                "subjects": len({item.image.subject for item in found}),
                "formats": sorted({item.ending for item in found}),
                "pixel_mm": [round(sizes[0], 3), round(sizes[-1], 3)] if sizes else None,
            }
        )
    return records
