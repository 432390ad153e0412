"""What a readout is for, decided from its flags alone."""

from __future__ import annotations

from enum import Enum

import ismrmrd

# Flags that take a readout out of the image: navigators, EPI phase correction, feedback, dummies ...
_SKIP = (
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_PHASECORR_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    30,  # phase stabilisation reference and
    31,  # phase stabilisation; ismrmrd 1.14 has no names for them
)


class Kind(Enum):
    """The five uses of a readout."""

    NOISE = "noise"
    CALIBRATION = "calibration"
    CALIBRATION_AND_IMAGING = "calibration_and_imaging"
    IMAGING = "imaging"
    SKIP = "skip"


def has_flag(flags: int, flag: int) -> bool:
    """Whether a flag, numbered from 1 as ISMRMRD does, is set."""
    return bool(flags >> (flag - 1) & 1)


def wants_raw_correction(flags: int) -> bool:
    """Whether a readout would be one of the image but for the flag of surface coil correction.

    siemens_to_ismrmrd sets it on imaging readouts whose channels want a factor, which is not in the file (ismrmrd#246);
    others on maps of the coils.
    """
    surface = 1 << (ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA - 1)
    return bool(flags & surface) and classify(flags & ~surface) not in (Kind.NOISE, Kind.SKIP)


def classify(flags: int) -> Kind:
    """Tell what a readout is for.

    Parameters
    ----------
    flags
        The 64-bit flags of its header. Noise wins over everything, skipping over imaging: a phase
        correction line of a calibration scan is a phase correction line.
    """
    if has_flag(flags, ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
        return Kind.NOISE
    if any(has_flag(flags, flag) for flag in _SKIP):
        return Kind.SKIP
    if has_flag(flags, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING):
        return Kind.CALIBRATION_AND_IMAGING
    if has_flag(flags, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION):
        return Kind.CALIBRATION
    return Kind.IMAGING
