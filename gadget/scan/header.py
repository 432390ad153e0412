"""From a header to a validated geometry: every number the gadget relies on, no patient data."""

from __future__ import annotations

import math
import re
import warnings
from typing import TypeAlias
from xml.etree import ElementTree

import ismrmrd
import ismrmrd.xsd as xsd
from xsdata.exceptions import ParserError

from gadget.errors import HeaderError
from gadget.scan.geometry import Encoding, ScanGeometry, Space

Header: TypeAlias = xsd.ismrmrdHeader | bytes | str

MIN_MATRIX = 8
_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_REMEDY = "Correct it where the file was made."
# of elements (or their types in the schema) that are missing
_CODES = {"matrixSize": 214, "matrixSizeType": 214, "fieldOfView_mm": 215, "fieldOfViewMm": 215}
_COUNTERS = ("slice", "repetition", "average", "contrast", "phase", "set")


def read_geometry(header: Header, max_matrix: int = 1024) -> ScanGeometry:
    """Validate a header.

    Parameters
    ----------
    header
        `ismrmrd.xsd.ismrmrdHeader`, or the XML as bytes or text (NUL padding and a byte order mark
        are removed).
    max_matrix
        Largest matrix accepted; the encoded readout may be twice that (oversampling).

    Raises
    ------
    HeaderError
        E201 not an ISMRMRD header, E202 no encoding, E204 3-D without a slab, E207 a document type, E214 matrix,
        E215 field of view, E217 other numbers, E218 simultaneous slices.
    """
    if isinstance(header, bytes | str):
        header = parse(header)
    encodings = list(getattr(header, "encoding", None) or [])
    if not encodings:
        raise HeaderError(202, "the header has no <encoding>.", "The converter must write one.")
    checked = tuple(_encoding(e, f"encoding[{i}]", max_matrix) for i, e in enumerate(encodings))
    system = getattr(header, "acquisitionSystemInformation", None)
    n_channels = getattr(system, "receiverChannels", None)
    if n_channels == 0:  # writers that do not know
        n_channels = None
    if n_channels is not None:
        n_channels = _integer(n_channels, "receiverChannels", 1, 65535, code=217)
    bandwidth = getattr(system, "relativeReceiverNoiseBandwidth", None)
    if bandwidth is not None:
        bandwidth = _positive(bandwidth, "relativeReceiverNoiseBandwidth", code=217)
    return ScanGeometry(checked, n_channels, bandwidth)


def parse(xml: bytes | str) -> xsd.ismrmrdHeader:
    """Header XML to `ismrmrd.xsd.ismrmrdHeader`; NUL and BOM stripped, unknown elements ignored.

    Nothing of the text is repeated, neither in the errors (E201, E207) nor in a warning: it may name a patient.
    """
    from xsdata.formats.dataclass.parsers import XmlParser
    from xsdata.formats.dataclass.parsers.config import ParserConfig

    raw = xml.encode("utf-8") if isinstance(xml, str) else xml
    raw = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\0 \t\r\n").lstrip()
    # NUL taken out: in UTF-16 it stands between the letters
    if b"<!DOCTYPE" in raw.replace(b"\0", b""):
        raise HeaderError(
            207, "the header has a document type, whose entities may name files or grow without end.", "Leave it out."
        )
    try:
        with warnings.catch_warnings():
            # text where a number should be is only a warning there; here it is E214 below
            warnings.simplefilter("ignore")
            root = ElementTree.fromstring(raw)  # noqa: S314 - without entities, see above
            if not root.tag.endswith("ismrmrdHeader"):
                raise ParserError("another root")  # the parser would take any
            if not root.tag.startswith("{"):  # self-made writers leave the namespace out
                root.set("xmlns", _NAMESPACE)
                raw = ElementTree.tostring(root, encoding="utf-8")
            parser = XmlParser(config=ParserConfig(fail_on_unknown_properties=False))
            return parser.from_bytes(raw, ismrmrd.xsd.ismrmrdHeader)
    except (ParserError, SyntaxError, ValueError, TypeError, LookupError) as error:
        name = type(error).__name__  # its text quotes the header, which holds patient data
        # but for one that Python writes
        text = str(error) if isinstance(error, TypeError) else ""
        lacking = re.fullmatch(r"(\w+)\.__init__\(\) missing \d+ required [\w -]+: '(\w+)'.*", text)
    if lacking:
        owner, element = lacking.groups()
        wanted = element if element in _CODES else owner
        raise HeaderError(_CODES.get(wanted, 201), f"the header has {owner} without {element}.", _REMEDY)
    raise HeaderError(201, f"the header is not ISMRMRD XML ({name}).", _REMEDY)


def to_xml(header: xsd.ismrmrdHeader) -> bytes:
    """XML of an `ismrmrd.xsd.ismrmrdHeader`, UTF-8; ismrmrd's own writer knows some versions of xsdata only."""
    from xsdata.formats.dataclass.serializers import XmlSerializer
    from xsdata.formats.dataclass.serializers.config import SerializerConfig

    serializer = XmlSerializer(config=SerializerConfig(encoding="utf-8"))
    return serializer.render(header, ns_map={"": _NAMESPACE}).encode()


