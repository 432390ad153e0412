"""Phase correction of EPI: lines read backwards are shifted and turned against those read forwards.

Gradient delays and eddy currents shift the echo in lines of one direction against the other, which makes a ghost half a
field of view away (Nyquist ghost). Reference lines without phase encoding (ACQ_IS_PHASECORR_DATA) show by how much: in
the image along the readout their product with each other has a phase that is linear in x.

Source: Ahn & Cho 1987, doi:10.1109/TMI.1987.4307795 (linear phase from the product of neighbouring pixels).
"""

from __future__ import annotations

from collections.abc import Sequence

import ismrmrd
import numpy as np

from gadget import logs
from gadget.fourier import centred_fft, centred_ifft
from gadget.kspace.readout import is_reversed
from gadget.scan.frames import AcquiredFrame

IGNORED = "PHASE_CORRECTION_IGNORED"


def phase_corrected(acquired: AcquiredFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Correct the lines of a frame that were read backwards by its reference lines.

    Returns
    -------
        Data as in `acquired`, and warnings: ``PHASE_CORRECTION_IGNORED`` where there are reference lines and reversed
        lines, but no telling how one follows from the other.
    """
    backwards = np.array([is_reversed(head) for head in acquired.heads])
    if not acquired.phase_references or not backwards.any() or backwards.all():
        return acquired.data, ()
    n_coils, n_samples = acquired.data.shape[1:]
    usable = [
        acq
        for acq in acquired.phase_references
        if acq.data.shape == (n_coils, n_samples) and np.isfinite(acq.data).all()
    ]
    turn = _turn(usable) if acquired.on_grid else None
    if turn is None:
        logs.get().warning(
            "%s: %d phase correction lines cannot be used: a ghost half a field of view away is to be expected",
            acquired.key,
            len(acquired.phase_references),
        )
        return acquired.data, (IGNORED,)
    data = acquired.data.copy()
    lines = centred_ifft(data[backwards][..., ::-1], (-1,)) * turn
    data[backwards] = centred_fft(lines, (-1,))[..., ::-1]
    logs.get().info("%s: %d reversed lines corrected by %d references", acquired.key, backwards.sum(), len(usable))
    return data, ()


def _turn(references: Sequence[ismrmrd.Acquisition]) -> np.ndarray | None:
    """Factor `(x,)` that brings the image of a reversed line onto that of a forward one; None without both."""
    ways: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for acq in references:
        backwards = is_reversed(acq.getHead())
        ways[backwards].append(acq.data[:, ::-1] if backwards else acq.data)
    if not ways[0] or not ways[1]:
        return None
    forward, backward = (centred_ifft(np.mean(lines, axis=0), (-1,)) for lines in ways)
    product = (backward * forward.conj()).sum(axis=0)
    slope = np.angle((product[1:] * product[:-1].conj()).sum())
    ramp = np.exp(-1j * slope * np.arange(len(product)))
    offset = np.angle((product * ramp).sum())
    return np.asarray(ramp * np.exp(-1j * offset), np.complex64)
