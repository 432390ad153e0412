"""Gadgetron's gadgets before ours, as their C++ source has them: what a real server makes of a scan's readouts."""

from __future__ import annotations

from types import SimpleNamespace

import gadgetron.types.recon_data as wire
import ismrmrd
import numpy as np

BANDWIDTH = 0.793  # relativeReceiverNoiseBandwidth that NoiseAdjustGadget takes where the header has none


def is_noise(acq: ismrmrd.Acquisition) -> bool:
    return acq.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def noise_adjust(acquisitions: list[ismrmrd.Acquisition], bandwidth: float) -> list[ismrmrd.Acquisition]:
    """Consume the noise readouts and whiten with inv(chol(C)) sqrt(2 bandwidth dwell / noise dwell)."""
    noise = [acq for acq in acquisitions if is_noise(acq)]
    lines = [acq for acq in acquisitions if not is_noise(acq)]
    if not noise:
        return lines
    samples = np.concatenate([acq.data for acq in noise], axis=1).astype(np.complex128)
    covariance = samples @ samples.conj().T / (samples.shape[1] - 1)
    ratio = 2 * bandwidth * lines[0].sample_time_us / noise[0].sample_time_us
    matrix = np.linalg.inv(np.linalg.cholesky(covariance)) * np.sqrt(ratio)
    return [_with_data(acq, matrix @ acq.data) for acq in lines]


def remove_oversampling(acquisitions: list[ismrmrd.Acquisition], n_kept: int) -> list[ismrmrd.Acquisition]:
    """Crop the readout in image space, orthonormal transforms."""
    made = []
    for acq in acquisitions:
        n = acq.number_of_samples
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(acq.data, axes=1), axis=1, norm="ortho"), axes=1)
        first = n // 2 - n_kept // 2
        image = image[:, first : first + n_kept]
        data = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1, norm="ortho"), axes=1)
        made.append(_with_data(acq, data))
        made[-1].center_sample = n_kept // 2
    return made


def recon_data(acquisitions: list[ismrmrd.Acquisition], n_rows: int) -> bytes:
    """One ReconData message of all slices: lines that calibrate stand in the reference, cropped to them."""
    n_slices = 1 + max(acq.idx.slice for acq in acquisitions)
    pure = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
    both = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    imaging = [acq for acq in acquisitions if not acq.is_flag_set(pure)]
    calibrating = [acq for acq in acquisitions if acq.is_flag_set(pure) or acq.is_flag_set(both)]
    data = _buffer(imaging, n_rows, n_slices)
    ref = None
    if calibrating:
        whole = _buffer(calibrating, n_rows, n_slices)
        rows = sorted({acq.idx.kspace_encode_step_1 for acq in calibrating})
        ref = wire.ReconBuffer(np.asfortranarray(whole.data[:, rows]), None, None, whole.headers, whole.sampling)
    written = bytearray()
    destination = SimpleNamespace(write=lambda part: written.extend(bytes(part)))
    wire.write_recon_data(destination, wire.ReconData([wire.ReconBit(data, ref)]))
    return bytes(written)


def _buffer(acquisitions: list[ismrmrd.Acquisition], n_rows: int, n_slices: int) -> wire.ReconBuffer:
    n_coils, n = acquisitions[0].data.shape
    data = np.zeros((n, n_rows, 1, n_coils, 1, 1, n_slices), np.complex64, order="F")
    headers = np.empty((n_rows, 1, 1, 1, n_slices), dtype=object)
    for place in np.ndindex(headers.shape):
        headers[place] = ismrmrd.AcquisitionHeader()
    for acq in acquisitions:
        row, slc = acq.idx.kspace_encode_step_1, acq.idx.slice
        data[:, row, 0, :, 0, 0, slc] = acq.data.T
        headers[row, 0, 0, 0, slc] = acq.getHead()
    return wire.ReconBuffer(data, None, None, headers, wire.SamplingDescription())


def _with_data(acq: ismrmrd.Acquisition, data: np.ndarray) -> ismrmrd.Acquisition:
    trajectory = np.array(acq.traj) if acq.trajectory_dimensions else None
    head = acq.getHead()
    head.number_of_samples = data.shape[1]
    return ismrmrd.Acquisition(head, data=data.astype(np.complex64), trajectory=trajectory)
