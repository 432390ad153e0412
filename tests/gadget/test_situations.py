"""Scans as people send them: what was seen in public reports, and the right value for each."""

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from helpers.fake_core import core
from helpers.frames import frames_of, prepared, prepared_frames, prepared_of
from helpers.mrd_factory import ENCODING, WEIGHTS, Scan, open_ended, radial_scan, slab
from helpers.peer import configuration, run_in_process, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gadget
import gadget.target
from gadget.errors import DataError
from gadget.files.scan_file import open_scan
from gadget.kspace.phase_correction import IGNORED
from gadget.settings.load import load
from pogmdm_core import load_prior, reconstruct
from pogmdm_core.measurement.noise_check import against_kspace


@pytest.fixture
def run(monkeypatch):
    """Play a scan to the gadget; its reconstruction is the root sum of squares of the zero-filled channels."""
    monkeypatch.setattr(gadget.target, "resolve_core", core)

    def play(header, acquisitions, config=b""):
        return run_in_process(stream(header, acquisitions, config), gadget.pogmdm_recon)

    return play


def images(outcome, series=1):
    return {i.image_index: i.data.squeeze() for i in outcome.images if i.image_series_index == series}


def seen(frame):
    """Root sum of squares of a frame's zero-filled channels."""
    return core().zero_filled(frame).numpy()


def truth(scan):
    """Root sum of squares of a scan's noise-free channels, cropped to the wanted field of view."""
    coil_images = scan.coils() * scan.image()
    start = scan.nx_encoded // 2 - scan.nx // 2
    return np.sqrt((np.abs(coil_images) ** 2).sum(0))[:, start : start + scan.nx]


def error_of(image, expected):
    """Relative to the object's root mean square, after the best scale: whitening changes the channels' gains."""
    inside = expected > 0.1 * expected.max()
    x, y = image[inside], expected[inside]
    return float(np.linalg.norm(x * (x @ y) / (x @ x) - y) / np.linalg.norm(y))


def rebuilt(acq, data=None, trajectory=None, **head_changes):
    """A readout with other samples, positions, or header fields."""
    head = acq.getHead()
    for name, value in head_changes.items():
        setattr(head, name, value)
    data = acq.data if data is None else data
    head.number_of_samples = data.shape[1]
    head.trajectory_dimensions = 0 if trajectory is None else trajectory.shape[1]
    return ismrmrd.Acquisition(head, data=np.ascontiguousarray(data), trajectory=trajectory)


# --- one bad part ---------------------------------------------------------------------------------------------------


def cut(lines):
    return lines[:1]


def not_finite(lines):
    for acq in lines[: len(lines) // 3]:
        acq.data[:] = np.nan
    return lines


def nothing_to_keep(lines):
    for acq in lines:
        acq.discard_pre = acq.number_of_samples
    return lines


def beyond(lines):
    for acq in lines:
        acq.idx.kspace_encode_step_1 += 200
    return lines


@pytest.mark.fault("F01", "F30")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.sampled_from([None, cut, not_finite, nothing_to_keep, beyond]), min_size=4, max_size=4),
    is_flagged=st.booleans(),
)
def test_whole_repetitions_are_always_delivered(run, damage, is_flagged):
    scan = Scan(nx=24, ny=24, n_coils=2, n_repetitions=4, acceleration=2, last_flags=is_flagged, first_flags=is_flagged)
    noise, *lines = scan.acquisitions()
    parts = [[acq for acq in lines if acq.idx.repetition == number] for number in range(4)]
    sent = [acq for part, do in zip(parts, damage, strict=True) for acq in (part if do is None else do(part))]
    outcome = run(scan.header(), [noise, *sent])
    whole = {number + 1 for number, do in enumerate(damage) if do is None}
    assert images(outcome).keys() >= whole
    n_bad = 4 - len(whole)
    assert len(outcome.errors) == (n_bad > 0), outcome.errors
    if n_bad:
        assert outcome.errors[0].startswith("E3")
        assert "slice 0" in outcome.errors[0]


