"""The whole command on a small simulated scan."""

import csv
import importlib.util

import numpy as np
import pytest
import torch

from gadget.cli import main
from gadget.evaluate import cache, methods
from gadget.evaluate.data import read_full_scan
from gadget.evaluate.oracle import best_on_grid
from gadget.evaluate.peers import fit, read_cfl, write_cfl
from gadget.evaluate.truth import make_case
from pogmdm_core.measurement.fourier import centred_fft


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "full.h5"
    assert main(["phantom", str(path), "--matrix", "48", "--coils", "4", "--acceleration", "1", "--noise", "0.02"]) == 0
    return path


def rows_of(folder):
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_page_and_cache(full, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "TV_WEIGHTS", (1e-3, 2e-3, 4e-3))
    monkeypatch.setattr(methods, "TV_STEPS", 150)
    command = ["evaluate", str(full), "--patterns", "cartesian4,gaussian8", "--methods", "zf,nlinv,tv,pogmdm:fast"]
    command += ["-o", str(tmp_path / "out"), "--truth", "synthetic"]
    assert main(command) == 0
    assert "8/8" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert [(r["pattern"], r["method"]) for r in rows] == [
        (p, m) for p in ("cartesian4", "gaussian8") for m in ("zf", "nlinv", "tv", "pogmdm:fast")
    ]
    psnr = {(r["pattern"], r["method"]): float(r["psnr"]) for r in rows}
    for pattern in ("cartesian4", "gaussian8"):
        assert psnr[pattern, "pogmdm:fast"] > psnr[pattern, "zf"] + 2
        assert psnr[pattern, "tv"] > psnr[pattern, "zf"] + 2
    ours = rows[3]
    assert 0 < float(ours["coverage_50"]) < float(ours["coverage_95"]) <= 1
    assert 0 < float(ours["null_space"]) < 0.2
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5  # 2 comparisons, 2 coil figures, calibration
    assert "src='http" not in page
    before = (tmp_path / "out" / "table.csv").read_bytes()

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(methods, "run", never)
    assert main(command) == 0
    assert "8 of 8 results are in the cache" in capsys.readouterr().err
    assert (tmp_path / "out" / "table.csv").read_bytes() == before