def _encoding(encoding: xsd.encodingType, where: str, max_matrix: int) -> Encoding:
    encoded = _space(encoding.encodedSpace, f"{where}.encodedSpace", (2 * max_matrix, max_matrix))
    recon = _space(encoding.reconSpace, f"{where}.reconSpace", (max_matrix, max_matrix))
    nz = encoded.matrix[2]
    if nz > 1 and not (encoded.fov_mm[2] > 0 and recon.fov_mm[2] > 0 and nz <= max_matrix):
        raise HeaderError(
            204,
            f"{where}.encodedSpace.matrixSize.z is {nz} (at most {max_matrix}), and fieldOfView_mm.z "
            f"{encoded.fov_mm[2]:g} (recon {recon.fov_mm[2]:g}): no slab that can be cut into slices.",
            _REMEDY,
        )
    for axis in (0, 1):
        ratio = recon.fov_mm[axis] / encoded.fov_mm[axis]
        if not 1 / 16 <= ratio <= 4:
            raise HeaderError(
                215,
                f"{where}.reconSpace.fieldOfView_mm.{'xy'[axis]} is {recon.fov_mm[axis]:g}, but the encoded one is "
                f"{encoded.fov_mm[axis]:g} (expected a ratio of 1/16..4).",
                _REMEDY,
            )
    _refuse_multiband(encoding.parallelImaging, f"{where}.parallelImaging.multiband")
    limits = encoding.encodingLimits
    rows = getattr(limits, "kspace_encoding_step_1", None)
    ny = encoded.matrix[1]
    centre, n_rows, steps = ny // 2, ny, None
    if rows is not None:
        name = f"{where}.encodingLimits.kspace_encoding_step_1"
        low, high, centre = (
            _integer(getattr(rows, part), f"{name}.{part}", 0, 65535, code=217)
            for part in ("minimum", "maximum", "center")
        )
        # some writers leave all three at 0: then the matrix is the better witness
        if high > low:
            steps = range(low, high + 1)
            n_rows = min(ny, len(steps))
        elif centre == 0:
            centre = ny // 2
    centre_partition = nz // 2
    partitions = getattr(limits, "kspace_encoding_step_2", None)
    if nz > 1 and partitions is not None and partitions.center:  # writers that do not care leave 0, as with rows
        name = f"{where}.encodingLimits.kspace_encoding_step_2.center"
        centre_partition = _integer(partitions.center, name, 0, 65535, code=217)
    last = {}
    for counter in _COUNTERS:
        limit = getattr(limits, counter, None)
        if limit is not None:
            last[counter] = _integer(limit.maximum, f"{where}.encodingLimits.{counter}", 0, 65535, code=217)
    parallel = encoding.parallelImaging
    factor = getattr(getattr(parallel, "accelerationFactor", None), "kspace_encoding_step_1", None)
    name = f"{where}.parallelImaging.accelerationFactor"
    description = str(getattr(encoding.trajectoryDescription, "identifier", None) or "")
    spokes = scheme_of(description) or scheme_of(_word(encoding.trajectory))
    return Encoding(
        encoded=encoded,
        recon=recon,
        trajectory=_word(encoding.trajectory) or "cartesian",
        centre_row=centre,
        n_rows=n_rows,
        acceleration=1 if factor is None else max(1, _integer(factor, name, 0, 65535, code=217)),
        calibration=_word(getattr(parallel, "calibrationMode", None)),
        last=last,
        centre_partition=centre_partition,
        spokes=spokes,
        steps=steps,
        has_foreign_description=bool(description) and not spokes,
    )


def _refuse_multiband(parallel: xsd.parallelImagingType | None, where: str) -> None:
    """Raise E218 where readouts hold several slices at once: nothing here separates them."""
    factor = getattr(getattr(parallel, "multiband", None), "multiband_factor", None)
    if isinstance(factor, int) and factor > 1:
        raise HeaderError(
            218,
            f"{where}: {factor} simultaneous slices, which are not separated here.",
            "Separate them upstream, and leave <multiband> out of the header.",
        )


def _word(value: object) -> str:
    # enumerations arrive as members, invalid values as plain text
    return str(getattr(value, "value", value) or "").lower()


def _space(space: xsd.encodingSpaceType | None, where: str, most: tuple[int, int]) -> Space:
    matrix, fov = getattr(space, "matrixSize", None), getattr(space, "fieldOfView_mm", None)
    if matrix is None:
        raise HeaderError(214, f"{where}.matrixSize is missing.", "The converter must write it.")
    if fov is None:
        raise HeaderError(215, f"{where}.fieldOfView_mm is missing.", "The converter must write it.")
    size = tuple(
        _integer(getattr(matrix, axis), f"{where}.matrixSize.{axis}", low, high, code=214)
        for axis, low, high in (("x", MIN_MATRIX, most[0]), ("y", MIN_MATRIX, most[1]), ("z", 1, 65535))
    )
    extent = tuple(
        _positive(getattr(fov, axis), f"{where}.fieldOfView_mm.{axis}", code=215, zero_ok=axis == "z")
        for axis in ("x", "y", "z")
    )
    return Space((size[0], size[1], size[2]), (extent[0], extent[1], extent[2]))


def _integer(value: object, name: str, low: int, high: int, *, code: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise HeaderError(
            code,
            f"{name} is {_shown(value)}, expected an integer {low}..{high}.",
            "If the scan is really that large, raise limits.max_matrix."
            if isinstance(value, int) and value > high
            else _REMEDY,
        )
    return value


def _shown(value: object) -> str:
    """Value for an error text: a text may hold anything, a name too, so only numbers are repeated."""
    return repr(value) if isinstance(value, int | float) else "not a number"


def _positive(value: object, name: str, *, code: int, zero_ok: bool = False) -> float:
    if isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero_ok and value == 0)):
        return float(value)
    raise HeaderError(code, f"{name} is {_shown(value)}, expected a positive number.", _REMEDY)


def scheme_of(identifier: str) -> str:
    """Angle scheme that a header's trajectoryDescription identifier names, or an empty string."""
    word = "".join(letter for letter in identifier.lower() if letter.isalpha())
    if "golden" in word:
        return "tiny_golden" if "tiny" in word else "golden"
    return "uniform" if "uniform" in word or "linear" in word else ""
