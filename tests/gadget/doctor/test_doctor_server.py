import re
import socket

import ismrmrd
import numpy as np
import pytest
from helpers import gadgetron_server as server
from helpers.gadgetron_server import Drop, GadgetronServer, Stall

from gadget import cli
from gadget.doctor.server import examine_server
from gadget.settings import configs
from pogmdm_core import errors

CARTESIAN, CONNECT = "pogmdm_cartesian.xml", "pogmdm_connect.xml"
INSTALL = "pogmdm configs install DIR"


@pytest.fixture
def two_chains(monkeypatch):
    found = {name: path for name, path in configs.chains().items() if name in (CARTESIAN, CONNECT)}
    assert len(found) == 2
    monkeypatch.setattr(configs, "chains", lambda: found)


def examine(behaviours, timeout_s=60.0, **kwargs):
    """Examine a stand-in; returns the findings by name, and the stand-in."""
    with GadgetronServer(behaviours, **kwargs) as gadgetron:
        findings = {what: (value, good) for what, value, good in examine_server(gadgetron.address, timeout_s)}
    return findings, gadgetron


def finding_of(behaviour, timeout_s=60.0, name=CARTESIAN):
    """What is said of a chain that behaves so, while the other one works."""
    findings, _ = examine({CARTESIAN: server.images, CONNECT: server.images} | {name: behaviour}, timeout_s)
    other = CONNECT if name == CARTESIAN else CARTESIAN
    assert findings["server"][1]
    assert findings["echo"][1]
    assert findings[other][1], "a chain that fails stands in the way of another"
    return findings[name]


def test_a_server_where_all_is_well():
    findings, gadgetron = examine(dict.fromkeys(configs.chains(), server.images))
    address = f"127.0.0.1:{gadgetron.address[1]}"
    assert list(findings) == ["server", "echo", *configs.chains()]
    assert all(good for _, good in findings.values()), findings
    assert findings["server"][0] == f"Gadgetron 4.7.2 at {address}"
    assert re.fullmatch(r"32 readouts came back unchanged, \d+\.\d s", findings["echo"][0])
    for name in configs.chains():
        assert re.fullmatch(r"ok: 2 images \(series 1, 10\), \d+\.\d s", findings[name][0])
    assert [each.configuration for each in gadgetron.scans()] == list(configs.chains())


def test_every_chain_gets_a_scan_it_can_reconstruct():
    _, gadgetron = examine(dict.fromkeys(configs.chains(), server.images))
    for scan in gadgetron.scans():
        encoding = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0]
        radial = scan.configuration == "pogmdm_noncartesian.xml"
        assert encoding.trajectory.value == ("radial" if radial else "cartesian")
        imaging = [r for r in scan.readouts if not r.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
        assert len(imaging) < len(scan.readouts), "chains with NoiseAdjustGadget need noise readouts"
        assert {r.active_channels for r in imaging} == {3}
        assert {r.trajectory_dimensions for r in imaging} == {2 if radial else 0}
        assert len(imaging) == encoding.reconSpace.matrixSize.y // 2
        n_calibration = sum(r.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING) for r in imaging)
        if "grappa" in scan.configuration:
            assert n_calibration >= 7  # what a kernel of 4 lines at factor 2 spans
        assert scan.closed


@pytest.mark.usefixtures("two_chains")
def test_an_error_is_told_in_one_line():
    value, good = finding_of(lambda received: [server.error("E214 matrixSize.x\n\x1b[31m  is 0 " + "x" * 300)])
    assert not good
    assert value.startswith("FAILED: E214 matrixSize.x [31m is 0 xxx")
    assert value.endswith("xxx...")
    assert len(value) == len("FAILED: ") + 200


@pytest.mark.usefixtures("two_chains")
def test_a_chain_that_is_missing_is_told_with_the_mending():
    for name in (CARTESIAN, CONNECT):
        findings, _ = examine({each: server.images for each in (CARTESIAN, CONNECT) if each != name})
        assert findings.pop(name) == (f"not installed there: {INSTALL}", False)
        assert all(good for _, good in findings.values())
    missing = finding_of(lambda received: [server.error(f"cannot open /gt/config/{CARTESIAN}: no such file")])
    assert missing == (f"not installed there: {INSTALL}", False)
    another = finding_of(lambda received: [server.error("libcuda.so: no such file")])
    assert another == ("FAILED: libcuda.so: no such file", False)


@pytest.mark.usefixtures("two_chains")
@pytest.mark.parametrize("actions", [[], [Drop()]])
def test_a_chain_that_says_nothing_may_be_missing(actions):
    value, good = finding_of(lambda received: actions)
    assert not good
    assert value == f"no image and no error: is it installed there? {INSTALL}; see the server's log"


