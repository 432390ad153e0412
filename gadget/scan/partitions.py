"""3-D scans with all their partitions, as slices: an inverse Fourier transform along z, then 2-D frames.

Along z nothing is left to be reconstructed when every in-plane line, spoke or interleave was measured at every
kz, which Cartesian 3-D scans and stacks of stars (or spirals) at equal angles do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import ismrmrd
import numpy as np

from gadget.errors import DataError
from gadget.fourier import centred_ifft
from gadget.scan.geometry import Encoding, Space

_SAME_POSITION = 1e-3  # of the extent of k-space


def slice_encoding(encoding: Encoding) -> Encoding:
    """Encoding of one slice of a 3-D scan: one partition, as thick as a partition."""
    thickness = encoding.encoded.fov_mm[2] / encoding.encoded.matrix[2]

    def one(space: Space) -> Space:
        return Space((*space.matrix[:2], 1), (*space.fov_mm[:2], thickness))

    n_slabs = encoding.last.get("slice", 0) + 1
    last = {**encoding.last, "slice": n_slabs * n_slices(encoding) - 1}
    return replace(encoding, encoded=one(encoding.encoded), recon=one(encoding.recon), last=last)


def flat(encoding: Encoding) -> Encoding:
    """Encoding of a 2-D scan whose header announces several partitions; its slices are as thick as the slab."""

    def one(space: Space) -> Space:
        return Space((*space.matrix[:2], 1), space.fov_mm)

    if encoding.encoded.matrix[2] == encoding.recon.matrix[2] == 1:
        return encoding
    return replace(encoding, encoded=one(encoding.encoded), recon=one(encoding.recon))


def n_slices(encoding: Encoding) -> int:
    """Slices of a slab inside the wanted field of view, as thick as a partition."""
    nz = encoding.encoded.matrix[2]
    return min(nz, max(1, round(nz * encoding.recon.fov_mm[2] / encoding.encoded.fov_mm[2])))


def to_slices(readouts: Sequence[ismrmrd.Acquisition], encoding: Encoding, key: str) -> list[list[ismrmrd.Acquisition]]:
    """Transform the readouts of a slab along z (unitary) and hand them out by slice.

    Parameters
    ----------
    readouts
        Of one slab, in any order. Readouts that share kspace_encode_step_1 and average are told apart by
        their order within a partition.
    encoding
        With ``encoded.matrix[2]`` partitions.
    key
        Names the slab in errors.

    Returns
    -------
        The readouts of each slice inside the wanted field of view, in the direction of slice_dir. Their
        headers have kspace_encode_step_2 = 0, the number of the slice, and its position. A column of the
        trajectory that is constant within every readout of three is kz and goes.

    Raises
    ------
    DataError
        E204 a partition is missing somewhere, or partitions are sampled at different places.
    """
    nz = encoding.encoded.matrix[2]
    stacks: dict[tuple[int, int, int], dict[int, ismrmrd.Acquisition]] = {}
    seen: Counter[tuple[int, int, int]] = Counter()
    for acq in readouts:
        line, average = acq.idx.kspace_encode_step_1, acq.idx.average
        partition = encoding.partition(acq.idx.kspace_encode_step_2)
        if not 0 <= partition < nz:
            raise _refusal(key, f"kspace_encode_step_2 {acq.idx.kspace_encode_step_2} lies outside {nz} partitions")
        again = seen[line, average, partition]
        seen[line, average, partition] += 1
        stacks.setdefault((line, average, again), {})[partition] = acq
    n_partial = sum(len(stack) < nz for stack in stacks.values())
    if n_partial:
        raise _refusal(key, f"{n_partial} of {len(stacks)} lines or shots are not measured at all {nz} partitions")
    n_wanted = n_slices(encoding)
    first = nz // 2 - n_wanted // 2
    slices: list[list[ismrmrd.Acquisition]] = [[] for _ in range(n_wanted)]
    for stack in stacks.values():
        ordered = [stack[partition] for partition in range(nz)]
        if len({acq.data.shape for acq in ordered}) > 1:
            raise _refusal(key, "the partitions of a line or shot differ in samples or channels")
        trajectory = _in_plane(ordered, key)
        images = centred_ifft(np.stack([acq.data for acq in ordered]), (0,))
        for z in range(n_wanted):
            offset = (first + z - nz // 2) * encoding.encoded.fov_mm[2] / nz
            slices[z].append(_moved(ordered[nz // 2], images[first + z], trajectory, z, n_wanted, offset))
    return slices


def _in_plane(stack: list[ismrmrd.Acquisition], key: str) -> np.ndarray | None:
    """Trajectory `(sample, dims)` shared by all partitions of a shot, without kz; None where there is none."""
    if any(acq.trajectory_dimensions == 0 for acq in stack):
        return None
    k = np.stack([acq.traj for acq in stack]).astype(np.float64)
    if k.shape[2] == 3 and float(np.ptp(k[..., 2], axis=1).max()) <= _SAME_POSITION * float(np.ptp(k[..., :2])):
        k = k[..., :2]
    if not np.abs(k - k[:1]).max() <= _SAME_POSITION * max(float(np.ptp(k[0, :, :2])), 1e-12):
        raise _refusal(key, "the partitions are sampled at different places (rotated stack), or not at finite ones")
    return np.asarray(k[0], np.float32)


def _moved(
    source: ismrmrd.Acquisition,
    data: np.ndarray,
    trajectory: np.ndarray | None,
    z: int,
    n_slices: int,
    offset_mm: float,
) -> ismrmrd.Acquisition:
    """Readout of slice `z`, with the header of the partition at kz = 0."""
    head = source.getHead()
    head.idx.slice = head.idx.slice * n_slices + z
    head.idx.kspace_encode_step_2 = 0
    head.trajectory_dimensions = 0 if trajectory is None else trajectory.shape[1]
    for axis in range(3):
        head.position[axis] += offset_mm * head.slice_dir[axis]
    return ismrmrd.Acquisition(head, data=data.astype(np.complex64), trajectory=trajectory)


def _refusal(key: str, problem: str) -> DataError:
    return DataError(
        204,
        f"{key}: a 3-D scan that is not fully sampled along z: {problem}.",
        "Only 2-D scans and 3-D scans with all partitions are reconstructed; transform it to slices upstream.",
    )
