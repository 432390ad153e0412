from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.frames import frames_of, prepared_of, with_channels
from helpers.mrd_factory import Scan

from gadget.errors import DataError
from gadget.kspace.cartesian import sample_columns
from gadget.kspace.noise_scan import NoiseScan, channels_of, make_whitener
from pogmdm_core.measurement.noise import estimate_frame_noise


def centred_fft(images):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes)


@pytest.mark.fault("F21")
def test_oversampling_removal_is_exact():
    scan = Scan(noise_std=0, noise_scan=False)
    prepared = prepared_of(scan)
    middle = slice(scan.nx_encoded // 2 - scan.nx // 2, scan.nx_encoded // 2 + scan.nx // 2)
    expected = centred_fft((scan.coils() * scan.image())[:, :, middle])
    assert prepared.frame.kspace.shape == (scan.n_coils, scan.ny, scan.nx)
    np.testing.assert_allclose(prepared.frame.kspace.numpy(), expected, atol=2e-5 * np.abs(expected).max())
    assert prepared.fov_mm == (2.0 * scan.ny, 2.0 * scan.nx)
    assert prepared.frame.mask.all()
    assert prepared.frame.noise_std is None
    assert "NOT_WHITENED" in prepared.warnings


@pytest.mark.parametrize("centre", ["middle", 0, 500])  # some senders leave it 0 or put it past the end
def test_oversampling_removed_upstream_is_recognised(centre):
    scan = Scan(noise_std=0, noise_scan=False)
    expected = prepared_of(scan)
    cropped = []
    for acq in scan.acquisitions():
        line = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(acq.data, axes=1), norm="ortho"), axes=1)
        start = scan.nx_encoded // 2 - scan.nx // 2
        line = line[:, start : start + scan.nx]
        data = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(line, axes=1), norm="ortho"), axes=1)
        head = acq.getHead()
        head.number_of_samples = scan.nx
        head.center_sample = scan.nx // 2 if centre == "middle" else centre
        cropped.append(ismrmrd.Acquisition(head, data=data.astype(np.complex64)))
    found = prepared_of(scan, cropped)
    np.testing.assert_allclose(found.frame.kspace, expected.frame.kspace, atol=1e-4)
    assert found.fov_mm == expected.fov_mm


def test_rows_of_a_partial_fourier_scan_keep_the_centre():
    # 12 rows before the centre were never acquired: encode step 0 is row 8, the limits say where DC is
    scan = Scan(first_row=8, noise_std=0, noise_scan=False, oversampling=1)
    prepared = prepared_of(scan)
    mask = prepared.frame.mask.numpy()
    assert not mask[:8].any()
    assert mask[8:].all()
    energy = prepared.frame.kspace.abs().square().sum(dim=(0, 2))
    assert int(energy.argmax()) == scan.ny // 2
    assert prepared.reference.idx.kspace_encode_step_1 == scan.ny // 2 - 8


def test_whitened_noise_has_the_stated_level_and_no_correlation():
    # the noise scan has another dwell time than the data, so its level is another, too
    scan = Scan(noise_std=0.05, dwell=2.5, noise_dwell=10.0, ny=128)
    scan.image = lambda index=0: np.zeros((scan.ny, scan.nx_encoded))
    prepared = prepared_of(scan)
    kspace = prepared.frame.kspace.reshape(scan.n_coils, -1)
    parts = torch.view_as_real(kspace)
    assert float(parts.std()) == pytest.approx(prepared.frame.noise_std, rel=0.03)
    covariance = (kspace @ kspace.mH / kspace.shape[1]).numpy() / (2 * prepared.frame.noise_std**2)
    np.testing.assert_allclose(covariance, np.eye(scan.n_coils), atol=0.1)
    # and the scale is that of the input: the geometric mean of the channels' own noise
    own = np.sqrt(np.diag(scan.mixing() @ scan.mixing().conj().T).real) * 0.05 * np.sqrt(2)
    assert prepared.frame.noise_std == pytest.approx(np.exp(np.log(own).mean()) * np.sqrt(0.5), rel=0.05)


