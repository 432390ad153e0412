"""One image file to its 2-D slices: PNG, JPEG, NIfTI, DICOM, NPY, NPZ and ISMRMRD image series.

Files are given as bytes, so that members of a zip are read like files on disk. nibabel and pydicom
are optional (`pip install 'pogmdm-gadget[train]'`) and imported when the first such file is met.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType

import numpy as np

from pogmdm_core.errors import ConfigError

PICTURES = (".png", ".jpg", ".jpeg")
_DICOM_MAGIC = slice(128, 132)
_ISOTROPIC = 1.2  # pixel sizes that differ by less than this factor count as equal
_MAGNITUDE_LIKE = (0, 1, 5)  # ISMRMRD image types: unknown, magnitude, complex


@dataclass(frozen=True)
class Slice:
    """One 2-D image as stored, real or complex, and what the file says about it (None: nothing)."""

    pixels: np.ndarray
    subject: str | None = None
    anatomy: str | None = None
    pixel_mm: float | None = None


def format_of(name: str, start: bytes = b"") -> str | None:
    """Kind of a file by its name, or by its first 132 bytes for DICOM files without a known ending."""
    lower = PurePosixPath(name).name.lower()
    if lower == "dicomdir" or lower.startswith("._"):
        return None
    for ending, kind in _ENDINGS.items():
        if lower.endswith(ending):
            return kind
    return "dicom" if start[_DICOM_MAGIC] == b"DICM" else None


def decode(kind: str, data: bytes) -> Iterator[Slice]:
    """Slices of one file; anything may be raised on malformed data.

    Parameters
    ----------
    kind
        As `format_of` says.
    data
        The file.

    Raises
    ------
    ConfigError
        E126 when the package that reads this kind is not installed.
    """
    return _DECODERS[kind](data)


def _optional(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            126, f"reading these images needs {module}.", f"pip install {module}, or 'pogmdm-gadget[train]'."
        ) from error


def _picture(data: bytes) -> Iterator[Slice]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        yield Slice(np.asarray(picture.convert("F") if picture.mode != "L" else picture))


def _nifti(data: bytes) -> Iterator[Slice]:
    nibabel = _optional("nibabel")
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    size_of_header = (int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big"))
    kind = nibabel.Nifti2Image if 540 in size_of_header else nibabel.Nifti1Image
    image = kind.from_bytes(data)
    volume = np.asanyarray(image.dataobj)
    if volume.ndim < 2:
        raise ValueError(f"an image of {volume.ndim} dimension(s)")
    volume = volume.reshape(*volume.shape[:3], -1) if volume.ndim > 2 else volume[:, :, None, None]
    spacing = [abs(float(v)) for v in image.header.get_zooms()[:3]]
    for index in range(volume.shape[3]):
        yield from _of_volume(volume[..., index], (spacing + [0.0, 0.0, 0.0])[:3])


def _of_volume(volume: np.ndarray, spacing: list[float]) -> Iterator[Slice]:
    """All slices across the coarsest axis; an isotropic volume is sampled along its three axes."""
    if volume.shape[2] > 1 and max(spacing) < _ISOTROPIC * min(spacing):
        yield from sample_volume(volume, max(spacing))
        return
    across = 2 if volume.shape[2] == 1 else int(np.argmax(spacing))
    pixel = max(size for axis, size in enumerate(spacing) if axis != across)
    for index in range(volume.shape[across]):
        yield Slice(volume.take(index, across), pixel_mm=pixel or None)


def sample_volume(volume: np.ndarray, pixel_mm: float | None = None) -> Iterator[Slice]:
    """Every sixth slice along every axis, the outer sixths left out: an isotropic volume's variety."""
    for axis in range(volume.ndim):
        for index in range(volume.shape[axis] // 6, 5 * volume.shape[axis] // 6, 6):
            yield Slice(volume.take(index, axis), pixel_mm=pixel_mm)


def _dicom(data: bytes) -> Iterator[Slice]:
    pydicom = _optional("pydicom")
    scan = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in scan:
        return  # reports and the like lie beside images
    if int(scan.get("SamplesPerPixel", 1)) != 1:
        raise ValueError("a colour picture")
    subject = str(scan.get("PatientID", "") or scan.get("StudyInstanceUID", "")) or None
    anatomy = str(scan.get("BodyPartExamined", "")).lower() or None
    spacing = scan.get("PixelSpacing")
    pixel = max(float(v) for v in spacing) if spacing else None
    pixels = scan.pixel_array
    for frame in pixels if pixels.ndim == 3 else [pixels]:
        yield Slice(frame, subject, anatomy, pixel)


def _npy(data: bytes) -> Iterator[Slice]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    yield from _of_array(array)


def _of_array(array: np.ndarray) -> Iterator[Slice]:
    if array.ndim not in (2, 3):
        raise ValueError(f"an array of {array.ndim} dimensions; known are (y, x) and (slice, y, x)")
    for pixels in array if array.ndim == 3 else [array]:
        yield Slice(pixels)


def _npz(data: bytes) -> Iterator[Slice]:
    """`vol`, one isotropic volume; or arrays, and optionally `meta`: JSON with a list `slices` of facts."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        if "vol" in archive.files:
            yield from sample_volume(archive["vol"])
            return
        meta = json.loads(str(archive["meta"])) if "meta" in archive.files else {}
        slices = meta.get("slices", [])
        for number, key in enumerate(k for k in archive.files if k != "meta"):
            facts = slices[number] if number < len(slices) else {}
            spacing = facts.get("spacing_mm")
            for found in _of_array(archive[key]):
                yield Slice(
                    found.pixels,
                    str(facts["subject"]) if "subject" in facts else f"#{number}",
                    facts.get("anatomy"),
                    max(float(v) for v in spacing) if spacing else None,
                )


def _ismrmrd(data: bytes) -> Iterator[Slice]:
    """Magnitude and complex image series of one channel; phase, maps and coil profiles are left out."""
    import h5py
    import ismrmrd

    memory = io.BytesIO(data)
    with h5py.File(memory, "r") as file:
        found = [
            (group, name)
            for group in file
            if isinstance(file[group], h5py.Group)
            for name in file[group]
            if isinstance(file[group][name], h5py.Group) and {"header", "data", "attributes"} <= set(file[group][name])
        ]
    if not found:
        raise ValueError("no image series; reconstruct it first")
    for group, name in found:
        with contextlib.closing(ismrmrd.Dataset(memory, group, create_if_needed=False)) as dataset:
            for number in range(dataset.number_of_images(name)):
                image = dataset.read_image(name, number)
                if image.image_type not in _MAGNITUDE_LIKE or image.channels != 1 or "_MAP" in image.attribute_string:
                    continue
                columns, rows = (int(n) for n in image.getHead().matrix_size[:2])
                field = [float(v) for v in image.getHead().field_of_view[:2]]
                pixel = max(field[0] / columns, field[1] / rows) or None
                for pixels in image.data[0]:
                    yield Slice(pixels, pixel_mm=pixel)


_ENDINGS = {
    **dict.fromkeys(PICTURES, "picture"),
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".dcm": "dicom",
    ".ima": "dicom",
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "ismrmrd",
    ".mrd": "ismrmrd",
}
_DECODERS: dict[str, Callable[[bytes], Iterator[Slice]]] = {
    "picture": _picture,
    "nifti": _nifti,
    "dicom": _dicom,
    "npy": _npy,
    "npz": _npz,
    "ismrmrd": _ismrmrd,
}
