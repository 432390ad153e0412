"""Frames of scans that a chain has buffered (ReconData): its lines, and its calibration lines where they belong."""

from __future__ import annotations

from collections.abc import Iterator

import ismrmrd
import numpy as np

from gadget import logs
from gadget.errors import DataError, HeaderError
from gadget.scan.assemble import assemble
from gadget.scan.classify import Kind, classify
from gadget.scan.failed import FailedFrames
from gadget.scan.frames import AcquiredFrame, FrameKey
from gadget.scan.geometry import ScanGeometry
from gadget.stream.recon_data import ReconBit, ReconBuffer


def frames_of(bits: tuple[ReconBit, ...], geometry: ScanGeometry, failed: FailedFrames) -> Iterator[AcquiredFrame]:
    """Frames of every bit, calibration lines merged where they are samples of the image.

    What cannot be made is in `failed`, by frame, slice or bit: E204 several partitions, E320 a trajectory, E305 arrays
    and headers that do not belong together, and errors of `assemble`.
    """
    for number, bit in enumerate(bits):
        slices = range(0)
        with failed.tolerated(f"ReconData bit {number}"):
            slices = _slices(bit)
        for slc in slices:
            images: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
            with failed.tolerated(f"ReconData bit {number} slice {slc}"):
                images = _images_of_slice(bit, slc, geometry)
            for key, readouts in images.items():
                frame = None
                with failed.tolerated(str(key)):
                    # the header's receiverChannels is that before a compression upstream
                    frame = assemble(key, readouts, geometry.encoding(key.encoding), None)
                if frame is not None:
                    yield frame


def _slices(bit: ReconBit) -> range:
    """Numbers of a bit's slices; E204 and E320 where they are not lines of 2-D scans."""
    shape = bit.data.data.shape
    if shape[2] > 1:
        raise HeaderError(204, f"ReconData with {shape[2]} partitions: a 3-D scan, only 2-D is supported.")
    if bit.data.has_trajectory:
        raise DataError(
            320,
            "ReconData with a trajectory is not supported.",
            "Send acquisitions of non-Cartesian scans: see pogmdm_noncartesian.xml.",
        )
    return range(shape[6])


def _images_of_slice(bit: ReconBit, slc: int, geometry: ScanGeometry) -> dict[FrameKey, list[ismrmrd.Acquisition]]:
    """Readouts by image, in the order of S and N; averages, which chains keep apart as S or N, are of one image."""
    images: dict[FrameKey, list[ismrmrd.Acquisition]] = {}
    calibration: dict[FrameKey, dict[int, ismrmrd.Acquisition]] = {}
    for s, n in np.ndindex(bit.data.data.shape[5], bit.data.data.shape[4]):
        lines = _lines(bit.data, n, s, slc)
        if not lines:
            continue  # e.g. a repetition that was not acquired
        key = FrameKey.of(next(iter(lines.values())).getHead())
        images.setdefault(key, []).extend(lines.values())
        if key not in calibration:
            calibration[key] = _calibration(bit, (n, s, slc), key, geometry)
    for key, readouts in images.items():
        measured = {acq.idx.kspace_encode_step_1 for acq in readouts}
        readouts += [acq for step, acq in calibration[key].items() if step not in measured]
        readouts.sort(key=lambda acq: acq.idx.kspace_encode_step_1)
        images[key] = [acq for acq in readouts if classify(acq.flags) not in (Kind.NOISE, Kind.SKIP)] or readouts
    return images


def _calibration(
    bit: ReconBit, index: tuple[int, int, int], key: FrameKey, geometry: ScanGeometry
) -> dict[int, ismrmrd.Acquisition]:
    """Calibration lines that are samples of the image, by encode step; nothing where they are another scan's."""
    if bit.ref is None or geometry.encoding(key.encoding).has_foreign_calibration:
        return {}
    own, ref = bit.data.data.shape, bit.ref.data.shape
    if (own[0], own[3]) != (ref[0], ref[3]) or index[2] >= ref[6]:
        logs.get().warning(
            "%s: calibration lines of %d samples and %d channels are not used, the data have %d and %d",
            key,
            ref[0],
            ref[3],
            own[0],
            own[3],
        )
        return {}
    return _lines(bit.ref, *index)


def _lines(buffer: ReconBuffer, n: int, s: int, slc: int) -> dict[int, ismrmrd.Acquisition]:
    """Sampled readouts of one image by their encode step; averages of a reference serve every N and S."""
    n_ro, n_e1, n_e2, n_coils = buffer.data.shape[:4]
    data = buffer.data[..., min(n, buffer.data.shape[4] - 1), min(s, buffer.data.shape[5] - 1), slc]
    heads = buffer.heads[..., min(n, buffer.heads.shape[2] - 1), min(s, buffer.heads.shape[3] - 1), slc]
    found = {}
    for e2 in range(n_e2):
        parsed = [ismrmrd.AcquisitionHeader.from_buffer_copy(raw.tobytes()) for raw in heads[:, e2]]
        sampled = [(i, head) for i, head in enumerate(parsed) if head.number_of_samples > 0]
        if n_e1 != len(parsed):
            # cropped to the sampled lines, the headers were not (GenericReconCartesianReferencePrep)
            if n_e1 != len(sampled):
                raise DataError(
                    305,
                    f"a ReconData buffer has {n_e1} lines, but headers of {len(sampled)} sampled ones.",
                    "Check the chain before the gadget.",
                )
            sampled = [(i, head) for i, (_, head) in enumerate(sampled)]
        for row, head in sampled:
            head.number_of_samples, head.center_sample = n_ro, n_ro // 2  # the buffer is centred
            head.active_channels = head.available_channels = n_coils
            head.discard_pre = head.discard_post = head.trajectory_dimensions = 0
            values = np.ascontiguousarray(data[:, row, e2].T)
            found[head.idx.kspace_encode_step_1] = ismrmrd.Acquisition(head, data=values)
    return found
