import re
import time
import tracemalloc
from importlib import metadata

import ismrmrd
import pytest
from helpers.mrd_factory import CANARY, ENCODING, Scan

from gadget.errors import HeaderError
from gadget.scan.header import read_geometry


def test_numbers_of_a_full_header():
    geometry = read_geometry(Scan(acceleration=3, first_row=4, n_slices=2, bandwidth=0.793).header())
    encoding = geometry.encodings[0]
    assert encoding.encoded.matrix == (96, 40, 1)
    assert encoding.recon.fov_mm == (96.0, 80.0, 5.0)
    assert encoding.row(0) == 4
    assert encoding.row(16) == 20
    assert (encoding.n_rows, encoding.acceleration, encoding.expected_rows) == (36, 3, 12)
    assert (encoding.calibration, encoding.last["slice"]) == ("embedded", 1)
    assert (geometry.n_channels, geometry.noise_bandwidth) == (4, 0.793)


@pytest.mark.fault("F10")
def test_object_bytes_and_text_are_alike():
    raw = Scan().header()
    expected = read_geometry(raw)
    assert read_geometry(ismrmrd.xsd.CreateFromDocument(raw)) == expected
    assert read_geometry(raw.decode()) == expected
    assert read_geometry(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n") + b"\0\0\0") == expected
    assert read_geometry(raw.replace(CANARY.encode(), "Zoë Łuk 王".encode())) == expected


def test_optional_parts_may_be_missing():
    geometry = read_geometry(Scan(measurement=False, limits=False).header())
    encoding = geometry.encodings[0]
    assert (encoding.centre_row, encoding.n_rows, encoding.acceleration, encoding.last) == (20, 40, 1, {})
    assert geometry.n_channels is None


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    "text", [b"", b"<html><body>no</body></html>", b"ZZPATIENTZZ", Scan().header()[:600], b"\xff\xfe\x00\x00", b"<a/>"]
)
def test_what_is_no_header_is_refused_without_quoting_it(text):
    with pytest.raises(HeaderError) as caught:
        read_geometry(text)
    assert caught.value.code in (201, 202)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def bomb(first, last):
    return b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in range(ord(first) + 1, ord(last) + 1)
    )


@pytest.mark.fault("F09")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", ["bomb", "external", "parameter"])
def test_entities_are_refused_before_they_expand(kind, encoding, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("<x>secret</x>")
    declared = {
        "bomb": bomb("a", "m"),
        "external": b'<!DOCTYPE x [<!ENTITY m SYSTEM "%s">' % secret.as_uri().encode(),
        "parameter": b'<!DOCTYPE x [<!ENTITY %% p SYSTEM "%s"> %%p; <!ENTITY m "">' % secret.as_uri().encode(),
    }[kind]
    text = Scan().header().replace(b"UTF-8", encoding.upper().encode())
    text = text.replace(b"<ismrmrdHeader", declared + b"]><ismrmrdHeader", 1).replace(CANARY.encode(), b"&m;", 1)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(HeaderError, match="E207") as caught:
            read_geometry(text.decode().encode(encoding))
        seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "secret" not in str(caught.value)
    assert seconds < 0.1
    assert peak < 50e6


@pytest.mark.fault("F20")
def test_header_without_encoding():
    raw = Scan().header()
    start, end = raw.index(b"<encoding>"), raw.index(b"</encoding>") + len(b"</encoding>")
    with pytest.raises(HeaderError, match="E202"):
        read_geometry(raw[:start] + raw[end:])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"ex": 0}, 214, "encodedSpace.matrixSize.x is 0, expected an integer 8..2048"),
        ({"ey": -3}, 214, "encodedSpace.matrixSize.y"),
        ({"rx": "sixtyfour"}, 214, "reconSpace.matrixSize.x is not a number, expected an integer 8..1024"),
        ({"ry": 999999999}, 214, "reconSpace.matrixSize.y is 999999999"),
        ({"ez": 2000}, 204, "encodedSpace.matrixSize.z is 2000"),
        ({"efx": 0}, 215, "encodedSpace.fieldOfView_mm.x"),
        ({"rfy": "NaN"}, 215, "reconSpace.fieldOfView_mm.y is nan"),
        ({"rfx": "1e9"}, 215, "reconSpace.fieldOfView_mm.x is 1e"),
    ],
)
@pytest.mark.fault("F19", "F22")
def test_impossible_values_are_named(change, code, field):
    with pytest.raises(HeaderError) as caught:
        read_geometry(Scan(overrides=change).header())
    assert caught.value.code == code
    assert field in str(caught.value)


