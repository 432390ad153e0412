"""3-D scans: slices after a transform along z, refused where partitions are missing."""

import ismrmrd
import numpy as np
import pytest
from helpers.mrd_factory import Scan, radial_scan

from gadget.errors import DataError
from gadget.images.emit import number_of_frame
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry

NZ = 5
WEIGHTS = np.array([1.0, 0.0, 3.0, -2.0, 0.5])  # of the object in each slice


def slab(header, flat, columns=2, n_wanted=NZ):
    """A 2-D scan as a slab: slice z holds `WEIGHTS[z]` times it, kz enters as the partition."""
    header = header.replace(b"<z>5</z>", b"<z>10</z>", 1).replace(b"<z>5</z>", f"<z>{2 * n_wanted}</z>".encode(), 1)
    header = header.replace(b"<z>1</z>", f"<z>{NZ}</z>".encode(), 1)
    along_z = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(WEIGHTS), norm="ortho"))
    made = []
    for step, weight in enumerate(along_z):
        for acq in flat:
            head = acq.getHead()
            traj = np.array(acq.traj)
            if columns == 3 and traj.size:
                kz = np.full((len(traj), 1), (step - NZ // 2) / NZ, np.float32)
                traj = np.concatenate([traj, kz], axis=1)
            head.trajectory_dimensions = traj.shape[1] if traj.size else 0
            head.idx.kspace_encode_step_2 = step
            head.position[:] = [1.0, 2.0, 3.0]
            head.slice_dir[:] = [0.0, 0.6, 0.8]
            data = (weight * acq.data).astype(np.complex64)
            made.append(ismrmrd.Acquisition(head, data=data, trajectory=traj if traj.size else None))
    return header, made


def frames_of(header, acquisitions):
    buffer = AcquisitionBuffer(read_geometry(header))
    frames = [f for acq in acquisitions for f in buffer.add(acq)] + buffer.flush()
    buffer.failed.raise_first(0)
    return frames


def flat_cartesian():
    scan = Scan(nx=16, ny=12, n_coils=2, noise_scan=False, noise_std=0.0, limits=False)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
    return scan.header(), acquisitions


def flat_radial():
    header, acquisitions = radial_scan(n_spokes=7)
    acquisitions[-1].clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return header, acquisitions


@pytest.mark.fault("F40")
@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("flat", [flat_cartesian, flat_radial])
def test_a_slab_becomes_its_slices(flat, columns):
    header, acquisitions = flat()
    frames = frames_of(*slab(header, acquisitions, columns))
    assert [frame.key.slice for frame in frames] == list(range(NZ))
    expected = np.stack([acq.data for acq in acquisitions])
    for z, frame in enumerate(frames):
        np.testing.assert_allclose(frame.data, WEIGHTS[z] * expected, atol=1e-5 * np.abs(expected).max())
        assert frame.reference.idx.slice == z
        offset = (z - NZ // 2) * 2.0
        assert list(frame.reference.position) == pytest.approx([1.0, 2.0 + 0.6 * offset, 3.0 + 0.8 * offset])
        assert frame.encoding.recon.fov_mm[2] == frame.encoding.encoded.fov_mm[2] == 2.0
        assert frame.encoding.recon.matrix[2] == 1
        assert not frame.warnings
        if not frame.on_grid:
            np.testing.assert_array_equal(frame.trajectory, np.stack([acq.traj for acq in acquisitions]))


def test_slice_oversampling_is_cut_off():
    frames = frames_of(*slab(*flat_cartesian(), n_wanted=3))
    assert len(frames) == 3
    strength = [np.abs(frame.data).max() for frame in frames]
    assert np.array(strength) / max(strength) == pytest.approx(np.abs(WEIGHTS[1:4]) / 3, abs=1e-4)
    assert [frame.reference.position[2] for frame in frames] == pytest.approx([1.4, 3.0, 4.6])


def test_slices_of_a_slab_have_their_place_in_the_scan():
    frames = frames_of(*slab(*flat_cartesian(), n_wanted=3))
    assert [number_of_frame(frame.key, frame.encoding) for frame in frames] == list(range(len(frames)))


def test_partitions_may_be_the_inner_loop():
    header, acquisitions = flat_cartesian()
    header, stacked = slab(header, acquisitions)
    n = len(acquisitions)
    inner = [stacked[partition * n + line] for line in range(n) for partition in range(NZ)]
    for one, other in zip(frames_of(header, inner), frames_of(header, stacked), strict=True):
        np.testing.assert_allclose(one.data, other.data, atol=1e-6)


@pytest.mark.fault("F40")
def test_a_missing_partition_is_refused():
    header, acquisitions = slab(*flat_cartesian())
    with pytest.raises(DataError, match=r"E204 .*1 of 12 lines or shots are not measured at all 5 partitions"):
        frames_of(header, acquisitions[:-1])
    with pytest.raises(DataError, match="E204 .*12 of 12"):
        frames_of(header, acquisitions[: -len(acquisitions) // NZ])


@pytest.mark.fault("F40")
def test_a_rotated_stack_is_refused():
    header, acquisitions = slab(*flat_radial())
    acquisitions[3].traj[:] = acquisitions[3].traj[:, ::-1].copy()
    with pytest.raises(DataError, match="E204 .*rotated stack"):
        frames_of(header, acquisitions)


@pytest.mark.fault("F40")
def test_a_partition_outside_the_slab_is_refused():
    header, acquisitions = slab(*flat_cartesian())
    acquisitions[3].idx.kspace_encode_step_2 = 9
    with pytest.raises(DataError, match="E204 .*kspace_encode_step_2 9 lies outside 5 partitions"):
        frames_of(header, acquisitions)
