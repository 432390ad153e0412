"""Training images from files: folders and zips of PNG/JPEG, and NPZ archives of slices.

Everything becomes float32 magnitude images scaled to a 99.9 % quantile of 1, with a subject and an
anatomy, so that the training can split and balance.
"""

from __future__ import annotations

import fnmatch
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from pogmdm_core.errors import DataError
from pogmdm_core.settings import Section
from pogmdm_core.training import TrainingImage

_PICTURES = (".png", ".jpg", ".jpeg")


class ImageSource(Section):
    """How the images of one file or folder are to be read; `match` is a glob on its name."""

    match: str = Field(description="glob on the file or folder name, e.g. cheng2017*.zip")
    anatomy: str | None = Field(None, description="overrides what the file says")
    downsample: int = Field(1, ge=1, le=8, description="average blocks of this many pixels")
    subject_block: int = Field(
        0, ge=0, description="files without subjects: this many neighbouring pictures are one subject"
    )
    max_per_subject: int = Field(0, ge=0, description="take at most this many slices of a subject; 0: all")


def read_images(paths: Sequence[Path], sources: Sequence[ImageSource]) -> list[TrainingImage]:
    """Read all images of files and folders.

    Parameters
    ----------
    paths
        Folders, .zip, .npz, .png or .jpg files.
    sources
        Reading rules; the first whose `match` fits a path's name is used, none means defaults.

    Raises
    ------
    DataError
        E342 for what cannot be read, E343 when nothing usable was found.
    """
    images: list[TrainingImage] = []
    for path in paths:
        rule = next((s for s in sources if fnmatch.fnmatch(path.name, s.match)), ImageSource(match="*"))
        try:
            found = list(_thin(_read_one(path, rule), rule.max_per_subject))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(342, f"cannot read training images from {path.name}: {error}.") from error
        images.extend(found)
    if not images:
        raise DataError(343, "no training images were found.", "Give folders, zips or .npz files of images.")
    return images


def _thin(items: Iterator[TrainingImage], limit: int) -> Iterator[TrainingImage]:
    if limit == 0:
        yield from items
        return
    by_subject: dict[str, list[TrainingImage]] = {}
    for item in items:
        by_subject.setdefault(item.subject, []).append(item)
    for found in by_subject.values():
        picks = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
        yield from (found[i] for i in picks)


def _read_one(path: Path, rule: ImageSource) -> Iterator[TrainingImage]:
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.suffix.lower() in _PICTURES)
        yield from _pictures(((p.name, p.read_bytes()) for p in names), path.stem, rule)
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names_in = sorted(n for n in archive.namelist() if n.lower().endswith(_PICTURES))
            yield from _pictures(((n, archive.read(n)) for n in names_in), path.stem, rule)
    elif path.suffix.lower() == ".npz":
        yield from _slices(path, rule)
    elif path.suffix.lower() in _PICTURES:
        yield from _pictures([(path.name, path.read_bytes())], path.stem, rule)
    else:
        raise ValueError("known are folders, .zip, .npz, .png and .jpg")


def _pictures(
    files: Iterator[tuple[str, bytes]] | list[tuple[str, bytes]], stem: str, rule: ImageSource
) -> Iterator[TrainingImage]:
    for number, (name, data) in enumerate(files):
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert("F") if picture.mode != "L" else picture)
        subject = f"{stem}-{number // rule.subject_block}" if rule.subject_block else f"{stem}-{name}"
        item = _prepare(pixels, subject, rule.anatomy or stem, rule.downsample)
        if item is not None:
            yield item


def _slices(path: Path, rule: ImageSource) -> Iterator[TrainingImage]:
    with np.load(path, allow_pickle=False) as archive:
        if "vol" in archive.files:
            volume = archive["vol"]
            for axis in range(volume.ndim):
                for index in range(volume.shape[axis] // 6, 5 * volume.shape[axis] // 6, 6):
                    item = _prepare(volume.take(index, axis), path.stem, rule.anatomy or path.stem, rule.downsample)
                    if item is not None:
                        yield item
            return
        meta = json.loads(str(archive["meta"])) if "meta" in archive.files else {}
        slices = meta.get("slices", [])
        for number, key in enumerate(k for k in archive.files if k != "meta"):
            facts = slices[number] if number < len(slices) else {}
            subject = str(facts.get("subject", f"{path.stem}-{number}"))
            anatomy = rule.anatomy or str(facts.get("anatomy", path.stem))
            item = _prepare(archive[key], subject, anatomy, rule.downsample)
            if item is not None:
                yield item


def _prepare(pixels: np.ndarray, subject: str, anatomy: str, downsample: int) -> TrainingImage | None:
    """Scale, reduce, and drop slices that are nearly empty."""
    eight_bit = pixels.dtype == np.uint8
    image = np.abs(pixels.astype(np.float32))
    if downsample > 1:
        height, width = (n // downsample * downsample for n in image.shape)
        blocks = image[:height, :width].reshape(height // downsample, downsample, width // downsample, downsample)
        image = blocks.mean(axis=(1, 3))
    top = float(np.quantile(image, 0.999))
    if top <= 0 or float((image > 0.05 * top).mean()) < 0.05:
        return None
    quantum = 1.0 / top if eight_bit and downsample == 1 else 0.0
    return TrainingImage(torch.from_numpy(image / top), subject, anatomy, quantum)
