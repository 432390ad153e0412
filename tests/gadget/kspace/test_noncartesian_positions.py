"""Positions of samples: columns, unit, what is dropped, and where the object ends up."""

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.frames import prepared as prepared_of
from helpers.mrd_factory import radial_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from gadget.errors import DataError
from gadget.kspace.noncartesian import _columns, _unit
from gadget.scan.buffer import AcquisitionBuffer
from gadget.scan.header import read_geometry
from pogmdm_core import zero_filled
from pogmdm_core.measurement.trajectories import radial

UNITS = {"normalized": lambda n: 1 / n, "radians": lambda n: 2 * np.pi / n, "per_fov": lambda n: 1.0}


def units_of(n):
    """Factors to cycles per field of view `(x, y)` of a matrix of n, of the units that need no field of view."""
    return {name: np.full(2, 1 / to_unit(n)) for name, to_unit in UNITS.items()}


def with_columns(acquisitions, change):
    """The same readouts, with ``change(traj)`` `(sample, dims)` for their trajectory."""
    made = []
    for acq in acquisitions:
        traj = np.asarray(change(np.array(acq.traj)), np.float32)
        head = acq.getHead()
        head.trajectory_dimensions = traj.shape[1]
        made.append(ismrmrd.Acquisition(head, data=acq.data, trajectory=traj))
    return made