@pytest.mark.fault("F19", "F22")
@pytest.mark.parametrize(("element", "code"), [("matrixSize", 214), ("fieldOfView_mm", 215)])
def test_a_missing_matrix_or_field_of_view_is_named(element, code):
    raw = re.sub(f"<{element}>.*?</{element}>", "", Scan().header().decode(), flags=re.DOTALL)
    with pytest.raises(HeaderError, match=f"E{code} .*{element}"):
        read_geometry(raw)


@pytest.mark.skipif(metadata.version("ismrmrd") < "1.15", reason="older ismrmrd fills in what is missing")
@pytest.mark.parametrize(
    ("element", "code", "text"),
    [
        ("y", 215, "fieldOfViewMm without y"),
        ("trajectory", 201, "encodingType without trajectory"),
        ("encodedSpace", 201, "encodingType without encodedSpace"),
        ("experimentalConditions", 201, "ismrmrdHeader without experimentalConditions"),
    ],
)
@pytest.mark.fault("F19", "F22")
def test_missing_elements_are_named(element, code, text):
    raw = re.sub(f"<{element}>.*?</{element}>", "", Scan().header().decode(), flags=re.DOTALL)
    with pytest.raises(HeaderError, match=f"E{code} .*{text}"):
        read_geometry(raw)


@pytest.mark.fault("F19")
def test_a_missing_size_of_the_matrix_is_named():
    raw = re.sub("<matrixSize><x>.*?</x>", "<matrixSize>", Scan().header().decode())
    with pytest.raises(HeaderError, match="E214 .*encodedSpace.matrixSize.x"):
        read_geometry(raw)


@pytest.mark.fault("F19")
def test_limit_on_the_matrix_is_a_setting():
    with pytest.raises(HeaderError, match="expected an integer 8..64. .*limits.max_matrix"):
        read_geometry(Scan().header(), max_matrix=32)


@pytest.mark.fault("F20")
def test_several_encodings_are_resolved_by_reference():
    raw = Scan().header().decode()
    values = {"ex": 32, "ey": 16, "ez": 1, "efx": 64, "efy": 32, "rx": 32, "ry": 16, "rfx": 64, "rfy": 32}
    second = ENCODING.format(**values, limits="", trajectory="cartesian", parallel="")
    geometry = read_geometry(raw.replace("</encoding>", "</encoding>" + second))
    assert geometry.encoding(1).encoded.matrix == (32, 16, 1)
    with pytest.raises(HeaderError, match="E203 readouts refer to encoding 2"):
        geometry.encoding(2)
    assert read_geometry(raw).encoding(3) == read_geometry(raw).encodings[0]  # one serves all


@pytest.mark.fault("F64")
def test_summary_holds_no_patient_data():
    assert CANARY not in read_geometry(Scan().header()).summary()


@pytest.mark.fault("F64")
def test_a_bad_patient_field_is_repeated_nowhere(recwarn, capfd):
    """Numbers and dates that do not parse are warnings that quote the value, unless somebody stops them."""
    from gadget.files.scan_file import clean_header

    patient = (
        b"<subjectInformation><patientName>ZZPATIENTZZ</patientName>"
        b"<patientWeight_kg>ZZPATIENTZZ</patientWeight_kg>"
        b"<patientBirthdate>ZZPATIENTZZ</patientBirthdate></subjectInformation>"
    )
    raw = Scan().header()
    at = raw.index(b"<encoding>")
    raw = raw[:at].replace(b"<subjectInformation/>", b"") + raw[at:]
    start = raw.index(b">", raw.index(b"<ismrmrdHeader")) + 1
    spoilt = raw[:start] + patient + raw[start:]
    read_geometry(spoilt)
    clean_header(spoilt)
    assert [str(w.message) for w in recwarn] == []
    assert "ZZPATIENTZZ" not in "".join(capfd.readouterr())


@pytest.mark.fault("F64", "F19")
@pytest.mark.parametrize("element", ["ex", "ey", "efx", "rfy"])
def test_a_name_where_a_number_should_be_is_not_repeated(element, caplog):
    with pytest.raises(HeaderError, match="is not a number") as refused:
        read_geometry(Scan(overrides={element: CANARY}).header())
    assert CANARY not in str(refused.value) + caplog.text