def test_noise_bandwidth_of_the_header_raises_the_level():
    plain, rolled = (prepared_of(Scan(bandwidth=b)).frame.noise_std for b in (None, 0.793))
    assert rolled / plain == pytest.approx(0.793**-0.5, rel=1e-5)


@pytest.mark.fault("F29")
def test_averaging_lowers_the_noise_level():
    scan = Scan()
    acquisitions = scan.acquisitions()
    once = prepared_of(scan, acquisitions)
    again = [acq for acq in scan.acquisitions() if not acq.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    for acq in acquisitions[1:]:
        acq.scan_counter += 1000  # a scan counts on
    twice = prepared_of(scan, [acquisitions[0], *again[:-1], *acquisitions[1:]])
    # one of the lines was not measured again
    power = (1 + (scan.ny - 1) / 2) / scan.ny
    assert twice.frame.noise_std == pytest.approx(once.frame.noise_std * np.sqrt(power))
    np.testing.assert_allclose(twice.frame.kspace, once.frame.kspace, atol=1e-5)


@pytest.mark.parametrize("noise_too", [True, False])
def test_kspace_times_seven_gives_frames_times_seven(noise_too):
    scan, scaled = Scan(), Scan(scale=7.0)
    acquisitions = scaled.acquisitions()
    if not noise_too:
        acquisitions[0] = scan.acquisitions()[0]
    one, seven = prepared_of(scan), prepared_of(scaled, acquisitions)
    np.testing.assert_allclose(seven.frame.kspace, 7 * one.frame.kspace, rtol=1e-4, atol=1e-4)
    assert seven.frame.noise_std == pytest.approx((7 if noise_too else 1) * one.frame.noise_std, rel=1e-5)


@pytest.mark.fault("F37", "F67")
@pytest.mark.parametrize("gain", [1e-4, 1e4])
def test_whitening_that_nobody_did_upstream_is_not_believed(gain, caplog):
    """Without noise readouts a NoiseAdjustGadget passes the data on unwhitened, in whatever units they are."""
    scan = Scan(noise_scan=False, scale=gain)
    prepared = prepared_of(scan, **{"noise.whiten": "upstream"})
    assert prepared.frame.noise_std is None
    assert not prepared.whitened and not prepared.whitened_upstream
    assert {"NOT_WHITENED", "NOISE_SCALE_MISMATCH"} <= set(prepared.warnings)
    assert "passes data on as they are" in caplog.text


@pytest.mark.fault("F37", "F67")
def test_whitening_upstream_may_be_off_by_its_bandwidth(caplog):
    """Averages and filters make a factor of two: the core labels it, but somebody has whitened."""
    prepared = prepared_of(Scan(noise_scan=False, scale=1.26 / 0.01 / 2), **{"noise.whiten": "upstream"})
    assert prepared.whitened_upstream and prepared.frame.noise_std is not None
    assert "passes data on" not in caplog.text


@pytest.mark.fault("F37")
def test_whitening_on_needs_a_noise_scan_and_off_ignores_it():
    with pytest.raises(DataError, match="E310 noise.whiten=on"):
        prepared_of(Scan(noise_scan=False), **{"noise.whiten": "on"})
    off = prepared_of(Scan(), **{"noise.whiten": "off"})
    assert not off.whitened
    assert off.frame.noise_std is None


@pytest.mark.fault("F32")
def test_noise_of_more_channels_is_matched_by_channel_number(caplog):
    scan = Scan()
    readouts = scan.acquisitions()
    noise = [with_channels(a, range(4)) for a in readouts if a.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    kept = (0, 2, 3)
    imaging = with_channels(next(a for a in readouts if not a.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)), kept)
    assert channels_of(imaging.getHead()) == kept
    found = make_whitener(noise, 3, "auto", None, kept)
    expected = make_whitener([with_channels(a, kept) for a in noise], 3, "auto", None, kept)
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    # a channel the noise scan lacks: no whitening, and a word about it
    assert make_whitener([with_channels(a, (0, 1, 2)) for a in noise], 3, "auto", None, kept) is None
    assert "not whitened" in caplog.text


@pytest.mark.fault("F42")
def test_noise_readouts_that_are_broken_are_told(caplog):
    scan = Scan()
    acquisitions = scan.acquisitions()
    acquisitions[0].data[1, 7] = np.nan
    assert "NOT_WHITENED" in prepared_of(scan, acquisitions).warnings
    assert "1 noise readouts hold NaN or infinite samples: not used" in caplog.text
    with pytest.raises(DataError, match="E310 .*none of the 1 noise readouts has finite samples"):
        prepared_of(scan, acquisitions, **{"noise.whiten": "on"})


@pytest.mark.fault("F32")
def test_channels_are_counted_where_the_sender_does_not_number_them():
    scan = Scan()
    noise = []
    for acq in scan.acquisitions():
        if acq.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            head = acq.getHead()
            head.channel_mask[0] = 0
            noise.append(ismrmrd.Acquisition(head, data=acq.data))
    assert channels_of(noise[0].getHead()) is None
    assert make_whitener(noise, scan.n_coils, "auto", None, (0, 2, 5, 7)) is not None
    assert make_whitener(noise, scan.n_coils - 1, "auto", None, (0, 2, 5)) is None


@pytest.mark.fault("F38")
def test_dead_channel_is_dropped():
    scan = Scan()
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.data[2] = 0
    prepared = prepared_of(scan, acquisitions)
    assert prepared.frame.n_coils == scan.n_coils - 1
    assert "DEAD_CHANNELS" in prepared.warnings


@pytest.mark.fault("F39")
def test_channels_are_compressed_after_whitening():
    scan = Scan(n_coils=6)
    full, few = prepared_of(scan), prepared_of(scan, **{"coils.n_virtual": "3"})
    assert few.frame.n_coils == 3
    share = few.frame.kspace.abs().square().sum() / full.frame.kspace.abs().square().sum()
    assert 0.9 < float(share) <= 1.0001
    assert few.frame.noise_std == full.frame.noise_std


@pytest.mark.fault("F39")
def test_as_many_channels_as_hold_the_signal():
    """Sixteen channels that see only three different things."""
    scan = Scan(n_coils=16, noise_std=0.005)
    acquisitions = scan.acquisitions()
    mixed = np.linspace(0.5, 1.5, 16)[:, None] ** np.arange(3)
    generator = np.random.default_rng(0)
    for acq in acquisitions:
        if acq.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            continue
        noise = generator.normal(size=(2, *acq.data.shape))
        acq.data[:] = mixed @ acq.data[:3] + 0.005 * (noise[0] + 1j * noise[1])
    auto = prepared_of(scan, acquisitions, **{"coils.n_virtual": "auto", "noise.whiten": "off"})
    assert 1 <= auto.frame.n_coils <= 3
    assert prepared_of(scan, acquisitions, **{"noise.whiten": "off"}).frame.n_coils == 16
    assert "COMPRESSED" not in auto.warnings


@pytest.mark.fault("F39")
def test_more_channels_than_the_limit_are_compressed_and_the_image_says_so(caplog):
    """128 channels: the noise level stays, nearly all signal is kept."""
    scan = Scan(n_coils=128, noise_std=0.02)
    full, few = prepared_of(scan), prepared_of(scan, **{"limits.max_coils": "24"})
    assert (full.frame.n_coils, few.frame.n_coils) == (128, 24)
    assert "COMPRESSED" in few.warnings
    assert "COMPRESSED" not in full.warnings
    assert "128 channels are compressed to limits.max_coils = 24" in caplog.text
    assert few.frame.noise_std == full.frame.noise_std
    rss = [f.frame.kspace.abs().square().sum(0).sqrt() for f in (full, few)]
    centre = np.s_[18:22, 22:26]
    assert float((rss[1][centre] / rss[0][centre]).min()) > 0.99


def test_asymmetric_echo_is_masked_not_cropped():
    scan = Scan(noise_std=0, noise_scan=False)
    missing = 20
    acquisitions = []
    for acq in scan.acquisitions():
        head = acq.getHead()
        head.number_of_samples = scan.nx_encoded - missing
        head.center_sample = scan.nx_encoded // 2 - missing
        acquisitions.append(ismrmrd.Acquisition(head, data=acq.data[:, missing:].copy()))
    prepared = prepared_of(scan, acquisitions)
    mask = prepared.frame.mask.numpy()
    assert mask.shape == (scan.ny, scan.nx_encoded)
    assert not mask[:, :missing].any()
    assert mask[:, missing:].all()
    assert prepared.fov_mm[1] == 2.0 * scan.nx_encoded  # cropped when the image is emitted
    np.testing.assert_allclose(prepared.frame.kspace[:, :, missing:], scan.kspace()[:, :, missing:], atol=1e-5)


def test_padded_samples_count_as_not_measured():
    scan = Scan(noise_std=0, noise_scan=False, oversampling=1)
    acquisitions = scan.acquisitions()
    for acq in acquisitions:
        acq.discard_pre, acq.discard_post = 5, 3
    mask = prepared_of(scan, acquisitions).frame.mask.numpy()
    assert not mask[:, :5].any()
    assert not mask[:, -3:].any()
    assert mask[:, 5:-3].all()
    for acq in acquisitions:  # played backwards, the first samples are the last columns
        acq.set_flag(ismrmrd.ACQ_IS_REVERSE)
    mask = prepared_of(scan, acquisitions).frame.mask.numpy()
    assert not mask[:, -5:].any()
    assert mask[:, 3:-5].all()


def test_reversed_readouts_are_turned():
    scan = Scan(noise_std=0, noise_scan=False, oversampling=1)
    acquisitions = scan.acquisitions()
    for acq in acquisitions[::2]:
        acq.data[:] = acq.data[:, ::-1].copy()
        acq.set_flag(ismrmrd.ACQ_IS_REVERSE)
    np.testing.assert_allclose(prepared_of(scan, acquisitions).frame.kspace, scan.kspace(), atol=1e-5)


@pytest.mark.parametrize(
    ("n", "centre", "reverse", "first"),
    [
        (96, 48, False, 0),
        (96, 0, False, 0),
        (96, 200, False, 0),
        (96, 96, False, 0),
        (70, 70, False, 13),
        (70, 22, False, 26),
        (70, 22, True, 1),
        (96, 47, False, 1),
    ],
)
def test_centre_sample_decides_the_first_column(n, centre, reverse, first):
    head = ismrmrd.AcquisitionHeader()
    head.number_of_samples, head.center_sample = n, centre
    if reverse:
        head.set_flag(ismrmrd.ACQ_IS_REVERSE)
    assert sample_columns(head, 96)[0] == first


def test_readouts_wider_than_the_grid_are_refused():
    scan = Scan(noise_std=0, noise_scan=False)
    wide = []
    for acq in scan.acquisitions():
        data = np.concatenate([acq.data, acq.data], axis=1)
        head = acq.getHead()
        head.number_of_samples, head.center_sample = data.shape[1], data.shape[1] // 2
        wide.append(ismrmrd.Acquisition(head, data=data))
    with pytest.raises(DataError, match=f"E307.*matrixSize.x is {scan.nx_encoded}"):
        prepared_of(scan, wide)


def test_a_few_samples_outside_the_grid_are_a_warning():
    scan = Scan(noise_std=0, noise_scan=False, oversampling=1)
    acquisitions = scan.acquisitions()
    assert "OUTSIDE_READOUT" not in prepared_of(scan, acquisitions).warnings
    for acq in acquisitions:
        acq.center_sample -= 2  # 2 of 48
    assert "OUTSIDE_READOUT" in prepared_of(scan, acquisitions).warnings
    oversampled = Scan(noise_std=0, noise_scan=False)
    acquisitions = oversampled.acquisitions()
    acquisitions[0].center_sample -= 2
    assert "OUTSIDE_READOUT" in prepared_of(oversampled, acquisitions).warnings


@pytest.mark.fault("F37")
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_zero_padding_without_discard_flags_is_not_measured(reverse, is_whole):
    """Padded zeros taken for samples would make the noise, estimated without a noise scan, far too small."""
    scan = Scan(noise_scan=False, oversampling=1, scale=1000.0)
    acquisitions = scan.acquisitions()
    for acq in acquisitions if is_whole else ():
        acq.data[:] = np.round(acq.data)
    expected = prepared_of(scan, acquisitions)
    for acq in acquisitions:
        acq.data[:, :15] = 0
        if reverse:
            acq.data[:] = acq.data[:, ::-1].copy()
            acq.set_flag(ismrmrd.ACQ_IS_REVERSE)
    frame = prepared_of(scan, acquisitions).frame
    assert not frame.mask[:, :15].any()
    assert frame.mask[:, 15:].all()
    level = estimate_frame_noise(frame)
    assert level == pytest.approx(estimate_frame_noise(expected.frame), rel=0.5)


@pytest.mark.fault("F43")
def test_a_scan_of_zeros_is_measured_zeros():
    acquisitions = Scan(noise_scan=False).acquisitions()
    for acq in acquisitions:
        acq.data[:] = 0
    frame = prepared_of(Scan(noise_scan=False), acquisitions).frame
    assert frame.mask.all()
    assert not frame.kspace.any()


@pytest.mark.fault("F30")
def test_too_few_lines_are_refused_and_the_limit_is_a_setting():
    scan = Scan(last_flags=False, noise_scan=False)
    cut = scan.acquisitions()[20:21]
    with pytest.raises(DataError, match=r"E304 slice 0: one of 40.0 points .* limits.max_accel = 20"):
        prepared_of(scan, cut)
    assert "INCOMPLETE" in prepared_of(scan, cut, **{"limits.max_accel": "50"}).warnings


@pytest.mark.fault("F37")
@pytest.mark.parametrize(("bandwidth", "variance"), [(None, 2 * 0.793), (0.9, 2.0)])
def test_behind_noise_adjust_the_level_is_known(bandwidth, variance):
    """NoiseAdjustGadget leaves complex noise of variance 2, less the roll-off it assumes where the header is silent."""
    scan = Scan(noise_scan=False, bandwidth=bandwidth, noise_std=1.0, ny=64)
    scan.mixing = lambda: np.sqrt(variance) * np.eye(scan.n_coils)
    scan.image = lambda index=0: np.zeros((scan.ny, scan.nx_encoded))
    prepared = prepared_of(scan, **{"noise.whiten": "upstream"})
    assert prepared.whitened
    assert prepared.whitened_upstream
    parts = torch.view_as_real(prepared.frame.kspace)
    assert prepared.frame.noise_std == pytest.approx(float(parts.std()), rel=0.03)
    assert "NOT_WHITENED" not in prepared.warnings


@pytest.mark.fault("F37")
def test_noise_readouts_that_nobody_used_are_used_whatever_the_chain_says(caplog):
    found = prepared_of(Scan(), **{"noise.whiten": "upstream"})
    assert found.frame.noise_std == prepared_of(Scan()).frame.noise_std
    assert not found.whitened_upstream
    assert "nobody used them" in caplog.text


def test_the_whitener_is_made_anew_when_noise_or_channels_are_others():
    scan = Scan(n_slices=2)
    geometry, buffer, (frame, other) = frames_of(scan.header(), scan.acquisitions())
    noise, noise_scan = list(buffer.noise), NoiseScan("auto", geometry.noise_bandwidth)
    first = noise_scan.whitener(frame, noise)
    assert noise_scan.whitener(other, noise) is first
    louder = ismrmrd.Acquisition(noise[0].getHead(), data=3 * noise[0].data)
    noise.append(louder)  # a noise readout that comes later
    assert noise_scan.whitener(frame, noise).scale > 1.5 * first.scale
    assert noise_scan.whitener(frame, [louder]).scale == pytest.approx(3 * first.scale, rel=1e-5)
    assert noise_scan.whitener(frame, []) is None
    fewer = replace(frame, data=frame.data[:, :3])
    assert noise_scan.whitener(fewer, noise) is None
