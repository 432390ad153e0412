"""What a scan's header says, as frozen values: encodings, matrices, fields of view, limits."""

from __future__ import annotations

from dataclasses import dataclass

from gadget.errors import HeaderError


@dataclass(frozen=True)
class Space:
    """A sampled space: matrix (x, y, z) in points, field of view (x, y, z) in mm."""

    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Encoding:
    """One encoding space of the header.

    Attributes
    ----------
    encoded, recon
        What is acquired, and the image that is wanted.
    trajectory
        ``cartesian``, ``radial``, ``spiral``, ...
    centre_row
        Value of kspace_encode_step_1 at the k-space centre.
    n_rows
        Encode steps between the limits; all rows of the matrix where the header has no limits.
    acceleration
        Along rows, >= 1.
    calibration
        ``embedded``, ``separate``, ... or an empty string.
    last
        Largest index per counter (slice, repetition, average, contrast, phase, set), where known.
    centre_partition
        Value of kspace_encode_step_2 at the k-space centre of a 3-D scan.
    spokes
        Angle scheme that trajectoryDescription or the type of trajectory names: ``uniform``, ``golden``,
        ``tiny_golden``, or an empty string.
    steps
        Values kspace_encode_step_1 may have by its limits, or None where the header does not say.
    has_foreign_description
        Whether there is a trajectoryDescription that says more than an angle scheme, which nobody here reads.
    """

    encoded: Space
    recon: Space
    trajectory: str
    centre_row: int
    n_rows: int
    acceleration: int
    calibration: str
    last: dict[str, int]
    centre_partition: int = 0
    spokes: str = ""
    steps: range | None = None
    has_foreign_description: bool = False

    @property
    def has_foreign_calibration(self) -> bool:
        """Whether calibration lines are no samples of the image: other contrast, other grid."""
        return self.calibration in ("separate", "external")

    def row(self, encode_step: int) -> int:
        """Row of the encoded matrix (centre at ny // 2) that a phase-encoding step belongs to."""
        return encode_step + self.encoded.matrix[1] // 2 - self.centre_row

    def partition(self, encode_step: int) -> int:
        """Partition (centre at nz // 2) that a kspace_encode_step_2 of a 3-D scan belongs to."""
        return encode_step + self.encoded.matrix[2] // 2 - self.centre_partition

    @property
    def expected_rows(self) -> int:
        """Rows a regularly undersampled scan acquires at least."""
        return max(1, -(-self.n_rows // self.acceleration))

    @property
    def expected_shots(self) -> int:
        """Spokes or interleaves of a complete scan, as far as the limits tell."""
        return max(1, -(-len(self.steps or ()) // self.acceleration))


@dataclass(frozen=True)
class ScanGeometry:
    """All encodings of a scan and what the receiver says about its noise.

    Attributes
    ----------
    encodings
        At least one.
    n_channels
        Receive channels announced, or None.
    noise_bandwidth
        relativeReceiverNoiseBandwidth: mean over in-band noise power of a noise scan, in (0, 1],
        or None when the header does not say.
    """

    encodings: tuple[Encoding, ...]
    n_channels: int | None
    noise_bandwidth: float | None

    def encoding(self, ref: int) -> Encoding:
        """Encoding a readout refers to (its encoding_space_ref); a single encoding serves all."""
        if len(self.encodings) == 1:
            return self.encodings[0]
        if not 0 <= ref < len(self.encodings):
            raise HeaderError(
                203,
                f"readouts refer to encoding {ref}, but the header has {len(self.encodings)} (0 to "
                f"{len(self.encodings) - 1}).",
                "Correct encoding_space_ref in the converter.",
            )
        return self.encodings[ref]

    def summary(self) -> str:
        """One line for the log."""
        parts = [
            f"{e.trajectory} {'x'.join(map(str, e.encoded.matrix[:2]))} -> "
            f"{'x'.join(map(str, e.recon.matrix[:2]))}, header's R {e.acceleration}"
            for e in self.encodings
        ]
        return f"{'; '.join(parts)}; channels: {self.n_channels or 'not stated'}"


def n_wanted(n: int, fov: float, wanted_fov: float) -> int:
    """Points that cover the wanted field of view on the same pixel size, at most n."""
    return min(n, round(n * wanted_fov / fov))