def spokes(n=40, n_spokes=13, n_read=80):
    """Positions `(n, 2)`, cycles per field of view, columns kx and ky."""
    angle = np.pi * np.arange(n_spokes)[:, None] / n_spokes
    radius = (np.arange(n_read) - n_read // 2) / n_read * n
    return np.stack([(radius * np.cos(angle)).ravel(), (radius * np.sin(angle)).ravel()], axis=1)


@pytest.mark.fault("F26")
@settings(max_examples=60, deadline=None)
@given(unit=st.sampled_from(sorted(UNITS)), n=st.integers(32, 1024), share=st.floats(0.35, 1.0))
def test_the_unit_is_found_whatever_the_matrix(unit, n, share):
    k = spokes(n) * share * UNITS[unit](n)
    assert _unit(k, units_of(n), np.array([n, n]), "frame") == unit


@pytest.mark.fault("F26")
@settings(max_examples=60, deadline=None)
@given(n=st.integers(8, 512), reach=st.floats(0, 4096))
def test_a_unit_is_never_guessed_beyond_the_matrix_nor_between_two(n, reach):
    k = spokes(n) / n * 2 * reach
    try:
        unit = _unit(k, units_of(n), np.array([n, n]), "frame")
    except DataError as error:
        assert error.code == 322
        return
    edge = {name: 0.5 * n * UNITS[name](n) for name in UNITS}
    fits = [name for name in UNITS if 0.28 * edge[name] < reach < 1.3 * edge[name]]
    assert unit in fits


@pytest.mark.fault("F26")
@pytest.mark.parametrize("unit", sorted(UNITS))
def test_every_unit_gives_the_same_frame(unit):
    header, acquisitions = radial_scan()
    expected = prepared_of(header, acquisitions)
    factor = 40 * UNITS[unit](40)  # they come normalised
    for chosen in ("auto", unit):
        found = prepared_of(header, with_columns(acquisitions, lambda t: t * factor), **{"trajectory.unit": chosen})
        torch.testing.assert_close(found.frame.trajectory, expected.frame.trajectory, atol=1e-5, rtol=1e-5)


@pytest.mark.fault("F26")
def test_an_ambiguous_unit_is_refused_and_can_be_told():
    header, acquisitions = radial_scan()
    doubtful = with_columns(acquisitions, lambda t: t * 0.2)
    with pytest.raises(DataError, match="E322 .*trajectory.unit"):
        prepared_of(header, doubtful)
    assert float(prepared_of(header, doubtful, **{"trajectory.unit": "normalized"}).frame.positions.abs().max()) <= 4.01


@pytest.mark.fault("F25")
@settings(max_examples=40, deadline=None)
@given(power=st.floats(0.3, 3), offset=st.floats(0, 0.5), scale=st.floats(1e-4, 1e4))
def test_a_weight_that_grows_with_the_radius_is_a_weight(power, offset, scale):
    k = spokes()
    weight = scale * (offset + (np.hypot(*k.T) / 20) ** power)
    assert _columns(np.column_stack([k, weight]), "auto", "frame") == "kxky_dcf"


@pytest.mark.fault("F25")
@settings(max_examples=40, deadline=None)
@given(value=st.floats(-100, 100), seed=st.integers(0, 99))
def test_a_constant_third_column_is_kz_and_an_unrelated_one_is_refused(value, seed):
    k = spokes()
    assert _columns(np.column_stack([k, np.full(len(k), value)]), "auto", "frame") == "kxkykz"
    with pytest.raises(DataError, match="E321"):
        _columns(np.column_stack([k, np.random.default_rng(seed).random(len(k))]), "auto", "frame")
    with pytest.raises(DataError, match="E321 .*negative"):
        _columns(np.column_stack([k, np.hypot(*k.T) - 3]), "auto", "frame")


@pytest.mark.fault("F25")
def test_columns_are_counted():
    header, acquisitions = radial_scan()
    with pytest.raises(DataError, match="E321 .*65535 columns"):
        _columns(np.zeros((2, 65535), np.float32), "auto", "frame")
    for n in (1, 4):
        with pytest.raises(DataError, match=f"E321 .*{n} columns"):
            prepared_of(header, with_columns(acquisitions, lambda t, n=n: np.tile(t[:, :1], n)))
    with pytest.raises(DataError, match="E321 .*needs 3 columns"):
        prepared_of(header, acquisitions, **{"trajectory.columns": "kxky_dcf"})


@pytest.mark.fault("F25")
def test_weights_reach_the_frame_and_positions_stay():
    header, acquisitions = radial_scan()
    plain = prepared_of(header, acquisitions).frame
    weighted = with_columns(acquisitions, lambda t: np.column_stack([t, np.hypot(*t.T) + 0.01]))
    frame = prepared_of(header, weighted).frame
    assert torch.equal(frame.trajectory, plain.trajectory)
    expected = np.concatenate([acq.traj[:, 2] for acq in weighted])
    np.testing.assert_allclose(frame.density, expected, rtol=1e-6)
    ignored = prepared_of(header, weighted, **{"trajectory.columns": "kxky"}).frame
    assert ignored.density is None


@pytest.mark.fault("F24")
def test_no_trajectory_is_refused_with_three_remedies():
    header, acquisitions = radial_scan()
    for missing in (without_positions(acquisitions), with_columns(acquisitions, np.zeros_like)):
        with pytest.raises(
            DataError, match="E320 .*Store it .*; or .*upstream.* set trajectory.radial .*; or correct the header"
        ):
            prepared_of(header, missing)


def without_positions(acquisitions):
    made = []
    for acq in acquisitions:
        head = acq.getHead()
        head.trajectory_dimensions = 0
        made.append(ismrmrd.Acquisition(head, data=acq.data))
    return made


@pytest.mark.fault("F24")
@pytest.mark.parametrize("reverse", [False, True])
def test_spokes_without_positions_are_placed_as_the_settings_say(reverse):
    """The factory's spokes are uniform, so computed positions must equal the stored ones."""
    header, acquisitions = radial_scan()
    expected = prepared_of(header, acquisitions).frame
    bare = without_positions(acquisitions)
    if reverse:
        for acq in bare:
            acq.data[:] = acq.data[:, ::-1].copy()
            acq.center_sample = acq.number_of_samples - 1 - acq.center_sample
            acq.set_flag(ismrmrd.ACQ_IS_REVERSE)
    header = header.replace(b"<maximum>39</maximum>", b"<maximum>24</maximum>", 1)
    frame = prepared_of(header, bare, **{"trajectory.radial": "uniform"}).frame
    order = torch.arange(frame.shot.numel())
    if reverse:
        order = order.reshape(25, -1).flip(1).reshape(-1)
    torch.testing.assert_close(frame.positions[:, order], expected.positions, atol=1e-5, rtol=1e-5)
    assert torch.equal(frame.kspace[:, order], expected.kspace)


@pytest.mark.fault("F24")
def test_some_spokes_of_a_uniform_scan_keep_their_angles():
    header, acquisitions = radial_scan()
    header = header.replace(b"<maximum>39</maximum>", b"<maximum>24</maximum>", 1)
    some = acquisitions[::4]
    frame = prepared_of(header, without_positions(some), **{"trajectory.radial": "uniform"}).frame
    expected = prepared_of(header, some).frame
    torch.testing.assert_close(frame.positions, expected.positions, atol=1e-5, rtol=1e-5)


@pytest.mark.fault("F24")
def test_a_source_that_does_not_count_its_spokes_sends_them_in_order():
    header, acquisitions = radial_scan()
    expected = prepared_of(header, acquisitions).frame
    bare = without_positions(acquisitions)
    for acq in bare:
        acq.idx.kspace_encode_step_1 = 0
    frame = prepared_of(header, bare, **{"trajectory.radial": "uniform"}).frame
    torch.testing.assert_close(frame.positions, expected.positions, atol=1e-5, rtol=1e-5)


@pytest.mark.fault("F24")
def test_a_spiral_without_positions_is_never_taken_for_spokes():
    header, acquisitions = radial_scan()
    with pytest.raises(DataError, match="E320 .*'spiral'"):
        prepared_of(
            header.replace(b">radial<", b">spiral<"),
            without_positions(acquisitions),
            **{"trajectory.radial": "uniform"},
        )


@pytest.mark.fault("F24")
@pytest.mark.parametrize("said_by", ["settings", "type", "description"])
def test_golden_angles_by_settings_or_header(said_by):
    header, acquisitions = radial_scan()
    properties = {}
    if said_by == "settings":
        properties["trajectory.radial"] = "golden"
    elif said_by == "type":
        header = header.replace(b">radial<", b">goldenangle<")
    else:
        text = b"<trajectoryDescription><identifier>Golden Ratio</identifier></trajectoryDescription>"
        header = header.replace(b"<trajectory>radial</trajectory>", b"<trajectory>radial</trajectory>" + text)
    frame = prepared_of(header, without_positions(acquisitions), **properties).frame
    expected = radial(25, (40, 40), n_read=80, golden=True)
    torch.testing.assert_close(frame.positions, expected.k, atol=1e-9, rtol=1e-9)
    assert torch.equal(frame.shot, expected.shot)


@pytest.mark.fault("F27")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.7])
def test_few_impossible_positions_are_dropped_many_refused(wrong, caplog):
    header, acquisitions = radial_scan(n_spokes=30)
    n = 30 * acquisitions[0].number_of_samples
    one = with_columns(acquisitions[:1], lambda t: np.vstack([[[wrong, 0.0]], t[1:]]))
    prepared = prepared_of(header, one + acquisitions[1:])
    assert prepared.frame.kspace.shape[1] == n - 1
    assert "DROPPED_POSITIONS" in prepared.warnings
    assert ("WARNING", f"slice 0: dropped 1 of {n} samples whose positions cannot be used") in [
        (record.levelname, record.message) for record in caplog.records
    ]
    assert "DROPPED_POSITIONS" not in prepared_of(header, acquisitions).warnings
    many = with_columns(acquisitions, lambda t: np.vstack([np.full((2, 2), wrong), t[2:]]))
    with pytest.raises(DataError, match="E323 .*limit 1 %"):
        prepared_of(header, many, **{"trajectory.unit": "normalized"})