@pytest.mark.fault("F30")
def test_the_error_says_how_many_frames_are_lost(run):
    scan = Scan(n_repetitions=3)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        if acq.idx.repetition == 1:
            acq.data[:] = np.inf
    outcome = run(scan.header(), acquisitions)
    assert sorted(images(outcome)) == [1, 3]
    assert outcome.errors[0].startswith("E330 slice 0 repetition 1:")
    assert "(1 frame(s) lost to this or other errors, see the log; 2 sent.)" in outcome.errors[0]


# --- what the header announces --------------------------------------------------------------------------------------


def second_encoding(scan, mode, n=16):
    """Header of a scan after which an encoding of reference lines is announced."""
    header = scan.header().decode()
    values = {"ex": n, "ey": n, "ez": 1, "efx": 96, "efy": 80, "rx": n, "ry": n, "rfx": 96, "rfy": 80, "limits": ""}
    other = ENCODING.format(**values, trajectory="cartesian", parallel="")
    header = header.replace("</encoding>", "</encoding>" + other, 1)
    return header.replace(">embedded<", f">{mode}<").encode()


def references(n=16, flag=None):
    small = Scan(nx=n, ny=n, oversampling=1, noise_scan=False, last_flags=False)
    made = small.acquisitions()
    for acq in made:
        acq.encoding_space_ref = 1
        if flag:
            acq.set_flag(flag)
    return made


@pytest.mark.fault("F28")
def test_reference_lines_of_another_encoding_are_calibration_or_a_series_of_their_own(run):
    scan = Scan(acceleration=2)
    alone = images(run(scan.header(), scan.acquisitions()))[1]
    flagged = references(flag=ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    header = second_encoding(scan, "separate")
    noise, *lines = scan.acquisitions()
    imaging = [acq for acq in lines if not acq.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)]
    outcome = run(header, [noise, *flagged, *imaging])
    assert {(i.image_series_index, i.data.shape) for i in outcome.images} == {(1, (1, 1, 40, 48)), (10, (1, 1, 40, 48))}
    outcome = run(second_encoding(scan, "embedded"), [noise, *references(), *lines])
    assert outcome.errors == []
    np.testing.assert_allclose(images(outcome)[1], alone, rtol=1e-5)
    assert next(iter(images(outcome, 1001).values())).shape == (16, 16)
    assert next(iter(images(outcome, 1010).values())).shape == (16, 16)


@pytest.mark.parametrize("mode", ["embedded", "separate"])
def test_embedded_lines_are_the_images_whatever_another_encoding_says(mode):
    scan = Scan(acceleration=3)
    own = scan.header().decode()
    own = own[own.index("<parallelImaging>") : own.index("</encoding>")]
    last = "</encoding>".join(second_encoding(scan, "embedded").decode().rsplit("</encoding>", 1))
    before, after = last.rsplit("</encoding>", 1)
    header = before + own.replace("embedded", mode) + "</encoding>" + after
    _, _, (frame,) = frames_of(header.encode(), scan.acquisitions())
    assert sorted(frame.rows) == scan.rows()


@pytest.mark.fault("F28")
@pytest.mark.parametrize("config", [b"", configuration(window__shots=10)])
def test_readouts_of_an_encoding_that_the_header_lacks_cost_no_image(run, config):
    scan = Scan(n_repetitions=2)
    strays = references()[:2]
    for acq in strays:
        acq.encoding_space_ref = 2
    noise, *lines = scan.acquisitions()
    header = second_encoding(scan, "embedded")
    outcome = run(header, [noise, strays[0], *lines[:50], strays[1], *lines[50:]], config)
    assert sorted(images(outcome)) == [1, 2]
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith("E203 readouts refer to encoding 2")
    assert "(1 frame(s) lost to this or other errors, see the log; 2 sent.)" in outcome.errors[0]


