from pathlib import Path

import pytest

from gadget import cli
from gadget.training.model_card import as_markdown, card_beside, read_facts
from gadget.training.train import _read_settings
from pogmdm_core.prior.config import MultiscaleConfig, ScaleMixtureConfig, build_prior
from pogmdm_core.prior.weights import read_card, save_prior, shipped_weights

RECORD = {
    "settings": {"seed": 5, "bank": {"kind": "multiscale"}},
    "settings_sha256": "f00d",
    "images": {"knee": 7, "brain": 2},
    "subjects": 3,
    "sources": [
        {
            "match": "knees*",
            "attribution": "A. Nobody | CC0",
            "anatomies": ["knee"],
            "images": 7,
            "subjects": 2,
            "formats": ["jpg"],
            "pixel_mm": [0.5, 0.7],
        },
        {"match": "b*", "attribution": None, "anatomies": ["brain"], "images": 2, "subjects": 1, "formats": ["nifti"]},
    ],
    "validation_psnr": {"0.1": 30.25},
    "validation_psnr_noisy": {"0.1": 20.0},
}


def card_of(tmp_path, record):
    prior = build_prior(MultiscaleConfig(scales=((1, 5, 2),)), ScaleMixtureConfig(n_scales=4), (0.01, 0.5), "tiny")
    digest = save_prior(prior, tmp_path / "w.safetensors", record)
    return digest, as_markdown(read_facts(tmp_path / "w.safetensors"))


def test_card_says_what_the_record_says(tmp_path):
    digest, card = card_of(tmp_path, RECORD)
    for words in (
        "# Model card: `tiny`",
        digest,
        "| A. Nobody / CC0 | knee | 7 | 2 | jpg | 0.5 to 0.7 |",
        "| source without attribution | brain | 2 | 1 | nifti | unknown |",
        "| bank.kind | multiscale |",
        "| 0.1 | 20.00 | 30.25 | +10.25 |",
        "f00d",
        "0.01 to 0.5",
        "7 of its images are 8-bit JPEG",
        "Not for diagnostic use",
        "brain, knee",
    ):
        assert words in card
    assert str(tmp_path) not in card


def test_card_without_a_record_says_so(tmp_path):
    _, card = card_of(tmp_path, {})
    assert card.count("ot recorded") >= 4
    assert "JPEG" not in card


def test_card_on_the_command_line(capsys, tmp_path):
    _, card = card_of(tmp_path, RECORD)
    assert cli.main(["inspect", str(tmp_path / "w.safetensors"), "--card"]) == 0
    assert capsys.readouterr().out == card


@pytest.mark.parametrize("name", sorted(shipped_weights()))
def test_shipped_cards_are_of_the_shipped_weights(name):
    path = shipped_weights()[name]
    assert card_beside(path).read_text(encoding="utf-8") == as_markdown(read_facts(name)), (
        f"make it anew: pogmdm inspect {name} --card > {card_beside(path)}"
    )


@pytest.mark.parametrize("name", sorted(shipped_weights()))
def test_shipped_weights_were_made_by_the_settings_in_the_repository(name):
    """Settings file, weights and card belong together: the record names the settings and every source."""
    file = _read_settings(Path(__file__).parents[3] / "training" / f"{name}.yaml")
    record = read_card(shipped_weights()[name]).training
    assert record["settings"] == file.training.model_dump(mode="json")
    assert {s["attribution"] for s in record["sources"]} == {s.attribution for s in file.sources}
    assert len(record["validation_psnr"]) == 5
