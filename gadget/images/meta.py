"""The one table of series and Meta attributes, in the three dialects that receivers read.

``GADGETRON_*`` keys are Gadgetron's, those without prefix the ISMRMRD document's and FIRE's,
``POGMDM_*`` ours. Two traps shape the values: everything travels as text, and a list of one
element comes back as a plain string, so comments always have at least two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ismrmrd
import numpy as np

from gadget.images.integer_pixels import PixelScale
from pogmdm_core.settings import HELD_OUT_METHODS

_LONGEST = 1024  # characters: DICOM's LT holds ten times that, its ST, where comments land, this many

NOT_CALIBRATED = "relative uncertainty over posterior samples, not a calibrated error bar"
CALIBRATED = "scaled by the prediction error of held-out k-space, right on average over the object, not per lesion"


@dataclass(frozen=True)
class Series:
    """One output series: its number above ``output.series_base``, image type, roles and names."""

    offset: int
    image_type: int
    gadgetron_role: str
    mrd_role: str | tuple[str, ...]
    comment: tuple[str, ...]
    suffix: str


SERIES: Mapping[str, Series] = {
    "image": Series(1, ismrmrd.IMTYPE_MAGNITUDE, "Image", "Image", ("POGMDM", "IMAGE"), "_POGMDM"),
    "mean": Series(2, ismrmrd.IMTYPE_MAGNITUDE, "Image", "Image", ("POGMDM", "MEAN"), "_POGMDM_MEAN"),
    "phase": Series(3, ismrmrd.IMTYPE_PHASE, "Phase", "Phase", ("POGMDM", "PHASE"), "_POGMDM_PHASE"),
    "map": Series(4, ismrmrd.IMTYPE_MAGNITUDE, "Image", "Image", ("POGMDM", "MAP"), "_POGMDM_MAP"),
    "std": Series(
        10,
        ismrmrd.IMTYPE_MAGNITUDE,
        "STD_MAP",
        ("Quantitative", "STD_MAP"),
        ("POGMDM", "STD"),
        "_POGMDM_STD",
    ),
    "csm": Series(11, ismrmrd.IMTYPE_COMPLEX, "CoilSensitivity", "CoilSensitivity", ("POGMDM", "CSM"), "_POGMDM_CSM"),
    "samples": Series(20, ismrmrd.IMTYPE_MAGNITUDE, "Image", "Image", ("POGMDM", "SAMPLE"), "_POGMDM_SAMPLE"),
    "fallback": Series(
        90, ismrmrd.IMTYPE_MAGNITUDE, "Image", "Image", ("POGMDM", "FALLBACK", "zero-filled"), "_POGMDM_FALLBACK"
    ),
}


def attributes(
    name: str,
    values: np.ndarray,
    directions: Mapping[str, Sequence[float]],
    own: Mapping[str, object],
    number: int,
    scale: PixelScale,
    power: int = 1,
) -> ismrmrd.Meta:
    """Meta attributes of one image.

    Parameters
    ----------
    name
        Key of `SERIES`.
    values
        What its pixels stand for; magnitudes get a display window from them, in units of the pixels that are sent.
    directions
        ``row`` and ``column``, three numbers each.
    own
        ``POGMDM_*`` values, names without the prefix.
    number
        image_index of its header.
    scale
        value = slope * pixel + intercept.
    power
        What pixels were multiplied with beside the slope of the image series; told in comment and description.
    """
    series = SERIES[name]
    comment, suffix = list(series.comment), series.suffix
    if power > 1:
        comment.append(f"x{power}")
        suffix += f"_x{power}"
    meaning = CALIBRATED if own.get("UncertaintyMethod") in HELD_OUT_METHODS else NOT_CALIBRATED
    if name == "std":
        comment.append(meaning)
    if name == "image":
        comment.append(str(own.get("Estimate", "")).upper() or "IMAGE")
    history = ["POGMDM", "AI"] if name != "fallback" else ["POGMDM", "FALLBACK"]
    role = list(series.mrd_role) if isinstance(series.mrd_role, tuple) else series.mrd_role
    meta = {
        "GADGETRON_DataRole": series.gadgetron_role,
        "GADGETRON_ImageNumber": str(number),  # DicomFinishGadget ends the scan where it is missing
        "GADGETRON_ImageCategory": series.gadgetron_role,
        "DataRole": role,
        "GADGETRON_ImageComment": comment,
        "ImageComments": comment,
        "ImageComment": comment,
        "GADGETRON_SeqDescription": suffix,
        "SeriesDescriptionAdditional": suffix,
        "SequenceDescriptionAdditional": suffix.lstrip("_"),
        "GADGETRON_ImageProcessingHistory": history,
        "ImageProcessingHistory": history,
        "Keep_image_geometry": "1",
        "ImageRowDir": [f"{v:.18f}" for v in directions["row"]],
        "ImageColumnDir": [f"{v:.18f}" for v in directions["column"]],
        # Gadgetron's convention is the inverse: pixel = ratio * value + offset
        "GADGETRON_ScaleRatio": repr(1 / scale.slope),
        "GADGETRON_ScaleOffset": repr(0.0 - scale.intercept / scale.slope),
        "RescaleSlope": repr(scale.slope),
        "RescaleIntercept": repr(scale.intercept),
    }
    if series.image_type == ismrmrd.IMTYPE_MAGNITUDE:
        low, high = (np.percentile(values, (1, 99)) - scale.intercept) / scale.slope
        low = 0.0 if name == "std" else low
        # these attributes are whole numbers; a window of less than one says nothing
        if high - low >= 2:
            for prefix in ("GADGETRON_", ""):
                meta[f"{prefix}WindowCenter"] = str(round((low + high) / 2))
                meta[f"{prefix}WindowWidth"] = str(round(high - low))
    for key, value in own.items():
        meta[f"POGMDM_{key}"] = _short(str(value))
    if name == "std":
        meta["POGMDM_UnitsOfStd"] = "same as the image series"
        meta["POGMDM_Std"] = meaning
    return ismrmrd.Meta(meta)


def _short(text: str) -> str:
    """Cut what receivers' fields cannot hold, and mark that it was cut."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