def test_a_method_that_fails_is_a_row(full, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [
        "evaluate",
        str(full),
        "--patterns",
        "cartesian4",
        "--methods",
        "zf,bart_nlinv",
        "-o",
        str(tmp_path / "o"),
    ]
    assert main(command) == 0
    zf, bart = rows_of(tmp_path / "o")
    assert zf["psnr"]
    assert bart["psnr"] == ""
    assert bart["note"].startswith("E521 bart is not on the PATH")


def test_answers_on_another_grid_are_brought_to_ours():
    """A Gaussian at one place of the field of view, on a grid of fewer pixels and on a field of view twice as large."""

    def gaussian(n, field=1.0):
        y, x = np.meshgrid(*[(np.arange(n) - n // 2) / n * field] * 2, indexing="ij")
        return np.exp(-((y - 0.1) ** 2 + (x + 0.2) ** 2) / (2 * 0.05**2)) + 0j

    wanted = gaussian(64)
    ratio = 62**2 / 64**2  # of the numbers of pixels, by which zeros around k-space scale
    np.testing.assert_allclose(fit(gaussian(62), (64, 64)) / ratio, wanted, atol=1e-3)
    np.testing.assert_array_equal(fit(gaussian(128, 2.0), (64, 64)), wanted)


def test_sigpy_beats_the_zero_filled_image_when_it_is_installed(full, tmp_path):
    pytest.importorskip("sigpy")
    command = ["evaluate", str(full), "--patterns", "radial6", "--methods", "zf,sigpy_jsense_tv", "-o", str(tmp_path)]
    assert main(command) == 0
    zf, sigpy = rows_of(tmp_path)
    assert float(sigpy["psnr"]) > float(zf["psnr"]) + 1
    assert "best of" in sigpy["note"]


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--patterns", "spirale", "E140"),
        ("--methods", "tvv", "E141"),
        ("--methods", "pogmdm:x", "E104"),
        ("--truth", "x", "E142"),
    ],
)
def test_names_that_do_not_exist_are_refused(option, value, code, full, tmp_path, capsys):
    assert main(["evaluate", str(full), option, value, "-o", str(tmp_path / "o")]) == 2
    assert code in capsys.readouterr().err


def test_missing_libraries_are_named(full, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else found(name))
    assert main(["evaluate", str(full), "-o", str(tmp_path / "o")]) == 2
    assert "E143 evaluate needs skimage" in capsys.readouterr().err


def test_single_coil(full):
    case = make_case(read_full_scan(full), "single", "gaussian8", 0)
    assert case.frame.kspace.shape == (1, 48, 48)
    assert case.coil_images[0] == pytest.approx(case.reference.plain)


def test_an_undersampled_scan_is_refused(tmp_path, capsys):
    path = tmp_path / "r3.h5"
    assert main(["phantom", str(path), "--matrix", "48", "--coils", "2", "--acceleration", "3"]) == 0
    assert main(["evaluate", str(path), "-o", str(tmp_path / "o")]) == 3
    assert "E350" in capsys.readouterr().err


def test_synthetic_noise_has_the_measured_level_and_is_reproducible(full):
    scan = read_full_scan(full)
    first, again = (make_case(scan, "synthetic", "cartesian4", 0) for _ in range(2))
    assert np.array_equal(first.frame.kspace.numpy(), again.frame.kspace.numpy())
    other = make_case(scan, "synthetic", "cartesian4", 1)
    assert not np.array_equal(first.frame.kspace.numpy(), other.frame.kspace.numpy())
    exact = centred_fft(torch.from_numpy(first.coil_images)).numpy()
    noise = (first.frame.kspace.numpy() - exact)[:, first.frame.mask.numpy()]
    assert np.std(noise.real) == pytest.approx(scan.frame.noise_std, rel=0.05)
    assert first.reference.image == pytest.approx(np.linalg.norm(first.coil_images, axis=0), rel=1e-4, abs=1e-4)


def test_the_oracle_extends_its_grid_until_the_best_is_inside():
    tried = []

    def solve(weight):
        tried.append(weight)
        return np.array([weight])

    found = best_on_grid(solve, (1.0, 2.0, 4.0), lambda image: -abs(np.log2(image[0]) + 3))
    assert found.parameter == 0.125
    assert not found.at_edge
    assert min(tried) == 0.0625
    assert best_on_grid(solve, (1.0, 2.0), lambda image: -image[0]).at_edge


def test_presets_show_what_their_first_series_shows(full):
    case = make_case(read_full_scan(full), "real", "cartesian4", 0)
    quick = {"sampler.n_steps": 3, "sampler.n_samples": 2, "map.steps": 5}
    notes = []
    for estimate in ("mean", "map"):
        settings = methods.load(overrides={**quick, "output.estimate": estimate, "uncertainty.method": "samples"})
        notes.append(methods.reconstruct_as_shown(case.frame, settings).note.split()[0])
    assert notes == ["mean", "map"]


def test_off_the_grid(full, tmp_path):
    command = ["evaluate", str(full), "--patterns", "radial,spiral", "--methods", "zf,nlinv,pogmdm:fast"]
    assert main([*command, "-o", str(tmp_path / "o"), "--jobs", "2"]) == 0
    rows = rows_of(tmp_path / "o")
    assert [r["pattern"] for r in rows] == ["radial6"] * 3 + ["spiral5"] * 3
    for start in (0, 3):
        zf, _, ours = rows[start : start + 3]
        assert float(ours["psnr"]) > float(zf["psnr"]) + 2  # 48 x 48 pixels hold little to gain


def test_cfl_files_come_back(tmp_path):
    array = (np.arange(24) * (1 + 2j)).reshape(2, 3, 4).astype(np.complex64)
    write_cfl(tmp_path / "a", array)
    assert np.array_equal(read_cfl(tmp_path / "a").squeeze(), array)


def test_stored_results_come_back(tmp_path):
    result = methods.MethodResult(
        np.ones((2, 3), np.float32), None, {0.5: 0.7}, np.ones((1, 2, 3), np.complex64), 1.5, "n"
    )
    job = cache.Job("s", "radial6", 0, "real", "pogmdm:fast")
    path = cache.path_of(tmp_path / "cache", job, "abc", "settings")
    assert cache.fetch(path) is None
    cache.store(path, result)
    found = cache.fetch(path)
    assert found.interval_factors == {0.5: 0.7}
    assert (found.seconds, found.note, found.std) == (1.5, "n", None)
    assert np.array_equal(found.csm, result.csm)
    assert cache.path_of(tmp_path / "cache", job, "abd", "settings") != path
    assert cache.path_of(tmp_path / "cache", job, "abc", "other") != path
