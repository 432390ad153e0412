import contextlib
from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
from skimage.registration import phase_cross_correlation

from gadget.kspace.prepare import prepare
from gadget.phantom.sampling import ScanPlan, sampled_lines
from gadget.phantom.write import N_NOISE_READOUTS, write_phantom
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry
from gadget.settings.load import load
from pogmdm_core import zero_filled
from pogmdm_core.errors import ConfigError, OutputError

PLAN = ScanPlan(shape=(48, 32), n_coils=3, acceleration=3, noise=0.02, n_slices=2, seed=4)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "p.h5"
    write_phantom(path, PLAN, truth=True)
    with ismrmrd.File(str(path), "r") as file:
        return path, file["dataset"].header, file["dataset"].acquisitions[:]


def imaging(readouts, index):
    return [r for r in readouts if not r.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) and r.idx.slice == index]


def test_header_describes_the_scan_and_nobody(scan):
    path, header, _ = scan
    encoding = header.encoding[0]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    assert (encoded.matrixSize.x, encoded.matrixSize.y, encoded.matrixSize.z) == (64, 48, 1)
    assert (recon.matrixSize.x, recon.matrixSize.y) == (32, 48)
    assert encoded.fieldOfView_mm.x == 2 * recon.fieldOfView_mm.x
    assert encoding.trajectory.value == "cartesian"
    assert (
        encoding.encodingLimits.kspace_encoding_step_1.maximum,
        encoding.encodingLimits.kspace_encoding_step_1.center,
    ) == (47, 24)
    assert encoding.encodingLimits.slice.maximum == 1
    assert header.acquisitionSystemInformation.receiverChannels == 3
    assert header.subjectInformation.patientName == "phantom"
    assert header.subjectInformation.patientBirthdate is None
    assert header.studyInformation.studyDate is None


def test_a_noise_adjust_gadget_finds_what_it_asks_for(scan, tmp_path):
    """It stores the covariance under these IDs; another phantom's must never be taken for this one's."""
    _, header, _ = scan
    measurement = header.measurementInformation
    (dependency,) = measurement.measurementDependency
    assert dependency.dependencyType.lower() == "noise"
    assert header.subjectInformation.patientID and measurement.measurementID
    # with an underscore in it that gadget takes the ID as it is
    assert "_" in dependency.measurementID and dependency.measurementID != measurement.measurementID
    other = tmp_path / "other.h5"
    write_phantom(other, replace(PLAN, seed=5, noise=0))
    with ismrmrd.File(str(other), "r") as file:
        its = file["dataset"].header
    assert its.measurementInformation.measurementID != measurement.measurementID
    assert its.measurementInformation.measurementDependency == []


def test_noise_scan_comes_first_with_the_stated_std(scan):
    readouts = scan[2]
    flags = [r.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for r in readouts]
    assert flags == [True] * N_NOISE_READOUTS + [False] * (len(readouts) - N_NOISE_READOUTS)
    noise = np.concatenate([r.data for r in readouts[:N_NOISE_READOUTS]], axis=1)
    assert np.sqrt(noise.real.var()) == pytest.approx(0.02, rel=0.1)


def test_readouts_are_flagged_and_placed(scan):
    readouts = scan[2]
    for index in range(2):
        lines = imaging(readouts, index)
        assert len(lines) == 16
        assert lines[0].isFlagSet(ismrmrd.ACQ_FIRST_IN_SLICE)
        assert [r.isFlagSet(ismrmrd.ACQ_LAST_IN_SLICE) for r in lines] == [False] * 15 + [True]
        centre = [
            r.idx.kspace_encode_step_1 for r in lines if r.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
        ]
        assert centre == [22, 23, 24, 25]
        assert lines[0].position[2] == (-2.5, 2.5)[index]
        assert tuple(lines[0].read_dir) == (1, 0, 0)
        assert tuple(lines[0].phase_dir) == (0, 1, 0)
        assert lines[0].center_sample == 32
    assert [r.isFlagSet(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for r in readouts] == [False] * (len(readouts) - 1) + [True]


def test_a_fully_sampled_noiseless_scan_shows_the_truth(tmp_path):
    path = tmp_path / "full.h5"
    write_phantom(path, ScanPlan(shape=(64, 64), n_coils=2, acceleration=1, noise=0), truth=True)
    with ismrmrd.File(str(path), "r") as file:
        readouts = file["dataset"].acquisitions[:]
    kspace = np.stack([r.data for r in readouts], axis=1)
    assert kspace.shape == (2, 64, 128)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2)), norm="ortho"), axes=(1, 2))[..., 32:96]
    rss = np.sqrt((np.abs(images) ** 2).sum(0))
    with contextlib.closing(ismrmrd.Dataset(str(path), "truth")) as dataset:
        truth = dataset.read_image("image_1", 0)
    assert truth.data.shape == (1, 1, 64, 64)
    assert np.linalg.norm(rss - truth.data[0, 0]) < 0.02 * np.linalg.norm(rss)
    assert truth.data.max() == pytest.approx(1, abs=0.15)


