import matplotlib.image
import numpy as np
import pytest
import torch

from gadget import cli
from gadget.training.figure import POTENTIAL_LEVELS, default_figure, draw, kernel_pictures, potentials, radial_profile
from gadget.training.model_card import ModelFacts, read_facts
from pogmdm_core.prior.config import (
    GridMixtureConfig,
    MultiscaleConfig,
    ScaleMixtureConfig,
    ShearletConfig,
    build_prior,
)
from pogmdm_core.prior.weights import save_prior, shipped_weights


def make(kind="multiscale"):
    """Three filters, or the 20 shearlets."""
    if kind == "multiscale":
        bank, experts = MultiscaleConfig(scales=((1, 5, 2), (2, 5, 1))), ScaleMixtureConfig(n_scales=4)
    else:
        bank, experts = ShearletConfig(), GridMixtureConfig(n_means=9)
    return build_prior(bank, experts, (0.01, 0.5), f"tiny {kind}/x")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    record = {"validation_psnr": {"0.1": 30.25}, "validation_psnr_noisy": {"0.1": 20.0}, "images": {"knee": 7}}
    save_prior(make(), path, {**record, "subjects": 3, "settings": {"seed": 5, "bank": {"kind": "multiscale"}}})
    return path


@pytest.mark.parametrize("name", sorted(shipped_weights()))
def test_text_of_the_shipped_weights(capsys, name):
    assert cli.main(["inspect", name]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = read_facts(name)
    assert facts.prior.sha256 in out
    assert f"{facts.prior.n_parameters} numbers" in out


def test_text_of_a_file(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", str(weights)]) == 0
    out = capsys.readouterr().out
    for words in ("7 knee", "seed=5", "bank.kind=multiscale", "30.25", "+10.25", "0.01 to 0.5", "3 filters"):
        assert words in out
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]  # no figure unless asked for


def test_figure_is_written_where_asked(capsys, weights, tmp_path):
    figure = tmp_path / "f.png"
    assert cli.main(["inspect", str(weights), "-o", str(figure)]) == 0
    assert min(matplotlib.image.imread(figure).shape[:2]) > 300
    assert cli.main(["inspect", str(weights), "-o", str(figure)]) == 6
    assert capsys.readouterr().err.startswith("E603 ")


def test_figure_is_named_after_the_model(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", str(weights), "-o"]) == 0
    assert (tmp_path / "tiny_multiscale_x.png").is_file()
    assert default_figure(ModelFacts(make())).parts == ("tiny_multiscale_x.png",)


def test_unknown_weights_are_refused(capsys):
    assert cli.main(["inspect", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("E120 ")


@pytest.mark.parametrize("kind", ["multiscale", "shearlet"])
def test_both_kinds_are_drawn(kind):
    figure = draw(ModelFacts(make(kind)))
    figure.canvas.draw()
    n_filters = make(kind).bank.n_filters
    titles = [t.get_text() for part in figure.subfigs for axes in part.axes for t in [axes.title]]
    assert sum("gamma" in t for t in titles) == n_filters


@pytest.mark.parametrize("kind", ["multiscale", "shearlet"])
def test_potentials_fall_to_zero_and_follow_the_score(kind):
    prior = make(kind)
    v, curves = potentials(prior)
    assert curves.shape == (len(POTENTIAL_LEVELS), prior.bank.n_filters, len(v))
    assert torch.isfinite(curves).all()
    assert (curves.amin(dim=2) == 0).all()
    # their slope is minus the tabulated score
    level = POTENTIAL_LEVELS[3]
    u = v.float() * prior.experts.width[:, None]
    slope = (curves[3, :, 2:] - curves[3, :, :-2]) / (u[:, 2:] - u[:, :-2]).double()
    score = prior.experts.table(level)(u)[:, 1:-1]
    assert (slope + score).abs().max() < 0.03 * score.abs().max()


def test_kernels_are_those_of_the_bank():
    prior = make()
    for picture, width in zip(kernel_pictures(prior), prior.experts.width, strict=True):
        assert picture.norm == pytest.approx(float(width), rel=0.02)
        assert 0.99 < float(picture.pixels.norm()) / picture.norm <= 1
        assert picture.pixels.shape[0] % 2 == 1


def test_radial_profile_of_a_cone():
    axis = torch.fft.fftfreq(64)
    radius, rings = radial_profile(torch.hypot(axis[:, None], axis[None, :]))
    assert np.allclose(rings[:, 0], radius, atol=0.01)
    assert (rings[:, 1] <= rings[:, 0]).all() and (rings[:, 0] <= rings[:, 2]).all()
