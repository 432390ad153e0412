import json
import subprocess
import sys

import h5py
import pytest

from gadget import cli
from gadget.settings import configs

SMALL = ["--matrix", "32", "--coils", "2", "--acceleration", "2"]


def fails_with(capsys, argv, status, start):
    """The command ends with a status and exactly one line on stderr."""
    assert cli.main([str(a) for a in argv]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(start)
    return err


@pytest.mark.parametrize("command", [[], ["run"], ["phantom"], ["doctor"], ["configs"]])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "example:\n  pogmdm " in out or not command


def test_help_is_instant():
    code = "import sys, gadget.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'h5py', 'ismrmrd')))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["run", "x.h5"],
        ["run", "x.h5", "-o", "y.h5", "--set", "novalue"],
        ["phantom", "x.h5", "--matrix", "3by4"],
    ],
)
def test_wrong_usage_is_status_2(capsys, argv):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_phantom_writes_and_refuses(capsys, tmp_path):
    path = tmp_path / "p.h5"
    assert cli.main(["phantom", str(path), "--matrix", "48x32", "--coils", "2", "--truth", "--slices", "2"]) == 0
    assert capsys.readouterr().out == ""
    with h5py.File(path) as file:
        assert file["truth/image_1/data"].shape == (2, 1, 1, 32, 48)
    fails_with(capsys, ["phantom", path, *SMALL], 6, "E603 ")
    assert cli.main(["phantom", str(path), *SMALL, "--overwrite"]) == 0
    fails_with(capsys, ["phantom", tmp_path / "q.h5", "--trajectory", "rosette"], 2, "E111 ")
    fails_with(capsys, ["phantom", tmp_path / "no" / "q.h5", *SMALL], 6, "E601 ")


def test_errors_are_one_line_with_the_familys_status(capsys, tmp_path):
    scan = tmp_path / "p.h5"
    assert cli.main(["phantom", str(scan), *SMALL]) == 0
    text = tmp_path / "text.h5"
    text.write_text("no scan at all")
    out = tmp_path / "out.h5"
    fails_with(capsys, ["run", tmp_path / "absent.h5", "-o", out], 3, "E301 ")
    fails_with(capsys, ["run", text, "-o", out], 3, "E301 ")
    err = fails_with(capsys, ["run", scan, "-o", out, "-g", "other"], 3, "E301 ")
    assert "dataset" in err
    fails_with(capsys, ["run", scan, "-o", out, "-c", "absent.xml"], 2, "E108 ")
    fails_with(capsys, ["run", scan, "-o", scan], 6, "E603 ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.h5", "text.h5"]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match="E301"):
        cli.main(["run", str(tmp_path / "absent.h5"), "-o", str(tmp_path / "out.h5"), "--debug"])


def test_an_unexpected_error_does_not_show_its_text(capsys, monkeypatch, tmp_path):
    def fail(*_):
        raise ValueError("ZZPATIENTZZ")

    monkeypatch.setattr("gadget.replay.play.replay", fail)
    fails_with(capsys, ["run", "x.h5", "-o", tmp_path / "out.h5"], 5, "E599 unexpected ValueError")


def test_run_passes_settings_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("gadget.replay.play.replay", lambda job, *_: seen.append(job) or _outcome())
    argv = ["run", "x.h5", "-o", "out.h5", "--preset", "fast", "--settings", "s.yaml", "-G", "/there"]
    monkeypatch.chdir(tmp_path)
    assert cli.main([*argv, "--set", "a.b=1=2", "--set", "device=cpu"]) == 0
    assert seen[0].properties == [
        ("preset", "fast"),
        ("settings", str(tmp_path / "s.yaml")),
        ("a.b", "1=2"),
        ("device", "cpu"),
    ]
    assert seen[0].out_group == "there"


def _outcome():
    from gadget.replay.play import Outcome

    return Outcome({1: 1}, 0.1)