def test_simultaneous_slices_are_refused_by_name(run):
    """ismrmrd#209 (<multiband> in the header)."""
    scan = Scan(acceleration=2)
    more = (
        b"<multiband><spacing><dZ>60</dZ></spacing><deltaKz>1</deltaKz><multiband_factor>2</multiband_factor>"
        b"<calibration>separable2D</calibration><calibration_encoding>0</calibration_encoding></multiband>"
    )
    header = scan.header().replace(b"</parallelImaging>", more + b"</parallelImaging>")
    outcome = run(header, scan.acquisitions())
    assert outcome.images == []
    assert outcome.errors[0].startswith("E218 encoding[0].parallelImaging.multiband: 2 simultaneous slices")
    single = header.replace(b"<multiband_factor>2", b"<multiband_factor>1")
    assert run(single, scan.acquisitions()).errors == []


@pytest.mark.parametrize("has_limits", [True, False])
def test_two_partitions_of_which_one_comes_are_a_2_d_scan(has_limits):
    """pulseq#34, mrpro#144: Pulseq through the Siemens converter."""
    scan = Scan(acceleration=2)
    expected = prepared_of(scan)
    header = Scan(acceleration=2, overrides={"ez": 2}).header()
    if has_limits:
        limit = b"<kspace_encoding_step_2><minimum>0</minimum><maximum>0</maximum><center>0</center>"
        header = header.replace(b"<encodingLimits>", b"<encodingLimits>" + limit + b"</kspace_encoding_step_2>")
    found = prepared(header, scan.acquisitions())
    assert torch.equal(found.frame.kspace, expected.frame.kspace)
    assert found.encoding.recon == expected.encoding.recon


def test_one_partition_number_for_all_lines_is_no_reason_to_refuse():
    scan = Scan(acceleration=2)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.idx.kspace_encode_step_2 = 8
    assert torch.equal(prepared_of(scan, acquisitions).frame.kspace, prepared_of(scan).frame.kspace)
    for acq in acquisitions[1::2]:
        acq.idx.kspace_encode_step_2 = 3
    with pytest.raises(DataError, match="E303 .*another kspace_encode_step_2 than"):
        prepared_of(scan, acquisitions)


# --- lines that run backwards ---------------------------------------------------------------------------------------


