import json

import numpy as np
import pytest
import torch

from gadget.bench import measure, scans
from gadget.bench.scans import BenchScan
from gadget.cli import main
from gadget.evaluate import peers


@pytest.mark.parametrize("scan", [BenchScan((32, 40), 3), BenchScan((32, 32), 3, 9)])
def test_scans_hold_the_noise_and_the_object_they_say(scan):
    frame, reference = scan.simulate()
    assert frame.shape == scan.shape and frame.n_coils == 3
    assert reference.image.shape == scan.shape and reference.mask.any()
    quiet, _ = BenchScan(scan.shape, 3, scan.n_spokes, noise=0.0).simulate()
    difference = torch.view_as_real(frame.kspace - quiet.kspace)
    measured = difference[difference != 0]
    assert float(measured.std()) == pytest.approx(0.01, rel=0.1)
    if scan.n_spokes is None:
        assert frame.acceleration == pytest.approx(4)
    again, _ = scan.simulate()
    assert torch.equal(again.kspace, frame.kspace)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measure, "_REPEATS", 1)
    for name, n_spokes in (("cartesian320", None), ("radial320", 9)):
        monkeypatch.setitem(scans.SCANS, name, BenchScan((32, 32), 3, n_spokes))


def test_the_command_times_pieces_and_presets(small, tmp_path, capsys, monkeypatch):
    image = np.ones((32, 32), np.float32)
    monkeypatch.setattr(peers, "installed", lambda: True)
    monkeypatch.setattr(peers, "version", lambda: "v0")
    monkeypatch.setattr(measure.peers, "nlinv_by_step", lambda frame: iter([(6, image, 1.5, 1.6)]))
    command = [
        "bench",
        "--scans",
        "cartesian320,radial320",
        "--presets",
        "image,fast",
        "--json",
        str(tmp_path / "b.json"),
    ]
    threads = torch.get_num_threads()
    try:
        assert main(command) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "b.json").read_text())["timings"]
    of_scan = [row for row in found if row["scan"] == "32x32x3 9 spokes"]
    assert len(of_scan) * 2 == len(found)
    names = [row["what"] for row in of_scan]
    for part in ("score, prior default", "normal operator", "data step", "coil step", "image alone", "preset fast"):
        assert part in names
    assert all(row["wall_s"] > 0 for row in found)
    fast = next(row for row in of_scan if row["what"] == "preset fast")
    assert fast["psnr_db"] > 15 and "held-out k-space" in fast["note"] and "std/error" in fast["note"]
    assert next(row for row in of_scan if "nlinv" in row["what"])["cpu_s"] == 1.5
    direct = next(row for row in of_scan if row["what"].startswith("direct"))
    assert direct["wall_s"] > next(row for row in of_scan if row["what"] == "score, prior paper")["wall_s"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) + 1


@pytest.mark.parametrize("option", [["--scans", "brain"], ["--presets", "slow"], ["--threads", "0"]])
def test_wrong_options_show_the_usage(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *option])
    assert ended.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_a_missing_card_is_told(capsys):
    assert main(["bench", "--device", "cuda:99"]) == 5
    assert "E501" in capsys.readouterr().err