@pytest.mark.fault("F23")
def test_spokes_under_a_cartesian_header_win_with_a_warning(caplog):
    header, acquisitions = radial_scan()
    expected = prepared_of(header, acquisitions)
    found = prepared_of(header.replace(b">radial<", b">cartesian<"), acquisitions)
    assert "TRAJECTORY_NOT_CARTESIAN" in found.warnings
    assert "not lines along kx" in caplog.text
    assert torch.equal(found.frame.trajectory, expected.frame.trajectory)
    assert torch.equal(found.frame.kspace, expected.frame.kspace)
    assert found.trajectory.startswith("other (")
    assert "TRAJECTORY_NOT_CARTESIAN" not in expected.warnings


@pytest.mark.fault("F23")
@pytest.mark.parametrize("word", [b"other", b"propeller", b"rosette"])
def test_other_trajectories_need_positions_and_no_more(word):
    """Words of the schema and others: the positions say it all."""
    header, acquisitions = radial_scan()
    expected, other = prepared_of(header, acquisitions), header.replace(b">radial<", b">" + word + b"<")
    found = prepared_of(other, acquisitions)
    assert torch.equal(found.frame.trajectory, expected.frame.trajectory)
    assert found.trajectory.startswith(f"{word.decode()} (")
    assert "TRAJECTORY_NOT_CARTESIAN" not in found.warnings
    with pytest.raises(DataError, match=f"E320 .*'{word.decode()}'"):
        prepared_of(other, without_positions(acquisitions))