def epi(scan, shift=0.6, phase=0.5):
    """Noise, three references, and the lines of a scan of which every other one is read backwards, out of step."""
    noise, *lines = scan.acquisitions()
    n = scan.nx_encoded
    turn = np.exp(2j * np.pi * shift * (np.arange(n) - n // 2) / n + 1j * phase)

    def transform(values, how):
        return np.fft.fftshift(how(np.fft.ifftshift(values, axes=-1), norm="ortho"), axes=-1)

    def backwards(acq):
        data = transform(transform(acq.data, np.fft.ifft) * turn, np.fft.fft)[:, ::-1]
        return rebuilt(acq, data.astype(np.complex64), flags=acq.flags | 1 << (ismrmrd.ACQ_IS_REVERSE - 1))

    centre = lines[len(lines) // 2]
    marked = [rebuilt(centre, flags=1 << (ismrmrd.ACQ_IS_PHASECORR_DATA - 1)) for _ in range(3)]
    marked[1] = backwards(marked[1])
    return noise, marked, [backwards(acq) if number % 2 else acq for number, acq in enumerate(lines)]


def test_references_correct_the_phase_of_reversed_lines():
    scan = Scan()
    noise, marked, lines = epi(scan)
    expected = seen(prepared_of(scan).frame)
    ghost = prepared_of(scan, [noise, *lines])
    assert IGNORED not in ghost.warnings  # nobody says there is anything to correct
    assert error_of(seen(ghost.frame), expected) > 0.04
    assert error_of(seen(prepared_of(scan, [noise, *marked, *lines]).frame), expected) < 0.01


@pytest.mark.parametrize("of_one_way", [0, 1])
def test_references_that_cannot_be_used_are_told(of_one_way):
    scan = Scan()
    noise, marked, lines = epi(scan)
    assert IGNORED in prepared_of(scan, [noise, marked[of_one_way], *lines]).warnings


def test_references_of_the_own_repetition_count_and_no_memory_stays():
    scan = Scan(n_repetitions=3, noise_std=0.0, noise_scan=False)
    marked, lines = [], []
    for repetition in range(3):
        one = Scan(noise_std=0.0, noise_scan=False)
        acq, *more = one.acquisitions()  # the first line stands for the noise scan
        _, references, odd = epi(one, shift=0.3 * repetition, phase=0.2 * repetition)
        for readout in (*references, acq, *odd):
            readout.idx.repetition = repetition
        marked.append(references)
        lines.append([acq, *odd])
    everything = [acq for pair in zip(marked, lines, strict=True) for part in pair for acq in part]
    _, buffer, frames = frames_of(scan.header(), everything)
    assert [len(frame.phase_references) for frame in frames] == [3, 3, 3]
    assert [frame.phase_references[0].idx.repetition for frame in frames] == [0, 1, 2]
    assert buffer.budget.held < 5 * (scan.nx_encoded * 8 * scan.n_coils + 5000)  # those of the last one


def test_references_of_repetitions_that_are_not_counted_do_not_pile_up():
    scan = Scan(n_repetitions=4)
    _, marked, lines = epi(Scan())
    for acq in lines:
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    _, buffer, frames = frames_of(scan.header(), [*marked, *lines] * 4)
    assert [len(frame.phase_references) for frame in frames] == [3] * 4
    assert buffer.budget.held < 5 * (scan.nx_encoded * 8 * scan.n_coils + 5000)  # those of the last one


def test_references_of_a_slab_correct_all_its_slices():
    scan = Scan(nx=16, ny=12, n_coils=2, noise_std=0.0, limits=False, trajectory="epi")
    _, marked, lines = epi(scan)
    straight = scan.acquisitions()[1:]
    for acq in (*lines, *straight):
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    header, made = slab(scan.header(), lines)
    _, expected = slab(scan.header(), straight)
    found = prepared_frames(header, [*marked, *made])
    assert len(found) == 5
    for one, other, weight in zip(found, prepared_frames(header, expected), WEIGHTS, strict=True):
        assert IGNORED not in one.warnings
        assert weight == 0 or error_of(seen(one.frame), seen(other.frame)) < 0.01


def test_zero_padding_of_lines_that_are_corrected_is_not_measured():
    """Asymmetric echoes: a shift by a part of a sample leaves nothing exactly 0."""
    scan = Scan()
    noise, marked, lines = epi(scan)
    for acq in (*marked, *lines):
        is_reversed = acq.is_flag_set(ismrmrd.ACQ_IS_REVERSE)
        acq.data[:, slice(-20, None) if is_reversed else slice(20)] = 0
    mask = prepared_of(scan, [noise, *marked, *lines]).frame.mask
    assert not mask[:, :20].any()
    assert mask[:, 20:].all()


def test_epi_without_positions_is_lines():
    """As GE's converter writes it: regridded and turned, references flagged, the dwell time 0."""
    scan = Scan(trajectory="epi", dwell=5.0)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.sample_time_us = 0.0
    found = prepared_of(scan, acquisitions)
    assert torch.equal(found.frame.kspace, prepared_of(Scan()).frame.kspace)
    described = scan.header().replace(
        b"</trajectory>",
        b"</trajectory><trajectoryDescription><identifier>ConventionalEPI</identifier><userParameterLong><name>etl"
        b"</name><value>64</value></userParameterLong></trajectoryDescription>",
    )
    assert "TRAJECTORY_DESCRIPTION_IGNORED" in prepared(described, acquisitions).warnings


# --- positions ------------------------------------------------------------------------------------------------------


def placed(scan, change=lambda row, k: k):
    """Lines of a scan with positions in 1/m, and their samples in the order of the positions that `change` gives."""
    made = []
    n, fov_m = scan.nx_encoded, scan.nx_encoded * 2e-3
    for acq in scan.acquisitions():
        if acq.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            made.append(acq)
            continue
        row = acq.idx.kspace_encode_step_1
        kx, ky = (np.arange(n) - n // 2) / fov_m, np.full(n, (row - scan.ny // 2) / (scan.ny * 2e-3))
        made.append(change(acq, np.stack([kx, ky], 1).astype(np.float32)))
    return made


@pytest.mark.fault("F23")
def test_positions_win_over_counters_and_flags():
    scan = Scan(oversampling=1)
    agreeing = prepared_of(scan, placed(scan, lambda acq, k: rebuilt(acq, trajectory=k)))
    assert agreeing.trajectory == "cartesian"
    assert torch.equal(agreeing.frame.kspace, prepared_of(scan).frame.kspace)

    def zigzag(acq, k):
        step = -1 if acq.idx.kspace_encode_step_1 % 2 else 1
        return rebuilt(acq, acq.data[:, ::step], np.ascontiguousarray(k[::step]))

    def shuffled(acq, k):
        found = rebuilt(acq, trajectory=k)
        found.idx.kspace_encode_step_1 = (7 * acq.idx.kspace_encode_step_1 + 3) % scan.ny
        return found

    expected = reconstructed(prepared_of(scan))
    for change in (zigzag, shuffled):
        found = prepared_of(scan, placed(scan, change))
        assert "TRAJECTORY_NOT_CARTESIAN" in found.warnings
        assert found.trajectory == "other (kxky, unit per_m)"
        assert error_of(reconstructed(found), expected) < 0.03


def test_positions_that_are_not_finite_contradict_nothing():
    scan = Scan(oversampling=1)

    def broken(acq, k):
        if acq.idx.kspace_encode_step_1 == 3:
            k = k * np.float32(np.nan)
        if acq.idx.kspace_encode_step_1 == 7:
            k[[0, 5, -1]] = np.nan
        return rebuilt(acq, trajectory=k)

    found = prepared_of(scan, placed(scan, broken))
    assert found.trajectory == "cartesian"
    assert torch.equal(found.frame.kspace, prepared_of(scan).frame.kspace)


def reconstructed(found):
    settings = load(preset="fast", overrides={"device": "cpu", "uncertainty.method": "off"})
    return reconstruct(found.frame, load_prior(), settings).image.numpy()


@pytest.mark.fault("F26")
@pytest.mark.parametrize(
    ("unit", "factor"),
    [("per_encoded_fov", 80 * 2), ("per_m", 40 / 0.08), ("rad_per_m", 2 * np.pi * 40 / 0.08)],
)
def test_units_that_need_the_field_of_view(unit, factor):
    """MRpro (mrpro#560), Pulseq and KomaMRI; positions come in cycles per pixel."""
    header, acquisitions = radial_scan()
    expected = prepared(header, acquisitions)
    # 40 pixels of 2 mm are wanted; the header's encoded space has twice the field of view along both axes
    doubled = header.replace(
        b"<encodedSpace><matrixSize><x>40</x><y>40</y>", b"<encodedSpace><matrixSize><x>80</x><y>80</y>"
    )
    doubled = doubled.replace(b"<fieldOfView_mm><x>80.0</x><y>80.0</y>", b"<fieldOfView_mm><x>160.0</x><y>160.0</y>", 1)
    assert doubled != header
    scaled = [
        rebuilt(acq, trajectory=(acq.traj * factor / (2 if unit == "per_encoded_fov" else 1)).astype(np.float32))
        for acq in acquisitions
    ]
    for chosen in ("auto", unit):
        found = prepared(doubled, scaled, **{"trajectory.unit": chosen})
        assert found.trajectory == f"radial (kxky, unit {unit})"
        torch.testing.assert_close(found.frame.trajectory, expected.frame.trajectory, atol=1e-4, rtol=1e-4)


@pytest.mark.fault("F26")
def test_a_refusal_tells_what_each_unit_would_mean():
    header, acquisitions = radial_scan()
    wild = [rebuilt(acq, trajectory=acq.traj * np.float32(1e6)) for acq in acquisitions]
    with pytest.raises(DataError, match="E322 .*normalized .*radians .*per_fov .*per_encoded_fov .*per_m .*rad_per_m"):
        prepared(header, wild)


@pytest.mark.fault("F31")
def test_interleaves_of_two_lengths_are_all_used():
    header, acquisitions = radial_scan(n_spokes=24)
    whole = prepared(header, acquisitions).frame
    n = acquisitions[0].number_of_samples
    short = [rebuilt(acq, acq.data[:, :-9], acq.traj[:-9]) if i % 2 else acq for i, acq in enumerate(acquisitions)]
    found = prepared(header, short)
    assert "MIXED_SHAPES" not in found.warnings
    kept = torch.tensor([i % 2 == 0 or s < n - 9 for i in range(24) for s in range(n)])
    assert torch.equal(found.frame.kspace, whole.kspace[:, kept])
    assert torch.equal(found.frame.trajectory, whole.trajectory[:, kept])
    assert torch.equal(found.frame.shot, whole.shot[kept])


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F38")
@pytest.mark.parametrize("n_samples", [64, 128, 256])
def test_few_noise_samples_do_not_shade(n_samples):
    scan = Scan(n_coils=16)
    expected = truth(scan)
    rng = np.random.default_rng(n_samples)
    acquisitions = Scan(n_coils=16, noise_std=0.0).acquisitions()
    white = rng.standard_normal((2, 16, n_samples)) * 0.01
    acquisitions[0] = rebuilt(acquisitions[0], (white[0] + 1j * white[1]).astype(np.complex64))
    found = prepared_of(scan, acquisitions)
    image = seen(found.frame)
    ratio = image[expected > 0.5] / expected[expected > 0.5]
    assert ratio.std() / ratio.mean() < 0.02
    assert abs(ratio.mean() - 1) < 0.05
    assert "NOISE_SCAN_SHORT" not in found.warnings


@pytest.mark.fault("F38")
def test_fewer_are_labelled():
    scan = Scan(n_coils=16)
    acquisitions = scan.acquisitions()
    acquisitions[0] = rebuilt(acquisitions[0], acquisitions[0].data[:, :40])
    assert "NOISE_SCAN_SHORT" in prepared_of(scan, acquisitions).warnings


@pytest.mark.parametrize("gain", [12.0, 40.0])
def test_whole_numbers_have_the_noise_of_rounding_and_zeros_are_samples(gain):
    scan = Scan(n_coils=1, noise_scan=False, noise_std=0.35 / 40)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.data[:] = np.round(acq.data * gain)
    found = prepared_of(scan, acquisitions)
    assert bool(found.frame.mask.all())  # whatever is 0 at the ends of lines
    assert found.frame.noise_floor == pytest.approx(12**-0.5)
    result = reconstruct(found.frame, load_prior(), load(preset="fast", overrides={"device": "cpu"}))
    assert "MODEL_ERROR" not in result.warnings
    assert result.noise_std >= 12**-0.5
    assert 0.05 < result.data_residual < 1.5
    inside = truth(scan) > 0.5
    rmse = float(np.sqrt(np.mean((result.image.numpy() - gain * truth(scan))[inside] ** 2)))
    assert float(result.std[torch.from_numpy(inside)].square().mean().sqrt()) > 0.5 * rmse


def rounded(scan, gain):
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.data[:] = np.round(acq.data * gain)
    return acquisitions


@pytest.mark.parametrize("gain", [6.0, 8.0, 10.0])
def test_rounding_beside_a_noise_scan(gain):
    """Outer k-space is 0 for the most part: that contradicts no noise scan, and the noise is that of rounding."""
    scan = Scan(oversampling=1, noise_std=0.03)
    found = prepared_of(scan, rounded(scan, gain))
    level = against_kspace(found.frame)
    assert level.warnings == ()
    assert level.std >= found.frame.noise_floor > 0
    exact = prepared_of(scan, [rounded(scan, gain)[0], *(rebuilt(a, a.data * gain) for a in scan.acquisitions()[1:])])
    error = torch.view_as_real(found.frame.kspace - exact.frame.kspace).square().mean().sqrt()
    assert float(error) < found.frame.noise_floor < 2 * float(error)  # less where most is 0


def test_rounding_where_no_gadget_has_whitened():
    scan = Scan(noise_scan=False, oversampling=1)
    found = prepared_of(scan, rounded(scan, 20.0), **{"noise.whiten": "upstream"})
    assert "NOISE_SCALE_MISMATCH" in found.warnings
    assert found.frame.noise_floor == pytest.approx(12**-0.5)


def test_rounding_of_a_slab_is_that_of_its_slices():
    scan = Scan(nx=16, ny=12, n_coils=2, noise_scan=False, noise_std=0.1, limits=False)
    header, made = slab(scan.header(), open_ended(scan.acquisitions()))
    whole = [rebuilt(acq, np.round(3 * acq.data)) for acq in made]
    assert [one.frame.noise_floor for one in prepared_frames(header, whole)] == [pytest.approx(12**-0.5)] * 5
    assert [one.frame.noise_floor for one in prepared_frames(header, made)] == [0.0] * 5


def test_numbers_that_float32_cannot_but_hold_as_whole_ones_are_none():
    scan = Scan(noise_scan=False, oversampling=1)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.data[:] *= 1e16
        acq.data[:, :10] = 0
    found = prepared_of(scan, acquisitions).frame
    assert found.noise_floor == 0
    assert not found.mask[:, :10].any()


def averaged(scan, n_averages):
    """Every line as often as `n_averages` (one number per line, in turn) says, each time with other noise."""
    made = []
    for average in range(max(n_averages)):
        again = Scan(**{**scan.__dict__, "seed": 100 + average}).acquisitions()
        noise, lines = again[0], again[1:]
        made += [noise] if average == 0 else []
        for number, acq in enumerate(lines):
            if average < n_averages[number % len(n_averages)]:
                acq.idx.average = average
                acq.clear_all_flags() if average < max(n_averages) - 1 else None
                made.append(acq)
    return made


CENTRE_TWICE = tuple(2 if abs(row - 20) < 10 else 1 for row in range(40))  # of the 40 lines of the scan below


@pytest.mark.fault("F29", "F37")
@pytest.mark.parametrize("claimed", [0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("n_averages", [(1,), (8,), (1, 2, 5), (1, 1, 1, 8), CENTRE_TWICE])
def test_the_standard_deviation_is_right_or_labelled_whatever_the_noise_scan_says(claimed, n_averages):
    scan = Scan(nx=64, ny=64, n_coils=4, noise_std=0.1, acceleration=2, acs=16)
    acquisitions = averaged(scan, n_averages)
    acquisitions[0].data[:] *= claimed
    found = prepared_of(scan, acquisitions)
    result = reconstruct(found.frame, load_prior(), load(preset="fast", overrides={"device": "cpu"}))
    image = result.image.numpy()
    # the whitener turns the channels: compare with what the same whitener makes of clean lines
    clean = [
        rebuilt(acq, None) for acq in Scan(**{**scan.__dict__, "noise_std": 0.0, "acceleration": 1}).acquisitions()
    ]
    clean[0] = acquisitions[0]
    expected = seen(prepared_of(scan, clean).frame)
    inside = truth(scan) > 0.5
    rmse = float(np.sqrt(np.mean((image - expected)[inside] ** 2)))
    std = float(np.sqrt(np.mean(result.std.numpy()[inside] ** 2)))
    labels = set(result.warnings) & {
        "NOISE_TOO_LOUD", "NOISE_TOO_QUIET", "NOISE_SCALE_MISMATCH", "SCALE_UNCERTAIN", "MODEL_ERROR", "STD_LOWER_BOUND"
    }  # fmt: skip
    assert 1 / 1.5 < std / rmse < 1.5 or labels, (std / rmse, result.noise_std, found.frame.noise_std)
    assert std > 0.3 * rmse


@pytest.mark.fault("F29")
def test_averages_that_the_header_does_not_announce_are_told():
    scan = Scan(limits=False)
    first, second = scan.acquisitions(), scan.acquisitions()[1:]
    first[-1].clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    first[-1].clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
    for number, acq in enumerate(second):
        acq.idx.average, acq.scan_counter = 1, len(first) + number
    _, _, frames = frames_of(scan.header(), first + second)
    assert [frame.warnings for frame in frames] == [(), ("AVERAGES_APART",)]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """An ISMRMRD file as the library writes it."""
    path, scan = tmp_path / "scan.h5", Scan()
    dataset = ismrmrd.Dataset(str(path), "dataset", True)
    dataset.write_xml_header(scan.header())
    for acq in scan.acquisitions():
        dataset.append_acquisition(acq)
    dataset.close()
    return path


def messages(path):
    with open_scan(str(path)) as scan:
        return scan.header, b"".join(scan.messages)


@pytest.mark.parametrize("layout", ["scalar", "column", "both", "no namespace"])
def test_layouts_of_self_made_writers(file, layout):
    """ismrmrd-python-tools#14, ismrmrd#151."""
    expected = messages(file)
    with h5py.File(file, "r+") as opened:
        group = opened["dataset"]
        xml, rows = group["xml"][0], group["data"][:]
        if layout in ("scalar", "both"):
            del group["xml"]
            group.create_dataset("xml", data=xml, dtype=h5py.string_dtype())
        if layout in ("column", "both"):
            del group["data"]
            group.create_dataset("data", data=rows.reshape(-1, 1), maxshape=(None, 1))
        if layout == "no namespace":
            del group["xml"]
            bare = xml.replace(b' xmlns="http://www.ismrm.org/ISMRMRD"', b"")
            assert bare != xml
            group.create_dataset("xml", data=[bare], dtype=h5py.string_dtype())
    assert messages(file) == expected


def test_a_fastmri_file_is_called_by_its_name(tmp_path):
    with h5py.File(tmp_path / "fast.h5", "w") as made:
        made["kspace"] = np.zeros((2, 3, 8, 8), np.complex64)
        made.create_dataset("ismrmrd_header", data="<x/>", dtype=h5py.string_dtype())
    with pytest.raises(DataError, match="E301 fast.h5 is a fastMRI file"):
        messages(tmp_path / "fast.h5")


# --- headers of converters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"rx": 96, "ry": 80}, id="interpolated, ismrmrd#131"),
        pytest.param({"efx": 0.192, "efy": 0.08, "rfx": 0.096, "rfy": 0.08}, id="metres, MRIReco#33"),
    ],
)
def test_spaces_of_converters(overrides):
    expected = prepared_of(Scan(acceleration=2)).frame.kspace
    found = prepared_of(Scan(acceleration=2, overrides=overrides))
    torch.testing.assert_close(found.frame.kspace, expected)
    assert not found.warnings


def test_no_number_of_channels_and_no_counting_from_zero():
    scan = Scan(acceleration=2)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.measurement_uid = 0
        acq.idx.contrast, acq.idx.slice = 1, 3
    header = scan.header().replace(b"<receiverChannels>4<", b"<receiverChannels>0<")
    assert torch.equal(prepared(header, acquisitions).frame.kspace, prepared_of(scan).frame.kspace)


def test_a_scan_of_flagged_readouts_says_which_flags_are_in_the_way(run):
    scan = Scan(acceleration=2)
    noise, *lines = scan.acquisitions()
    for acq in lines:
        acq.set_flag(ismrmrd.ACQ_IS_HPFEEDBACK_DATA)
    outcome = run(scan.header(), [noise, *lines])
    assert outcome.errors[0].startswith("E405")
    assert "24 carry flags of other uses" in outcome.errors[0]
