"""3-D scans: slices after a transform along z, refused where partitions are missing."""

import ismrmrd
import numpy as np
import pytest
from helpers.mrd_factory import NZ, WEIGHTS, Scan, open_ended, radial_scan, slab

from gadget.errors import DataError
from gadget.images.emit import number_of_frame
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry


def frames_of(header, acquisitions):
    buffer = AcquisitionBuffer(read_geometry(header))
    frames = [f for acq in acquisitions for f in buffer.add(acq)] + buffer.flush()
    buffer.failed.raise_first(0)
    return frames


def flat_cartesian():
    scan = Scan(nx=16, ny=12, n_coils=2, noise_scan=False, noise_std=0.0, limits=False)
    return scan.header(), open_ended(scan.acquisitions())


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


LIMITS_OF_0 = (
    b"<encodingLimits><kspace_encoding_step_2><minimum>0</minimum><maximum>0</maximum><center>0</center>"
    b"</kspace_encoding_step_2>"
)


@pytest.mark.fault("F40")
@pytest.mark.parametrize("is_flagged", [True, False])
@pytest.mark.parametrize("flat", [flat_cartesian, flat_radial])
def test_a_slab_whose_limits_are_0_and_that_wants_one_slice_is_a_slab(flat, is_flagged):
    """Only the readouts tell it from a 2-D scan of Pulseq's."""
    header, acquisitions = slab(*flat())
    if not is_flagged:
        for acq in acquisitions:
            acq.clear_all_flags()
    expected = frames_of(header, acquisitions)
    frames = frames_of(header.replace(b"<encodingLimits>", LIMITS_OF_0), acquisitions)
    assert [frame.key.slice for frame in frames] == list(range(NZ))
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.data, other.data)


@pytest.mark.fault("F40")
def test_a_repetition_of_a_slab_that_breaks_off_in_its_first_partition_is_no_2_d_image():
    header, acquisitions = slab(*flat_cartesian())
    again = [ismrmrd.Acquisition(acq.getHead(), data=acq.data) for acq in acquisitions[: len(acquisitions) // NZ]]
    for acq in again:
        acq.idx.repetition = 1
    with pytest.raises(DataError, match="E204 slice 0 repetition 1.*12 of 12"):
        frames_of(header.replace(b"<encodingLimits>", LIMITS_OF_0), acquisitions + again)


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
