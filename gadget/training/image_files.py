"""Training images from files, folders and zips of PNG, JPEG, NIfTI, DICOM, NPY, NPZ and ISMRMRD images.

Everything becomes float32 magnitude images scaled to a 99.9 % quantile of 1, with a subject and an
anatomy, so that the training can split and balance.
"""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from pydantic import Field

from gadget.training.image_formats import PICTURES, Slice, decode, format_of
from pogmdm_core.errors import DataError, PogmdmError
from pogmdm_core.prior.training import TrainingImage
from pogmdm_core.settings import Section

_SMALLEST = 16  # pixels; narrower slices are no images
_BIDS_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_REASON_LENGTH = 160


class ImageSource(Section):
    """How the images of one file or folder are to be read; `match` is a glob on its name."""

    match: str = Field(description="glob on the file or folder name, e.g. cheng2017*.zip")
    anatomy: str | None = Field(None, description="overrides what the file says")
    downsample: int = Field(1, ge=1, le=8, description="average blocks of this many pixels")
    subject_block: int = Field(
        0, ge=0, description="files without subjects: this many neighbouring pictures are one subject"
    )
    max_per_subject: int = Field(0, ge=0, description="take at most this many slices of a subject; 0: all")
    attribution: str | None = Field(None, description="who made the images and their licence, for the model card")


@dataclass(frozen=True)
class FoundImage:
    """A training image and two facts about the file it comes from."""

    image: TrainingImage
    ending: str
    pixel_mm: float | None


@dataclass(frozen=True)
class FoundSource:
    """What one path gave, and the rule it was read by."""

    rule: ImageSource
    found: list[FoundImage]

    @property
    def images(self) -> list[TrainingImage]:
        """The images alone."""
        return [f.image for f in self.found]


def read_images(paths: Sequence[Path], sources: Sequence[ImageSource]) -> list[TrainingImage]:
    """All images of `read_sources` in one list."""
    return [image for source in read_sources(paths, sources) for image in source.images]


def read_sources(paths: Sequence[Path], sources: Sequence[ImageSource]) -> list[FoundSource]:
    """Read all images of files and folders.

    Parameters
    ----------
    paths
        Files of a known kind, zips and folders of them. In a zip or folder other files are passed over.
    sources
        Reading rules; the first whose `match` fits a path's name is used, none means defaults. A folder that
        no rule fits but that holds something a rule fits is read file by file.

    Raises
    ------
    DataError
        E342 for what cannot be read, E343 when nothing usable was found.
    ConfigError
        E126 when an optional package is missing.
    """
    read = []
    for path in [inside for named in paths for inside in _expand(named, sources)]:
        rule = _rule_of(path, sources) or ImageSource(match="*")
        read.append(FoundSource(rule, list(_thin(_read_one(path, rule), rule.max_per_subject))))
    if not any(source.found for source in read):
        raise DataError(343, "no training images were found.", "Give images, or folders or zips of images.")
    return read


def _rule_of(path: Path, sources: Sequence[ImageSource]) -> ImageSource | None:
    name = path.name or path.resolve().name
    return next((s for s in sources if fnmatch.fnmatch(name, s.match)), None)


def _expand(path: Path, sources: Sequence[ImageSource]) -> list[Path]:
    """The path itself, or what a folder holds when the rules are for that."""
    if not path.is_dir() or _rule_of(path, sources):
        return [path]
    inside = sorted(path.iterdir())
    if not any(_rule_of(p, sources) for p in inside):
        return [path]
    return [p for p in inside if p.is_dir() or p.suffix.lower() == ".zip" or format_of(p.name)]


def _thin(items: Iterator[FoundImage], limit: int) -> Iterator[FoundImage]:
    if limit == 0:
        yield from items
        return
    by_subject: dict[str, list[FoundImage]] = {}
    for item in items:
        by_subject.setdefault(item.image.subject, []).append(item)
    for found in by_subject.values():
        picks = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
        yield from (found[i] for i in picks)