def test_sampled_lines_keep_the_centre_and_the_acceleration():
    lines, is_centre = sampled_lines(256, 4, seed=0)
    assert len(lines) == len(set(lines)) == 64
    assert list(lines[is_centre]) == list(range(128 - 10, 128 + 10))
    assert not np.array_equal(lines, sampled_lines(256, 4, seed=1)[0])
    assert len(sampled_lines(50, 1, 0)[0]) == 50


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"trajectory": "rosette"}, "E111.*cartesian"),
        ({"shape": (8, 64)}, "E110 matrix"),
        ({"n_coils": 0}, "E110 coils"),
        ({"acceleration": 0.5}, "E110 acceleration"),
        ({"noise": -1.0}, "E110 noise"),
        ({"n_slices": 0}, "E110 slices"),
    ],
)
def test_impossible_plans_are_refused_before_writing(tmp_path, wrong, code):
    with pytest.raises(ConfigError, match=code):
        write_phantom(tmp_path / "p.h5", ScanPlan(**wrong))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "p.h5"
    path.write_text("mine")
    small = ScanPlan(shape=(16, 16), n_coils=1)
    with pytest.raises(OutputError, match="E603.*--overwrite"):
        write_phantom(path, small)
    assert path.read_text() == "mine"
    write_phantom(path, small, overwrite=True)
    with ismrmrd.File(str(path), "r") as file:
        assert file["dataset"].has_acquisitions()
        assert "truth" not in file
    assert [p.name for p in tmp_path.iterdir()] == ["p.h5"]


def test_a_complete_scan_is_never_announced_with_less_acceleration_than_it_has(tmp_path):
    """Fewer lines than the header's factor promises count as an incomplete scan."""
    path = tmp_path / "p.h5"
    write_phantom(path, ScanPlan(shape=(48, 32), n_coils=2, acceleration=2.4))
    with ismrmrd.File(str(path), "r") as file:
        encoding = file["dataset"].header.encoding[0]
    assert encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 == 3


@pytest.mark.parametrize(("ny", "acceleration"), [(256, 2.5), (256, 3), (50, 4), (16, 10)])
def test_the_header_expects_no_more_lines_than_there_are(tmp_path, ny, acceleration):
    path = tmp_path / "p.h5"
    write_phantom(path, ScanPlan(shape=(ny, 16), n_coils=1, acceleration=acceleration, noise=0))
    with ismrmrd.File(str(path), "r") as file:
        encoding = read_geometry(file["dataset"].header).encodings[0]
        n_lines = len(file["dataset"].acquisitions[:])
    assert encoding.expected_rows <= n_lines


@pytest.mark.parametrize(
    ("plan", "n_readouts", "kind", "name"),
    [
        (ScanPlan("radial", (64, 64), 2, shots=101, noise=0), 101, 2, "radial"),
        (ScanPlan("radial", (64, 48), 2, acceleration=1, noise=0), 64, 2, "radial"),
        (ScanPlan("spiral", (64, 64), 2, acceleration=1, shots=12, noise=0), 12, 2, "spiral"),
        (ScanPlan("gaussian2d", (64, 64), 2, acceleration=2, noise=0), 32, 2, "other"),
    ],
)
def test_off_the_grid_the_gadget_sees_the_phantom_where_it_is(tmp_path, plan, n_readouts, kind, name):
    """Against the truth in the same file: within half a pixel, and as bright (least squares, samples' own weights)."""
    path = tmp_path / "p.h5"
    write_phantom(path, plan, truth=True)
    with ismrmrd.File(str(path), "r") as file:
        header, readouts = file["dataset"].header, file["dataset"].acquisitions[:]
    assert header.encoding[0].trajectory.value == name
    assert len(readouts) == n_readouts
    assert readouts[0].trajectory_dimensions == kind
    with contextlib.closing(ismrmrd.Dataset(str(path), "truth")) as dataset:
        truth = dataset.read_image("image_1", 0).data[0, 0]
    buffer = AcquisitionBuffer(read_geometry(header))
    (frame,) = [f for acq in readouts for f in buffer.add(acq)]
    image = zero_filled(prepare(frame, None, load()).frame).numpy()
    assert image.shape == plan.shape
    # cross-correlation of the two, its peak to a fraction of a pixel by upsampling 4 times
    found = phase_cross_correlation(truth, image, upsample_factor=4, normalization=None)[0]
    assert np.abs(found).max() <= 0.5
    gain = float((truth * image).sum() / (truth * truth).sum())
    assert 0.75 < gain < 1.15  # the corners of k-space, or some of its points, are missing
    assert np.corrcoef(truth.ravel(), image.ravel())[0, 1] > 0.9


def test_noise_of_a_radial_scan_has_the_stated_level(tmp_path):
    """Twice oversampled spokes have half the dwell time, so sqrt(2) times the noise per sample."""
    path = tmp_path / "p.h5"
    plan = ScanPlan("radial", (32, 32), 3, shots=20, noise=0.02)
    write_phantom(path, plan)
    with ismrmrd.File(str(path), "r") as file:
        noise = [a.data for a in file["dataset"].acquisitions[:N_NOISE_READOUTS]]
    parts = np.stack(noise).view(np.float32)
    assert parts.std() == pytest.approx(0.02 * np.sqrt(2), rel=0.05)


def test_shots_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="E110 shots"):
        write_phantom(tmp_path / "p.h5", ScanPlan("radial", shots=0))
