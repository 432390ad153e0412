"""Readouts in, complete frames out: grouping by index, and deciding when a frame is complete."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import ismrmrd

from gadget import logs
from gadget.errors import DataError
from gadget.scan.assemble import assemble
from gadget.scan.classify import Kind, classify, has_flag, wants_raw_correction
from gadget.scan.failed import FailedFrames
from gadget.scan.frames import AcquiredFrame, FrameKey
from gadget.scan.geometry import Encoding, ScanGeometry
from gadget.scan.on_grid import LINES
from gadget.scan.partitions import flat, slice_encoding, to_slices
from gadget.scan.whole_numbers import are_whole_numbers
from gadget.stream.budget import OBJECT_BYTES, ByteBudget

# Readouts that come after their frame was completed make a frame of their own only if they are
# at least this share of it; fewer are stray lines.
_LATE_SHARE = 0.25

Number = tuple[int, ...]

_FIRST_FLAGS = (ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION)
_LAST_FLAGS = (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)


class AcquisitionBuffer:
    """Holds readouts until their frame is complete.

    Parameters
    ----------
    geometry
        The scan's encodings.
    trigger
        ``slice``, ``repetition``, ``measurement``: the LAST_IN_* flag that completes frames;
        ``auto``: any of them, or a frame of another index beginning when all lines are there
        (sources that set no flags). LAST_IN_MEASUREMENT and `flush` complete everything always.
    budget
        Where the readouts held count, and their limit; None for one of its own.

    Attributes
    ----------
    noise
        Noise readouts of one measurement, in order; another list when another one's take their place.
    counts
        Readouts seen, by `Kind`.
    failed
        Frames that could not be made.
    """

    def __init__(self, geometry: ScanGeometry, trigger: str = "auto", budget: ByteBudget | None = None) -> None:
        self.geometry = geometry
        self.trigger = trigger
        self.budget = budget or ByteBudget()
        self.noise: list[ismrmrd.Acquisition] = []
        self._next_noise: list[ismrmrd.Acquisition] = []
        self.counts: Counter[Kind] = Counter()
        self.failed = FailedFrames()
        self._groups: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
        # numbers of the readouts in `_groups`, and how many came so far, by what tells slices apart
        self._numbers: dict[FrameKey, list[int]] = {}
        self._arrived: Counter[FrameKey] = Counter()
        self._closed: dict[FrameKey, int] = {}
        # partitions (kspace_encode_step_2) that came so far, by what tells slices apart
        self._partitions: dict[FrameKey, set[int]] = {}
        self._ended: FrameKey | None = None
        self._references: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
        self._stale_references: set[FrameKey] = set()
        self._unknown: set[FrameKey] = set()
        self._has_flags = False
        self._last: ismrmrd.AcquisitionHeader | None = None
        self._first: dict[FrameKey, Number] = {}
        self._uncorrected: set[FrameKey] = set()

    def add(self, acq: ismrmrd.Acquisition) -> list[AcquiredFrame]:
        """Take one readout; return the frames it completes, oldest first.

        Frames that cannot be made are in `failed`.

        Raises
        ------
        DataError
            E306 the buffer is full.
        """
        self._take_next_noise()
        self._admit_raw_correction(acq)
        kind = classify(acq.flags)
        self.counts[kind] += 1
        if kind is Kind.NOISE:
            return self._add_noise(acq)
        head = acq.getHead()
        key = FrameKey.of(head)
        if not self._is_known(key):
            return []
        before = self._next_measurement(head, key)
        self._has_flags = self._has_flags or _has_any(acq, (*_FIRST_FLAGS, *_LAST_FLAGS))
        done: list[FrameKey] = []
        if self._belongs_to_image(kind, key):
            self._note_partition(head, key)
            before += self._close_ended(key)
            if self.trigger == "auto" and key not in self._groups:
                done += [other for other in self._groups if not self._waits(other) and self._has_all_lines(other)]
            self._count_bytes(acq)
            self._groups.setdefault(key, []).append(acq)
            self._numbers.setdefault(key, []).append(self._next_number(key))
            self._first.setdefault(key, number_of(head))
        elif has_flag(acq.flags, ismrmrd.ACQ_IS_PHASECORR_DATA):
            self._keep_reference(key, acq)
        # flags count on skipped readouts too: the last of a scan may be a navigator
        done += [other for other in self._flagged(head, key) if other not in done]
        return before + self._close(done)

    def _admit_raw_correction(self, acq: ismrmrd.Acquisition) -> None:
        """Take the flag of surface coil correction off a readout that has the shape of the scan's own."""
        if not wants_raw_correction(acq.flags) or acq.encoding_space_ref >= len(self.geometry.encodings):
            return
        encoding, key = self.geometry.encoding(acq.encoding_space_ref), FrameKey.of(acq.getHead())
        group, n = self._groups.get(key), acq.number_of_samples
        if group is None:  # by the header, then: maps of the coils have another matrix, or positions
            fits = acq.trajectory_dimensions == 0 and encoding.encoded.matrix[0] / 2 <= n <= encoding.encoded.matrix[0]
        else:
            fits = (n, acq.trajectory_dimensions) == (group[0].number_of_samples, group[0].trajectory_dimensions)
        if fits:
            acq.clear_flag(ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA)
            self._uncorrected.add(key)

    def _add_noise(self, acq: ismrmrd.Acquisition) -> list[AcquiredFrame]:
        """Keep a noise readout; the first one of another measurement ends the frames before."""
        self._count_bytes(acq)
        if not self.noise or acq.measurement_uid == self.noise[-1].measurement_uid:
            self.noise.append(acq)
            return []
        logs.get().warning("noise readouts of another measurement: they take the place of those before")
        self._next_noise = [acq]
        return self._end_measurement()

    def _take_next_noise(self) -> None:
        """Forget the noise of a measurement whose last frames have been handed out."""
        if self._next_noise:
            for old in self.noise:
                self._discount_bytes(old)
            self.noise, self._next_noise = self._next_noise, []

    def _keep_reference(self, key: FrameKey, acq: ismrmrd.Acquisition) -> None:
        """Keep a phase correction line for its frame, and for later ones of the slice that have none."""
        if key in self._stale_references:  # repetitions that are not counted
            self._stale_references.remove(key)
            self._forget_references(key)
        self._count_bytes(acq)
        self._references.setdefault(key, []).append(acq)

    def _references_of(self, key: FrameKey) -> tuple[ismrmrd.Acquisition, ...]:
        """Phase correction lines of a frame: its own, else the latest of its slice; older ones are forgotten."""
        same_slice = [other for other in self._references if (other.encoding, other.slice) == (key.encoding, key.slice)]
        if not same_slice:
            return ()
        chosen = key if key in same_slice else same_slice[-1]
        for other in same_slice[: same_slice.index(chosen)]:
            self._forget_references(other)
        return tuple(self._references[chosen])

    def _forget_references(self, key: FrameKey) -> None:
        for acq in self._references.pop(key, ()):
            self._discount_bytes(acq)

    def _is_known(self, key: FrameKey) -> bool:
        """Whether the header has the encoding of a frame; else it is one of `failed` (E203), once."""
        if key in self._unknown:
            return False
        with self.failed.tolerated(str(key)):
            self.geometry.encoding(key.encoding)
            return True
        self._unknown.add(key)
        return False

    def _next_number(self, key: FrameKey) -> int:
        """Number of a readout among those of its slice, in the order in which they come, whatever their repetition."""
        self._arrived[place_of(key)] += 1
        return self._arrived[place_of(key)] - 1

    def _note_partition(self, head: ismrmrd.AcquisitionHeader, key: FrameKey) -> None:
        self._partitions.setdefault(place_of(key), set()).add(head.idx.kspace_encode_step_2)

    def _close_ended(self, key: FrameKey) -> list[AcquiredFrame]:
        """Close the frame whose LAST_IN_SLICE came, unless a readout `key` shows that it was a partition's."""
        ended, self._ended = self._ended, None
        if ended is None or ended not in self._groups or (key == ended and self._is_slab(key)):
            return []
        return self._close([ended])

    def _is_slab(self, key: FrameKey) -> bool:
        """Whether a frame is a 3-D one; a header that wants one slice of several is that of a 2-D scan, too.

        Pulseq's 2-D scans announce 2 partitions after the Siemens converter (pulseq#34). Encoding limits that are all 0
        tell nothing, as some writers care for none: only readouts do.
        """
        encoding = self.geometry.encoding(key.encoding)
        if encoding.recon.matrix[2] == 1 and len(self._partitions.get(place_of(key), ())) <= 1:
            return False
        return encoding.encoded.matrix[2] > 1

    def _next_measurement(self, head: ismrmrd.AcquisitionHeader, key: FrameKey) -> list[AcquiredFrame]:
        """Complete what belongs to another measurement: two scans in one stream must never mix.

        A scan that begins again under the same measurement_uid (some sources write none) shows in scan_counter: it
        falls, to the first readout of a frame that is still open. A fall alone shows nothing, readouts may be sorted.
        """
        last, self._last = self._last, head
        if last is not None:
            again = head.scan_counter < last.scan_counter and self._first.get(key) == number_of(head)
            if again or head.measurement_uid != last.measurement_uid:
                logs.get().warning("the measurement changes within the stream; frames of the one before are completed")
                frames = self._end_measurement()
                return [replace(frame, warnings=(*frame.warnings, "MEASUREMENT_CHANGED")) for frame in frames]
        return []

    def _end_measurement(self) -> list[AcquiredFrame]:
        """Complete what there is and forget the rest."""
        frames = self._close_at_end(list(self._groups))
        self._closed.clear()
        self._arrived.clear()
        self._partitions.clear()
        for key in list(self._references):
            self._forget_references(key)
        self._stale_references.clear()
        self._has_flags = False
        return frames

    def flush(self) -> list[AcquiredFrame]:
        """Complete whatever is left; called when the stream ends."""
        if self._groups:
            logs.get().warning(
                "%d frame(s) ended with the scan, without a flag that says they are complete", len(self._groups)
            )
        return self._close_at_end(list(self._groups))

    def complete(self) -> list[AcquiredFrame]:
        """Complete the frames that have all their lines; called when the stream breaks off."""
        return self._close_at_end([key for key in self._groups if key == self._ended or self._has_all_lines(key)])

    def _belongs_to_image(self, kind: Kind, key: FrameKey) -> bool:
        if kind is Kind.CALIBRATION:
            own = self.geometry.encoding(key.encoding)
            # an encoding of reference lines alone need not say what they are
            asked = (own,) if own.calibration else self.geometry.encodings
            return not any(encoding.has_foreign_calibration for encoding in asked)
        return kind in (Kind.IMAGING, Kind.CALIBRATION_AND_IMAGING)

    def _flagged(self, head: ismrmrd.AcquisitionHeader, key: FrameKey) -> list[FrameKey]:
        flags = head.flags
        if has_flag(flags, ismrmrd.ACQ_LAST_IN_MEASUREMENT):
            return list(self._groups)
        # with averages, sources set the flags once per average
        last_average = self.geometry.encoding(key.encoding).last.get("average", 0)
        if head.idx.average < last_average:
            return []
        if has_flag(flags, ismrmrd.ACQ_LAST_IN_REPETITION) and self.trigger in ("auto", "repetition"):
            # of interleaved slices each may have the flag at its own end: those with fewer readouts wait for theirs
            enough = len(self._groups.get(key, ()))
            same = [k for k in self._groups if (k.encoding, k.repetition) == (key.encoding, key.repetition)]
            return [k for k in same if len(self._groups[k]) >= enough]
        if has_flag(flags, ismrmrd.ACQ_LAST_IN_SLICE) and self.trigger in ("auto", "slice"):
            if key not in self._groups:
                return []
            if self.geometry.encoding(key.encoding).encoded.matrix[2] == 1:
                return [key]
            if self._is_slab(key):
                return [key] if self._is_even(key) else []
            self._ended = key  # the next readout tells whether this was a 2-D scan or a slab's first partition
        return []

    def _is_even(self, key: FrameKey) -> bool:
        """Whether all partitions of a slab have as many readouts; some sources flag the end of each one."""
        counts = Counter(acq.idx.kspace_encode_step_2 for acq in self._groups[key])
        n_partitions = self.geometry.encoding(key.encoding).encoded.matrix[2]
        return len(counts) >= n_partitions and len(set(counts.values())) == 1

    def _has_all_lines(self, key: FrameKey) -> bool:
        """Whether every regular line of every average is there; never known off the grid."""
        encoding = self.geometry.encoding(key.encoding)
        if encoding.trajectory not in LINES:
            return False  # encode steps count readouts there, and nobody says how many are to come
        lines = {
            (acq.idx.kspace_encode_step_1, acq.idx.kspace_encode_step_2, acq.idx.average)
            for acq in self._groups[key]
            if classify(acq.flags) is not Kind.CALIBRATION
        }
        n_partitions = encoding.encoded.matrix[2] if self._is_slab(key) else 1
        return len(lines) >= encoding.expected_rows * n_partitions * (encoding.last.get("average", 0) + 1)

    def _waits(self, key: FrameKey) -> bool:
        """Whether this frame's source sets flags, so that its LAST will come."""
        return any(_has_any(acq, _FIRST_FLAGS) for acq in self._groups[key])

    def _close_at_end(self, keys: list[FrameKey]) -> list[AcquiredFrame]:
        """Close frames that no flag closed, and say so where the source sets flags."""
        cut = {key for key in keys if self._has_flags and not any(_has_any(a, _LAST_FLAGS) for a in self._groups[key])}
        return [
            replace(frame, warnings=(*frame.warnings, "NO_LAST_FLAG")) if frame.key in cut else frame
            for frame in self._close(keys)
        ]

    def _close(self, keys: list[FrameKey]) -> list[AcquiredFrame]:
        frames = []
        for key in keys:
            group, numbers = self._groups.pop(key), self._numbers.pop(key)
            del self._first[key]
            for acq in group:
                self._discount_bytes(acq)
            if len(group) < _LATE_SHARE * self._closed.get(key, 0):
                logs.get().warning("%s: dropped %d readouts that came after its last one", key, len(group))
                continue
            made = self._assembled(key, group, numbers)
            if key in self._closed and all(acq.idx.average > 0 for acq in group):
                logs.get().warning(
                    "%s: further averages of a frame that was complete: the header's encodingLimits tell of none. They "
                    "make an image of their own",
                    key,
                )
                made = [replace(frame, warnings=(*frame.warnings, "AVERAGES_APART")) for frame in made]
            if key in self._uncorrected:
                self._uncorrected.remove(key)
                made = [replace(frame, warnings=(*frame.warnings, "RAW_CORRECTION_NOT_APPLIED")) for frame in made]
            self._closed[key] = len(group)
            self._stale_references.add(key)
            frames += made
        return frames

    def _assembled(self, key: FrameKey, group: list[ismrmrd.Acquisition], numbers: list[int]) -> list[AcquiredFrame]:
        """Make the frame of a 2-D scan, or those of a slab's slices."""
        encoding = self.geometry.encoding(key.encoding)
        if not self._is_slab(key):
            made = self._assembled_2d(key, group, flat(encoding), numbers)
        else:
            made, are_whole = [], are_whole_numbers(group)  # no longer to be seen after the transform
            with self.failed.tolerated(str(key)):
                for part in to_slices(group, encoding, str(key)):
                    made += self._assembled_2d(FrameKey.of(part[0].getHead()), part, slice_encoding(encoding), None)
            made = [replace(frame, are_whole_numbers=are_whole) for frame in made]
        references = self._references_of(key)  # a slab's, for all its slices: they have other numbers
        return [replace(frame, phase_references=references) for frame in made]

    def _assembled_2d(
        self, key: FrameKey, group: list[ismrmrd.Acquisition], encoding: Encoding, numbers: list[int] | None
    ) -> list[AcquiredFrame]:
        """Assemble a frame; nothing, and an entry in `failed`, where that is not possible."""
        with self.failed.tolerated(str(key)):
            return [assemble(key, group, encoding, self.geometry.n_channels, numbers=numbers)]
        return []

    def _count_bytes(self, acq: ismrmrd.Acquisition) -> None:
        if not self.budget.hold(_n_bytes(acq)):
            raise DataError(
                306,
                f"{self.budget.held} bytes of readouts wait for their frames, more than limits.max_buffer_bytes = "
                f"{self.budget.limit}.",
                "Set trigger=slice or repetition, or raise the limit.",
            )

    def _discount_bytes(self, acq: ismrmrd.Acquisition) -> None:
        self.budget.release(_n_bytes(acq))


def number_of(head: ismrmrd.AcquisitionHeader) -> Number:
    """What no other readout of a scan has: its count, its line and its indices (some sources count anew by these)."""
    i = head.idx
    return head.scan_counter, i.kspace_encode_step_1, i.kspace_encode_step_2, i.average, i.phase, i.repetition


def place_of(key: FrameKey) -> FrameKey:
    """What tells slices apart, whatever the time."""
    return key._replace(phase=0, repetition=0)


def _has_any(acq: ismrmrd.Acquisition, flags: tuple[int, ...]) -> bool:
    return any(has_flag(acq.flags, flag) for flag in flags)


def _n_bytes(acq: ismrmrd.Acquisition) -> int:
    return int(acq.data.nbytes + acq.traj.nbytes) + 340 + OBJECT_BYTES