def _read_one(path: Path, rule: ImageSource) -> Iterator[FoundImage]:
    stem = path.resolve().stem
    n_pictures = 0
    for name, kind, data in _files(path):
        where = path.name if name == path.name else f"{path.name}: {name}"
        pictures = PurePosixPath(name).suffix.lower() in PICTURES
        own = _subject_of_file(name, stem, n_pictures if pictures else None, rule.subject_block)
        n_pictures += pictures
        for found in _slices(kind, data, where):
            subject = found.subject or own
            if subject.startswith("#"):  # numbered slices of unknown subjects
                subject = f"{stem}-{subject[1:]}"
            anatomy = rule.anatomy or found.anatomy or stem
            image = _prepare(found.pixels, subject, anatomy, rule.downsample, where)
            if image is not None:
                pixel = None if found.pixel_mm is None else found.pixel_mm * rule.downsample
                yield FoundImage(image, PurePosixPath(name).suffix[1:].lower() if pictures else kind, pixel)


def _subject_of_file(name: str, stem: str, number: int | None, block: int) -> str:
    """Whose images a file holds when it does not say: a block of pictures, a BIDS subject, or its own."""
    if block and number is not None:
        return f"{stem}-{number // block}"
    bids = _BIDS_SUBJECT.search(name)
    return f"{stem}-{bids[1] if bids else name}"


def _files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(name below `path`, kind, content) of the readable files at a path, sorted by name."""
    try:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                if file.suffix.lower() == ".zip":
                    below = file.relative_to(path).as_posix()
                    yield from ((f"{below}/{name}", kind, data) for name, kind, data in _members(file))
                    continue
                with file.open("rb") as stream:
                    kind = format_of(file.name, stream.read(132))
                if kind:
                    yield file.relative_to(path).as_posix(), kind, file.read_bytes()
        elif path.suffix.lower() == ".zip":
            yield from _members(path)
        else:
            data = path.read_bytes()
            kind = format_of(path.name, data[:132])
            if kind is None:
                raise ValueError("known are PNG, JPEG, NIfTI, DICOM, NPY, NPZ, ISMRMRD .h5, and folders and zips")
            yield path.name, kind, data
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _unreadable(path.name, error) from error


def _members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if not n.endswith("/")):
            kind = format_of(name)
            if kind is None and not PurePosixPath(name).suffix[1:].isalpha():
                with archive.open(name) as stream:
                    kind = format_of(name, stream.read(132))
            if kind:
                yield name, kind, archive.read(name)


def _slices(kind: str, data: bytes, where: str) -> Iterator[Slice]:
    try:
        yield from decode(kind, data)
    except PogmdmError:
        raise
    except Exception as error:  # noqa: BLE001 - what the decoders of other packages raise is not for us to list
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(reason.split())[:_REASON_LENGTH].rstrip(".") or type(error).__name__
    return DataError(342, f"cannot read training images from {where}: {reason}.")


def _prepare(pixels: np.ndarray, subject: str, anatomy: str, downsample: int, where: str) -> TrainingImage | None:
    """Scale, reduce, and drop slices that are nearly empty."""
    if pixels.dtype.kind not in "fuicb" or pixels.ndim != 2:
        raise _unreadable(where, ValueError(f"pixels of type {pixels.dtype} and {pixels.ndim} dimensions"))
    eight_bit = pixels.dtype == np.uint8
    image = np.abs(pixels).astype(np.float32) if pixels.dtype.kind == "c" else np.abs(pixels.astype(np.float32))
    if not np.isfinite(image).all():
        raise _unreadable(where, ValueError("it holds NaN or infinite numbers"))
    if downsample > 1:
        height, width = (n // downsample * downsample for n in image.shape)
        blocks = image[:height, :width].reshape(height // downsample, downsample, width // downsample, downsample)
        image = blocks.mean(axis=(1, 3))
    if min(image.shape) < _SMALLEST:
        return None
    top = float(np.quantile(image, 0.999))
    if top <= 0 or float((image > 0.05 * top).mean()) < 0.05:
        return None
    quantum = 1.0 / top if eight_bit and downsample == 1 else 0.0
    return TrainingImage(torch.from_numpy(image / top), subject, anatomy, quantum)
