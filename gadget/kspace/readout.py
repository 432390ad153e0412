"""Where a readout has its centre, one truth for lines and spokes."""

from __future__ import annotations

import ismrmrd

from gadget.scan.classify import has_flag


def is_reversed(head: ismrmrd.AcquisitionHeader) -> bool:
    """Whether it was played backwards: its samples lie in order of decreasing k."""
    return has_flag(head.flags, ismrmrd.ACQ_IS_REVERSE)


def centre_sample(head: ismrmrd.AcquisitionHeader, n_full: int) -> int:
    """Sample at k = 0, in order of increasing k.

    Some senders put it past the end, or leave it 0: a readout as long as `n_full`, the encoded matrix, is centred then.
    A shorter one that says 0 begins in the centre (half echoes, centre-out spokes). Played backwards, a centre in the
    middle of an even readout stays in the middle.
    """
    n, centre = int(head.number_of_samples), int(head.center_sample)
    if centre >= n or (centre == 0 and n == n_full):
        centre = n // 2
    if is_reversed(head) and centre != n // 2:
        centre = n - 1 - centre
    return centre
