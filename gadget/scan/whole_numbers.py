"""Whether samples are the counts of a converter."""

from __future__ import annotations

from collections.abc import Sequence

import ismrmrd
import numpy as np

_ALWAYS_WHOLE = 2.0**23  # from here on float32 has no fractions


def are_whole_numbers(readouts: Sequence[ismrmrd.Acquisition]) -> bool:
    """Whether all samples are whole numbers, of which a low gain makes many exact zeros.

    Ask before anything is done to them: a transform leaves their rounding, and no whole numbers. Zeros, and numbers of
    which float32 knows whole ones only, are no evidence.
    """
    found = False
    for acq in readouts:
        values = np.ascontiguousarray(acq.data).view(np.float32)
        values = values[(values != 0) & (np.abs(values) < _ALWAYS_WHOLE)]
        if not (values == np.rint(values)).all():
            return False
        found = found or values.size > 0
    return found