@pytest.mark.usefixtures("two_chains")
def test_a_chain_that_connects_needs_its_service():
    hint = "; does 'pogmdm serve --port 18000' run on the server?"
    assert finding_of(lambda received: [server.error("no connection")], name=CONNECT) == (
        f"FAILED: no connection{hint}",
        False,
    )
    assert finding_of(lambda received: [], name=CONNECT)[0].endswith(f"see the server's log{hint}")
    assert "serve" not in finding_of(lambda received: [server.error("no connection")])[0]


@pytest.mark.usefixtures("two_chains")
@pytest.mark.parametrize(
    ("series", "pixels", "words"),
    [
        (10, np.zeros((8, 8), np.float32), "series 10, the standard deviation, is 0 everywhere"),
        (1, np.full((8, 8), 3.0, np.float32), "series 1 is 3 everywhere"),
        (1, np.full((8, 8), np.nan, np.float32), "series 1 has no pixels, or some that are no numbers"),
    ],
)
def test_images_without_content_are_failures(series, pixels, words):
    good_one = server.image(11 - series, server.ramp())
    value, good = finding_of(lambda received: [good_one, server.image(series, pixels)])
    assert (value, good) == (f"FAILED: an image of {words}", False)


@pytest.mark.usefixtures("two_chains")
@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([server.image(1, server.ramp()), Drop()], "the connection ended without CLOSE after 1 image"),
        ([server.image(1, server.ramp())[:1000], Drop()], "E402 the stream ended inside a message"),
        ([b"\x99\x09and so on"], "E404 the server sent a message with the unknown id 2457."),
        ([server.image(1, server.ramp()), Stall()], "E403 the server did not finish within 2 s."),
    ],
)
def test_a_connection_that_breaks_is_a_failure_of_this_chain_only(actions, words):
    value, good = finding_of(lambda received: actions, timeout_s=2.0 if isinstance(actions[-1], Stall) else 60.0)
    assert not good
    assert value.startswith(f"FAILED: {words}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "1 of 32 readouts came back changed"),
        (lambda raw: b"", "32 readouts were sent, 31 came back"),
        (lambda raw: raw + server.error("no  such\nreader"), "no such reader"),
        (lambda raw: b"\x99\x09", "E404 the server sent a message with the unknown id 2457."),
    ],
)
@pytest.mark.usefixtures("two_chains")
def test_an_echo_that_changes_anything_fails(change, words):
    def echo(item):
        raw = server.acquisition(item)
        return change(raw) if item.scan_counter == 20 else raw

    findings, _ = examine(dict.fromkeys((CARTESIAN, CONNECT), server.images), echo=echo)
    assert findings["echo"] == (f"FAILED: {words}", False)
    assert findings[CARTESIAN][1], "an echo that fails is no reason not to try the chains"


@pytest.mark.usefixtures("two_chains")
def test_a_server_without_a_version_is_examined_all_the_same():
    findings, _ = examine(dict.fromkeys((CARTESIAN, CONNECT), server.images), version=None)
    value, good = findings.pop("server")
    assert value.startswith("FAILED: E401")
    assert not good
    assert all(good for _, good in findings.values())


def test_chains_are_not_tried_on_something_else():
    findings, gadgetron = examine({}, version=None, echo=lambda item: b"HTTP/1.1 400 Bad Request")
    assert {what: good for what, (_, good) in findings.items()} == dict.fromkeys(("server", "echo", "chains"), False)
    assert gadgetron.scans() == []


def test_no_server_is_an_error_before_anything_is_tried():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with pytest.raises(errors.TransportError, match="E413"):
        next(examine_server(address))


@pytest.mark.usefixtures("two_chains")
def test_the_command_and_its_status(capsys):
    with GadgetronServer({CARTESIAN: server.images, CONNECT: server.images}) as gadgetron:
        at = f"localhost:{gadgetron.address[1]}"
        assert cli.main(["doctor", "--server", at]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"  {'server':28} Gadgetron 4.7.2 at {at}"
        assert lines[3].startswith(f"  {CONNECT:28} ok: 2 images")
        assert len(lines) == 4
        gadgetron.behaviours[CONNECT] = lambda received: [Stall()]
        assert cli.main(["doctor", "--server", at, "--timeout", "2"]) == 5
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].startswith(f"  {CARTESIAN}")
        assert lines[3].startswith(f"! {CONNECT:28} FAILED: E403 the server did not finish within 2 s.")
    for where, status, start in ((at, 4, f"E413 cannot connect to {at}"), ("here:no", 2, "E110 'here:no'")):
        assert cli.main(["doctor", "--server", where]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(start)
        assert err.count("\n") == 1
    for seconds in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor", "--server", at, "--timeout", seconds])
        assert end.value.code == 2
