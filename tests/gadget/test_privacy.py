"""A patient's data must not leave through logs, errors, file names, reports or Meta."""

import contextlib
import logging
import re

import ismrmrd
import numpy as np
import pytest
from helpers.mrd_factory import CANARY, Scan

from gadget import cli
from gadget.images.integer_pixels import PixelScale
from gadget.images.meta import attributes

FIELDS = """<subjectInformation><patientName>{c}</patientName><patientWeight_kg>70</patientWeight_kg>
<patientID>{c}</patientID><patientBirthdate>1901-02-03</patientBirthdate><patientGender>O</patientGender>
</subjectInformation>
<studyInformation><studyDate>1901-02-03</studyDate><studyID>{c}</studyID><accessionNumber>190102030405</accessionNumber>
<referringPhysicianName>{c}</referringPhysicianName><studyDescription>{c}</studyDescription>
<studyInstanceUID>{c}</studyInstanceUID></studyInformation>
<measurementInformation><measurementID>{c}</measurementID><patientPosition>HFS</patientPosition>
<protocolName>{c}</protocolName><sequenceName>{c}</sequenceName></measurementInformation>
<acquisitionSystemInformation><institutionName>{c}</institutionName><stationName>{c}</stationName>
<receiverChannels>4</receiverChannels></acquisitionSystemInformation>"""
CANARIES = (CANARY, "1901-02-03", "190102030405")


def header():
    raw = Scan().header().decode()
    raw = re.sub(r"<(subject|measurement)Information>.*?</\1Information>", "", raw, flags=re.S)
    raw = re.sub(r"<acquisitionSystemInformation>.*?</acquisitionSystemInformation>", "", raw, flags=re.S)
    assert CANARY not in raw
    fields = FIELDS.format(c=CANARY)
    subject, _, system = fields.partition("<acquisitionSystemInformation>")
    at = raw.index("<experimentalConditions>")
    return raw[:at] + subject + "<acquisitionSystemInformation>" + system + raw[at:]


def write(path, acquisitions):
    with contextlib.closing(ismrmrd.Dataset(str(path), "dataset", True)) as file:
        file.write_xml_header(header())
        for acq in acquisitions:
            file.append_acquisition(acq)


@pytest.mark.fault("F64", "F65")
@pytest.mark.parametrize("broken", [False, True])
def test_nothing_of_the_patient_gets_out_at_debug(broken, tmp_path, capfd, caplog):
    """The whole command line with the gadget in a process of its own, with a good end and a bad one."""
    caplog.set_level(logging.DEBUG)
    acquisitions = Scan().acquisitions()
    if broken:
        for acq in acquisitions[1:]:
            acq.data[:] = np.nan
    folder = tmp_path / "work"
    folder.mkdir()
    write(folder / "scan.h5", acquisitions)
    argv = ["run", str(folder / "scan.h5"), "-o", str(folder / "out.h5"), "--preset", "fast"]
    argv += ["--png", str(folder / "png"), "--html", str(folder / "page.html")]
    for pair in (
        "log=debug",
        "sampler.n_samples=2",
        "sampler.n_steps=2",
        "map.steps=3",
        "uncertainty.method=off",
    ):
        argv += ["--set", pair]
    status = cli.main(argv)
    assert status == (3 if broken else 0)
    out, err = capfd.readouterr()
    shown = out + err + caplog.text
    assert "scan: cartesian" in shown  # it is the log that was searched
    made = [path for path in folder.rglob("*") if path.is_file() and path.name != "scan.h5"]
    texts = [path.read_text() for path in made if path.suffix == ".html"] + [shown, *map(str, made)]
    for canary in CANARIES:
        assert not any(canary in text for text in texts)
        # the output file may carry the header of the scan, as Gadgetron's client writes it; pictures may not
        assert not any(canary.encode() in path.read_bytes() for path in made if path.suffix == ".png")
    # no dumps: nothing but what was asked for
    assert {path.suffix for path in made} <= ({".h5", ".png", ".html"} if not broken else set())


@pytest.mark.fault("F63")
def test_meta_text_survives_whatever_it_holds():
    own = {"Detail": "<&>é\"'\n", "Long": "x" * 65536, "Empty": [], "Seed": 0}
    directions = {"row": (1, 0, 0), "column": (0, 1, 0)}
    meta = attributes("image", np.ones((1, 1, 8, 8)), directions, own, 1, PixelScale())
    back = ismrmrd.Meta.deserialize(meta.serialize())
    assert back["POGMDM_Detail"].strip() == "<&>é\"'"
    assert back["POGMDM_Long"] == "x" * 1021 + "..."
    assert back["POGMDM_Empty"] == "[]"
    assert back["DataRole"] == "Image"