@pytest.mark.fault("F23")
def test_lines_that_carry_their_positions_are_lines():
    from helpers.mrd_factory import Scan

    scan = Scan(acceleration=2)
    acquisitions = scan.acquisitions()
    expected = prepared_of(scan.header(), acquisitions)
    carrying = []
    for acq in acquisitions:
        n, row = acq.number_of_samples, acq.idx.kspace_encode_step_1
        k = np.stack([np.arange(n) / n - 0.5, np.full(n, row / scan.ny - 0.5)], axis=1).astype(np.float32)
        head = acq.getHead()
        head.trajectory_dimensions = 2
        carrying.append(ismrmrd.Acquisition(head, data=acq.data, trajectory=k))
    found = prepared_of(scan.header(), carrying)
    assert torch.equal(found.frame.kspace, expected.frame.kspace)
    assert torch.equal(found.frame.mask, expected.frame.mask)
    assert found.warnings == expected.warnings


@pytest.mark.fault("F33")
def test_discarded_samples_are_left_out_and_reversed_ones_stay_with_their_positions():
    header, acquisitions = radial_scan()
    whole = prepared_of(header, acquisitions).frame
    n_read = acquisitions[0].number_of_samples
    for acq in acquisitions:
        acq.discard_pre, acq.discard_post = 5, 3
        acq.set_flag(ismrmrd.ACQ_IS_REVERSE)
    part = prepared_of(header, acquisitions).frame
    kept = np.tile((np.arange(n_read) >= 5) & (np.arange(n_read) < n_read - 3), len(acquisitions))
    assert torch.equal(part.trajectory, whole.trajectory[:, kept])
    assert torch.equal(part.kspace, whole.kspace[:, kept])
    acquisitions[0].discard_pre = n_read + 7
    found = prepared_of(header, acquisitions)
    assert torch.equal(found.frame.trajectory, part.trajectory[:, part.shot > 0])
    assert {"EMPTY_READOUTS", "INCOMPLETE"} <= set(found.warnings)
    for acq in acquisitions:
        acq.discard_pre = n_read
    with pytest.raises(DataError, match="E305 .*discard"):
        prepared_of(header, acquisitions)


@pytest.mark.fault("F30")
def test_a_scan_off_the_grid_that_was_cut_off_is_labelled_or_refused():
    header, acquisitions = radial_scan(n_spokes=25)
    assert "INCOMPLETE" not in prepared_of(header, acquisitions).warnings
    assert "INCOMPLETE" in prepared_of(header, acquisitions[:20]).warnings
    with pytest.raises(DataError, match="E304 slice 0: one of .* limits.max_accel = 20"):
        prepared_of(header, acquisitions[:1])
    # one spoke that is all there was to come is what somebody wanted
    one = header.replace(b"<maximum>24</maximum>", b"<maximum>0</maximum>")
    assert "INCOMPLETE" not in prepared_of(one, acquisitions[:1]).warnings
    # a larger field of view has more points for as few samples: that is no other scan
    assert "INCOMPLETE" in prepared_of(header, acquisitions[:3], **{"trajectory.fov_factor": "2"}).warnings


@pytest.mark.fault("F28")
def test_encode_steps_beyond_the_matrix_do_not_matter_off_the_grid():
    header, acquisitions = radial_scan(n_spokes=60)  # a matrix of 40
    assert acquisitions[-1].idx.kspace_encode_step_1 == 59
    assert len(torch.unique(prepared_of(header, acquisitions).frame.shot)) == 60


