"""A dump holds a scan and no patient, is the owner's alone, and never costs the scan."""

import logging
import stat

import numpy as np
import pytest
from helpers.fake_core import core
from helpers.mrd_factory import CANARY, Scan, radial_scan
from helpers.peer import configuration, item_message, run_in_process, stream

import gadget
import gadget.target
from gadget.errors import ConfigError
from gadget.files.scan_file import open_scan
from gadget.scan import dump, header
from gadget.service.handshake import refuse_files
from gadget.settings.load import from_xml


@pytest.fixture
def play(monkeypatch):
    monkeypatch.setattr(gadget.target, "resolve_core", core)
    yield lambda scan_header, items, folder: run_in_process(
        stream(scan_header, items, configuration(dump=folder)), gadget.pogmdm_recon
    )
    logging.getLogger("pogmdm").setLevel(logging.NOTSET)


def images(outcome):
    assert outcome.raised is None
    return [image.data for image in outcome.images]


@pytest.mark.fault("F65")
def test_a_dump_is_replayed_to_the_same_images(play, tmp_path):
    scan = Scan(n_slices=2)
    first = images(play(scan.header(), scan.acquisitions(), tmp_path / "dumps"))
    (path,) = (tmp_path / "dumps").iterdir()
    with open_scan(str(path)) as replayed:
        again = run_in_process(stream(replayed.header, replayed.messages), gadget.pogmdm_recon)
    np.testing.assert_array_equal(images(again), first)


@pytest.mark.fault("F65")
def test_readouts_are_kept_as_they_came(tmp_path):
    scan_header, acquisitions = radial_scan(noise_std=0.1)
    other = object()
    assert list(dump.dumped([*acquisitions, other], str(tmp_path), scan_header)) == [*acquisitions, other]
    (path,) = tmp_path.iterdir()
    with open_scan(str(path)) as scan:
        assert list(scan.messages) == [item_message(acq) for acq in acquisitions]


@pytest.mark.fault("F64", "F65")
def test_a_dump_names_no_patient_and_is_the_owners_alone(play, tmp_path, caplog):
    folder = tmp_path / "a" / "dumps"
    raw = Scan(bandwidth=0.8).header()
    description = f"<trajectoryDescription><identifier>golden</identifier><userParameterString><name>{CANARY}</name>"
    description += f"<value>{CANARY}</value></userParameterString><comment>{CANARY}</comment></trajectoryDescription>"
    raw = raw.replace(b"</trajectory>", b"</trajectory>" + description.encode())
    assert raw.count(CANARY.encode()) >= 6
    images(play(raw, Scan().acquisitions(), folder))
    (path,) = folder.iterdir()
    assert CANARY.encode() not in path.read_bytes()
    assert CANARY not in caplog.text
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert header.read_geometry(dump.without_names(raw)) == header.read_geometry(raw)
    (line,) = [record for record in caplog.records if "data of a patient, are written to" in record.message]
    assert line.levelname == "WARNING"


@pytest.mark.fault("F65", "F23")
def test_a_trajectory_of_another_word_is_kept():
    raw = radial_scan()[0].replace(b">radial<", b">zigzag<")
    kept = header.read_geometry(header.to_xml(dump.without_names(raw)))
    assert kept == header.read_geometry(raw)
    assert kept.encodings[0].trajectory == "zigzag"


@pytest.mark.fault("F65")
def test_nothing_is_kept_unless_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gadget.target, "resolve_core", core)
    images(run_in_process(stream(Scan().header(), Scan().acquisitions()), gadget.pogmdm_recon))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("F65")
def test_a_folder_that_others_may_read_holds_no_dump(play, tmp_path, caplog):
    tmp_path.chmod(0o755)
    assert len(images(play(Scan().header(), Scan().acquisitions(), tmp_path))) == 2
    assert list(tmp_path.iterdir()) == []
    assert "which others may read: chmod 700" in caplog.text


@pytest.mark.fault("F54", "F65")
def test_a_dump_without_a_folder_does_not_cost_the_scan(play, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    assert len(images(play(Scan().header(), Scan().acquisitions(), tmp_path / "file" / "dumps"))) == 2
    assert "nothing is written to" in caplog.text


@pytest.mark.fault("F54", "F65")
def test_a_full_disk_does_not_cost_the_scan(play, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dump.tempfile, "NamedTemporaryFile", lambda **_: open("/dev/full", "wb", 0))  # noqa: PTH123, SIM115
    assert len(images(play(Scan().header(), Scan().acquisitions(), tmp_path))) == 2
    assert caplog.text.count("dump: given up: No space left on device") == 1


@pytest.mark.fault("F65")
def test_a_scan_that_fails_leaves_what_came(play, tmp_path):
    acquisitions = Scan().acquisitions()
    for acq in acquisitions[5:]:
        acq.data[:] = np.nan
    outcome = play(Scan().header(), acquisitions, tmp_path / "dumps")
    assert "E330" in outcome.errors[0]
    (path,) = (tmp_path / "dumps").iterdir()
    with open_scan(str(path)) as scan:
        assert len(list(scan.messages)) == len(acquisitions)


@pytest.mark.fault("F65", "F59")
def test_nobody_elsewhere_may_ask_for_a_dump():
    with pytest.raises(ConfigError, match="E113 .*dumps"):
        refuse_files({"dump": "/srv/mine"})
    with pytest.raises(ConfigError, match="E108 the property 'dump'"):
        from_xml(b'<configuration><property name="dump" value="dumps"/></configuration>')
