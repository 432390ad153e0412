"""Small simulated Cartesian scans as ISMRMRD header and acquisitions. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import ismrmrd
import numpy as np

CANARY = "ZZPATIENTZZ"

HEADER = """<?xml version="1.0" encoding="UTF-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>{canary}</patientName><patientID>{canary}</patientID></subjectInformation>
 {measurement}
 <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
 {system}
 {encodings}
</ismrmrdHeader>
"""

ENCODING = """<encoding>
 <encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>{ez}</z></matrixSize>
  <fieldOfView_mm><x>{efx}</x><y>{efy}</y><z>5</z></fieldOfView_mm></encodedSpace>
 <reconSpace><matrixSize><x>{rx}</x><y>{ry}</y><z>1</z></matrixSize>
  <fieldOfView_mm><x>{rfx}</x><y>{rfy}</y><z>5</z></fieldOfView_mm></reconSpace>
 <encodingLimits>{limits}</encodingLimits>
 <trajectory>{trajectory}</trajectory>
 {parallel}
</encoding>"""


@dataclass
class Scan:
    """Describes a scan; `header()` and `acquisitions()` make it.

    The object is an ellipse with an off-centre bright spot; coil images are made on the
    encoded (oversampled) grid, so k-space is exact for the discrete image.
    """

    nx: int = 48
    ny: int = 40
    n_coils: int = 4
    oversampling: int = 2
    acceleration: int = 1
    acs: int = 8
    n_slices: int = 1
    n_repetitions: int = 1
    noise_std: float = 0.01  # per complex sample
    noise_dwell: float = 5.0
    dwell: float = 5.0
    bandwidth: float | None = None
    first_row: int = 0
    last_flags: bool = True
    first_flags: bool = True
    noise_scan: bool = True
    interleave: bool = False
    measurement: bool = True
    limits: bool = True
    directions: bool = True
    trajectory: str = "cartesian"
    scale: float = 1.0
    seed: int = 0
    overrides: dict = field(default_factory=dict)

    @property
    def nx_encoded(self) -> int:
        return self.nx * self.oversampling

    @property
    def centre(self) -> int:
        return self.ny // 2 - self.first_row

    def header(self) -> bytes:
        limits = ""
        if self.limits:
            last = self.ny - 1 - self.first_row
            limits = _limit("kspace_encoding_step_1", last, self.centre)
            limits += _limit("slice", self.n_slices - 1) + _limit("repetition", self.n_repetitions - 1)
        parallel = ""
        if self.acceleration > 1:
            parallel = (
                f"<parallelImaging><accelerationFactor><kspace_encoding_step_1>{self.acceleration}"
                "</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
                "<calibrationMode>embedded</calibrationMode></parallelImaging>"
            )
        values = {
            "ex": self.nx_encoded, "ey": self.ny, "ez": 1, "efx": 2.0 * self.nx_encoded, "efy": 2.0 * self.ny,
            "rx": self.nx, "ry": self.ny, "rfx": 2.0 * self.nx, "rfy": 2.0 * self.ny,
            "limits": limits, "trajectory": self.trajectory, "parallel": parallel,
        }  # fmt: skip
        values.update(self.overrides)
        system = f"<receiverChannels>{self.n_coils}</receiverChannels>"
        if self.bandwidth is not None:
            system += f"<relativeReceiverNoiseBandwidth>{self.bandwidth}</relativeReceiverNoiseBandwidth>"
        system = f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>" if self.measurement else ""
        protocol = f"<protocolName>{CANARY}</protocolName>"
        measurement = f"<measurementInformation>{protocol}<patientPosition>HFS</patientPosition>"
        text = HEADER.format(
            canary=CANARY,
            measurement=measurement + "</measurementInformation>" if self.measurement else "",
            system=system,
            encodings=ENCODING.format(**values),
        )
        return text.encode()

    def image(self, index: int = 0) -> np.ndarray:
        """The object of slice `index`, (ny, nx_encoded), zero outside the wanted field of view."""
        y, x = np.meshgrid(np.arange(self.ny) - self.ny // 2, np.arange(self.nx_encoded) - self.nx_encoded // 2,
                           indexing="ij")  # fmt: skip
        image = 1.0 * ((y / (0.35 * self.ny)) ** 2 + (x / (0.4 * self.nx)) ** 2 < 1)
        spot = (y - self.ny // 8) ** 2 + (x + self.nx // 6) ** 2 < 9
        return (image + (1 + index) * spot).astype(np.complex128)

    def coils(self) -> np.ndarray:
        """Smooth complex maps, (coil, ny, nx_encoded)."""
        y, x = np.meshgrid(np.linspace(-1, 1, self.ny), np.linspace(-1, 1, self.nx_encoded) * self.oversampling,
                           indexing="ij")  # fmt: skip
        angles = 2 * np.pi * np.arange(self.n_coils) / self.n_coils
        return np.stack(
            [np.exp(-((y - np.sin(a)) ** 2 + (x - np.cos(a)) ** 2) / 2 + 1j * (a + 0.5 * x)) for a in angles]
        )

    def mixing(self) -> np.ndarray:
        """Correlates the receiver noise of the channels."""
        rng = np.random.default_rng(99)
        shape = (self.n_coils, self.n_coils)
        return np.eye(self.n_coils) + 0.3 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    def noise(self, rng: np.random.Generator, n: int, dwell: float) -> np.ndarray:
        white = (rng.standard_normal((self.n_coils, n)) + 1j * rng.standard_normal((self.n_coils, n))) / np.sqrt(2)
        return self.noise_std * np.sqrt(5.0 / dwell) * (self.mixing() @ white)

    def kspace(self, index: int = 0) -> np.ndarray:
        """Noise-free k-space of a slice, (coil, ny, nx_encoded), unitary and centred."""
        images = self.coils() * self.image(index)
        axes = (1, 2)
        return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes)

    def rows(self) -> list[int]:
        centre = self.ny // 2
        wanted = set(range(self.first_row, self.ny, self.acceleration))
        if self.acceleration > 1:
            wanted |= set(range(centre - self.acs // 2, centre + self.acs // 2))
        return sorted(wanted)

    def acquisitions(self) -> list[ismrmrd.Acquisition]:
        """Noise scan, then lines by repetition and slice (slices interleaved if asked)."""
        rng = np.random.default_rng(self.seed)
        made = []
        if self.noise_scan:
            noise = ismrmrd.Acquisition.from_array(
                (self.scale * self.noise(rng, 2048, self.noise_dwell)).astype(np.complex64),
                sample_time_us=self.noise_dwell,
            )
            noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
            made.append(noise)
        rows = self.rows()
        kspaces = [self.kspace(s) for s in range(self.n_slices)]
        for repetition in range(self.n_repetitions):
            order = [(s, r) for s in range(self.n_slices) for r in rows]
            if self.interleave:
                order = [(s, r) for r in rows for s in range(self.n_slices)]
            for s, row in order:
                last = row == rows[-1]
                acq = self._line(rng, kspaces[s], row, s, repetition)
                if self.first_flags and row == rows[0]:
                    acq.set_flag(ismrmrd.ACQ_FIRST_IN_SLICE)
                if self.last_flags and last:
                    acq.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
                    if s == self.n_slices - 1:
                        acq.set_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
                        if repetition == self.n_repetitions - 1:
                            acq.set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
                made.append(acq)
        for number, acq in enumerate(made):
            acq.scan_counter = number
        return made

    def _line(self, rng, kspace, row: int, s: int, repetition: int) -> ismrmrd.Acquisition:
        data = kspace[:, row] + self.noise(rng, self.nx_encoded, self.dwell)
        acq = ismrmrd.Acquisition.from_array(
            (self.scale * data).astype(np.complex64),
            sample_time_us=self.dwell,
            center_sample=self.nx_encoded // 2,
            measurement_uid=7,
            acquisition_time_stamp=1000 + row,
        )
        acq.idx.kspace_encode_step_1 = row - self.first_row
        acq.idx.slice, acq.idx.repetition = s, repetition
        acq.position[:] = [1.0, 2.0, 3.0 + 5 * s]
        if self.directions:
            acq.read_dir[:], acq.phase_dir[:], acq.slice_dir[:] = [0, 1, 0], [-1, 0, 0], [0, 0, 1]
        on_grid = (row - self.first_row) % self.acceleration == 0
        if self.acceleration > 1 and abs(row - self.ny // 2 + 0.5) < self.acs / 2:
            acq.set_flag(
                ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING if on_grid else ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
            )
        return acq


def _limit(name: str, maximum: int, centre: int = 0) -> str:
    return f"<{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{centre}</center></{name}>"


def radial_scan(
    shape: tuple[int, int] = (40, 40),
    n_spokes: int = 25,
    n_coils: int = 2,
    point: tuple[int, int] | None = None,
    noise_std: float = 0.0,
    last_flags: bool = True,
) -> tuple[bytes, list[ismrmrd.Acquisition]]:
    """Header and spokes (positions normalised, cycles per pixel) of a discrete object, by an explicit Fourier sum.

    The object is that of `Scan`, coil by coil, or one pixel of 1 that every coil sees alike. A noise scan
    comes first when there is noise.
    """
    ny, nx = shape
    scan = Scan(nx=nx, ny=ny, n_coils=n_coils, oversampling=1, trajectory="radial", noise_std=noise_std)
    images = scan.coils() * scan.image()
    if point is not None:
        images = np.zeros((n_coils, ny, nx), complex)
        images[:, point[0], point[1]] = 1.0
    rng = np.random.default_rng(3)
    made = []
    if noise_std:
        noise = ismrmrd.Acquisition.from_array(scan.noise(rng, 2048, 5.0).astype(np.complex64), sample_time_us=5.0)
        noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        made.append(noise)
    n_read = 2 * max(shape)
    radius = (np.arange(n_read) - n_read // 2) / n_read
    for spoke in range(n_spokes):
        angle = np.pi * spoke / n_spokes
        k = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        along_x = np.exp(-2j * np.pi * k[:, :1] * (np.arange(nx) - nx // 2))
        along_y = np.exp(-2j * np.pi * k[:, 1:] * (np.arange(ny) - ny // 2))
        data = np.einsum("cyx,ny,nx->cn", images, along_y, along_x, optimize=True) / np.sqrt(ny * nx)
        data = data + scan.noise(rng, n_read, 5.0)
        acq = ismrmrd.Acquisition.from_array(
            data.astype(np.complex64), k.astype(np.float32), sample_time_us=5.0, center_sample=n_read // 2
        )
        acq.idx.kspace_encode_step_1 = spoke
        acq.read_dir[:], acq.phase_dir[:], acq.slice_dir[:] = [1, 0, 0], [0, 1, 0], [0, 0, 1]
        if spoke == n_spokes - 1 and last_flags:
            acq.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
            acq.set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
        made.append(acq)
    limit = _limit("kspace_encoding_step_1", ny - 1, ny // 2)
    return scan.header().replace(limit.encode(), _limit("kspace_encoding_step_1", n_spokes - 1).encode()), made


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


def open_ended(acquisitions: list[ismrmrd.Acquisition]) -> list[ismrmrd.Acquisition]:
    """The same readouts, which no longer say where a repetition or the measurement ends."""
    for acq in acquisitions:
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
        acq.clear_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return acquisitions
