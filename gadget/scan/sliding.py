"""Overlapping frames of a running radial or spiral scan: the last shots, again and again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import ismrmrd

from gadget.scan.assemble import assemble
from gadget.scan.buffer import AcquisitionBuffer, number_of, place_of
from gadget.scan.classify import Kind, classify
from gadget.scan.frames import AcquiredFrame, FrameKey
from gadget.scan.geometry import ScanGeometry
from gadget.scan.on_grid import LINES
from gadget.scan.partitions import flat
from gadget.stream.budget import ByteBudget

if TYPE_CHECKING:
    from gadget.settings.schema import GadgetSettings


def buffer_for(geometry: ScanGeometry, settings: GadgetSettings) -> AcquisitionBuffer:
    """Buffer of a scan: with sliding windows where ``window.shots`` asks for them."""
    window, budget = settings.window, ByteBudget(settings.limits.max_buffer_bytes)
    if window.shots:
        return SlidingBuffer(geometry, settings.trigger, budget, window.shots, window.step)
    return AcquisitionBuffer(geometry, settings.trigger, budget)


class SlidingBuffer(AcquisitionBuffer):
    """Makes a frame of the last `shots` readouts every `step` readouts, whatever their repetition and phase.

    Scans on the grid and 3-D ones go their usual way. Holds at most `shots` readouts of each slice; those after
    the last full window are left out, unless there was none: then they are a frame when the scan ends.

    Parameters
    ----------
    geometry, trigger, budget
        Of `AcquisitionBuffer`.
    shots, step
        Readouts of a frame, and from one frame to the next.
    """

    def __init__(self, geometry: ScanGeometry, trigger: str, budget: ByteBudget, shots: int, step: int) -> None:
        super().__init__(geometry, trigger, budget)
        self.shots = shots
        self.step = step
        self._windows: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
        self._window_numbers: dict[FrameKey, list[int]] = {}
        self._made: Counter[FrameKey] = Counter()

    def add(self, acq: ismrmrd.Acquisition) -> list[AcquiredFrame]:
        """Take one readout; return the frame it completes, its number in the place of the repetition."""
        kind, head = classify(acq.flags), acq.getHead()
        key = place_of(FrameKey.of(head))
        if kind is Kind.NOISE or not self._is_known(key):
            return super().add(acq)
        if self._belongs_to_image(kind, key):
            self._note_partition(head, key)
        if self.geometry.encoding(key.encoding).trajectory in LINES or self._is_slab(key):
            return super().add(acq)
        self._take_next_noise()
        self.counts[kind] += 1
        before = self._next_measurement(head, key)
        if not self._belongs_to_image(kind, key):
            return before
        window = self._windows.setdefault(key, [])
        window.append(acq)
        self._window_numbers.setdefault(key, []).append(self._next_number(key))
        self._first.setdefault(key, number_of(head))
        self._count_bytes(acq)
        if len(window) < self.shots:
            return before
        frames = self._frame(key)
        for old in window[: self.step]:
            self._discount_bytes(old)
        del window[: self.step], self._window_numbers[key][: self.step]
        return before + frames

    def _end_measurement(self) -> list[AcquiredFrame]:
        """Complete what there is, and begin new windows."""
        unfilled = self._unfilled()
        frames = super()._end_measurement() + unfilled
        for window in self._windows.values():
            for acq in window:
                self._discount_bytes(acq)
        self._windows.clear()
        self._window_numbers.clear()
        self._made.clear()
        self._first.clear()
        return frames

    def flush(self) -> list[AcquiredFrame]:
        """Complete what never filled a window; called when the stream ends."""
        frames = super().flush() + self._unfilled()
        self._windows.clear()
        self._window_numbers.clear()
        return frames

    def _unfilled(self) -> list[AcquiredFrame]:
        unfilled = [key for key, window in self._windows.items() if window and not self._made[key]]
        # of a slab that was taken for a 2-D scan so far, and is refused now
        unfilled = [key for key in unfilled if not self._is_slab(key)]
        return [frame for key in unfilled for frame in self._frame(key)]

    def _frame(self, key: FrameKey) -> list[AcquiredFrame]:
        """Make a frame of the window of a slice; nothing, and an entry in `failed`, where that is not possible."""
        with self.failed.tolerated(str(key)):
            return [self._assembled_window(key)]
        return []

    def _assembled_window(self, key: FrameKey) -> AcquiredFrame:
        encoding, n_channels = self.geometry.encoding(key.encoding), self.geometry.n_channels
        number = self._made[key]
        self._made[key] += 1
        frame = assemble(
            key._replace(repetition=number),
            self._windows[key],
            flat(encoding),
            n_channels,
            is_window=True,
            numbers=self._window_numbers[key],
        )
        reference = frame.reference
        reference.idx.repetition = min(number, 65535)
        reference.idx.phase = 0
        return replace(frame, reference=reference)