def spot(image):
    y, x = np.unravel_index(int(np.argmax(np.abs(image))), image.shape)
    return int(y), int(x)


@pytest.mark.parametrize("fov_factor", [1.0, 1.4])
@pytest.mark.parametrize("shape", [(40, 40), (40, 48)])
def test_the_object_is_where_it_was_and_as_bright(shape, fov_factor):
    """A point at known pixels of the header's matrix, also when reconstructed on a larger one."""
    ny, nx = shape
    where = (ny // 2 + 7, nx // 2 - 11)
    header, acquisitions = radial_scan(shape=shape, n_spokes=90, point=where)
    prepared = prepared_of(header, acquisitions, **{"trajectory.fov_factor": str(fov_factor)})
    image = zero_filled(prepared.frame).numpy()
    grid = tuple(2 * int(np.ceil(n * fov_factor / 2)) for n in shape)
    assert image.shape == (grid if fov_factor > 1 else shape)
    assert prepared.fov_mm == tuple(2.0 * n for n in image.shape)
    y, x = spot(image)
    assert (y - image.shape[0] // 2, x - image.shape[1] // 2) == (7, -11)
    # what the samples say of the image's sum does not depend on the matrix either
    k0 = int(prepared.frame.positions.norm(dim=0).argmin())
    total = prepared.frame.kspace[0, k0].abs() * np.sqrt(np.prod(image.shape))
    assert float(total) == pytest.approx(1.0, rel=1e-3)


def test_noise_level_follows_the_larger_matrix():
    header, acquisitions = radial_scan(noise_std=0.01)
    plain, large = (prepared_of(header, acquisitions, **{"trajectory.fov_factor": f}).frame for f in ("1", "1.5"))
    assert large.shape == (60, 60)
    assert large.noise_std / plain.noise_std == pytest.approx(40 / 60)
    np.testing.assert_allclose(large.kspace, plain.kspace * (40 / 60), rtol=1e-6)


def test_readout_oversampling_in_the_header_enlarges_nothing():
    """encodedSpace twice as wide as reconSpace: same pixels, same positions, the wanted field of view."""
    header, acquisitions = radial_scan()
    wide = header.replace(b"<encodedSpace><matrixSize><x>40<", b"<encodedSpace><matrixSize><x>80<", 1).replace(
        b"<fieldOfView_mm><x>80.0<", b"<fieldOfView_mm><x>160.0<", 1
    )
    assert wide != header
    expected, found = prepared_of(header, acquisitions), prepared_of(wide, acquisitions)
    assert found.frame.shape == expected.frame.shape == (40, 40)
    assert torch.equal(found.frame.trajectory, expected.frame.trajectory)
    assert found.fov_mm == expected.fov_mm


def test_channels_are_compressed_off_the_grid():
    header, acquisitions = radial_scan(n_coils=4)
    full, few = prepared_of(header, acquisitions), prepared_of(header, acquisitions, **{"coils.n_virtual": "2"})
    assert few.frame.kspace.shape == (2, full.frame.kspace.shape[1])
    assert float(few.frame.kspace.abs().square().sum() / full.frame.kspace.abs().square().sum()) > 0.5


def test_without_flags_frames_off_the_grid_wait_for_the_end():
    header, acquisitions = radial_scan(last_flags=False)
    _, more = radial_scan(last_flags=False)
    for acq in more:
        acq.idx.repetition = 1
    buffer = AcquisitionBuffer(read_geometry(header))
    assert [f for acq in acquisitions + more for f in buffer.add(acq)] == []
    assert [f.key.repetition for f in buffer.flush()] == [0, 1]


@pytest.mark.fault("F26")
def test_how_positions_were_read_goes_with_the_frame():
    """Into the Meta of every image: a wrong guess must be visible there, not in the log alone."""
    header, acquisitions = radial_scan()
    assert prepared_of(header, acquisitions).trajectory == "radial (kxky, unit normalized)"
    for acq in acquisitions:
        acq.resize(acq.number_of_samples, acq.active_channels, 0)
    found = prepared_of(header, acquisitions, **{"trajectory.radial": "golden"})
    assert found.trajectory == "radial (golden spokes, not stored)"