def test_configs_commands(capsys, tmp_path):
    assert cli.main(["configs", "list"]) == 0
    assert "pogmdm_standalone.xml" in capsys.readouterr().out
    assert cli.main(["configs", "show", "pogmdm_cartesian"]) == 0
    assert "RemoveROOversamplingGadget" in capsys.readouterr().out
    assert cli.main(["configs", "show", "--schema"]) == 0
    assert "sampler" in json.loads(capsys.readouterr().out)["properties"]
    assert cli.main(["configs", "install", str(tmp_path / "there")]) == 0
    installed = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert len(capsys.readouterr().out.splitlines()) == len(installed)
    assert installed == sorted(configs.chains())
    fails_with(capsys, ["configs", "show", "nonsense"], 2, "E109 ")
    fails_with(capsys, ["configs", "show"], 2, "E109 ")


def test_doctor_reports_and_its_status_says_whether_all_is_well(capsys, monkeypatch):
    from gadget.doctor import installation as doctor

    findings = [("python", "3", True), ("self-test", "FAILED", False)]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    assert cli.main(["doctor"]) == 5
    assert capsys.readouterr().out.splitlines() == ["  python         3", "! self-test      FAILED"]
    findings.pop()
    assert cli.main(["doctor"]) == 0


def test_doctor_sees_a_shadowed_gadget(monkeypatch, tmp_path):
    from gadget.doctor import installation as doctor

    value, good = doctor._gadget_origin()
    assert good, value
    (tmp_path / "gadget").mkdir()
    (tmp_path / "gadget" / "__init__.py").write_text("")
    spec = type("Spec", (), {"origin": str(tmp_path / "gadget" / "__init__.py")})
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: spec)
    value, good = doctor._gadget_origin()
    assert not good
    assert "SHADOWED" in value


@pytest.mark.e2e
def test_phantom_to_images_with_the_real_gadget(capsys, tmp_path):
    scan, out = tmp_path / "p.h5", tmp_path / "r.h5"
    assert cli.main(["phantom", str(scan), *SMALL, "--slices", "2"]) == 0
    quick = ["--set", "sampler.n_samples=2", "--set", "sampler.n_steps=3", "--set", "map.steps=5"]
    argv = [
        "run",
        str(scan),
        "-o",
        str(out),
        *quick,
        "--set",
        "coils.newton_steps=3",
        "--png",
        str(tmp_path),
        "--html",
        str(tmp_path / "r.html"),
    ]
    assert cli.main(argv) == 0, capsys.readouterr().err
    with h5py.File(out) as file:
        assert file["dataset/image_1/data"].shape == (2, 1, 1, 32, 32)
        assert file["dataset/image_10/data"].shape == (2, 1, 1, 32, 32)
    assert (tmp_path / "image_1.png").is_file()
    assert (tmp_path / "image_10.png").is_file()
    assert "image_10" in (tmp_path / "r.html").read_text()
    assert capsys.readouterr().out == ""
    assert cli.main(["run", str(scan), "-o", str(tmp_path / "x.h5"), "--set", "sampler.n_sample=2"]) == 2
    assert not (tmp_path / "x.h5").exists()


def test_a_folder_of_previews_that_cannot_be_made_is_told_before_the_work(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("gadget.replay.play.replay", lambda *_: pytest.fail("the reconstruction was started"))
    (tmp_path / "file").write_text("")
    argv = ["run", "x.h5", "-o", tmp_path / "out.h5", "--png", tmp_path / "file" / "png"]
    fails_with(capsys, argv, 6, "E601 cannot write previews to ")


def test_an_interrupt_is_told_in_one_word(capsys, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gadget.replay.play.replay", interrupt)
    assert cli.main(["run", "x.h5", "-o", str(tmp_path / "out.h5")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.fault("F18")
@pytest.mark.parametrize("option", ["--port=99999", "--port=-1", "--queue=x", "--workers=0"])
def test_numbers_of_serve_are_checked_before_anything_starts(option, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", option])
    assert ended.value.code == 2
    assert "is not a whole number from" in capsys.readouterr().err
