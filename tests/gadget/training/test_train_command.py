import json

import numpy as np
import pytest
import torch
import yaml

from gadget import cli
from gadget.training.image_files import ImageSource, read_sources
from gadget.training.model_card import as_markdown, read_facts
from gadget.training.train import source_records

TRAINING = {
    "name": "tiny",
    "bank": {"kind": "multiscale", "scales": [[1, 5, 2]]},
    "experts": {"kind": "scale_mixture", "n_scales": 4},
    "steps": 2,
    "batch": 2,
    "patch": 32,
    "margin": 4,
    "validation_share": 0.3,
}


@pytest.fixture
def images(tmp_path):
    """Three subjects of two slices, 128 pixels: the size of a validation crop."""
    generator = np.random.default_rng(0)
    arrays = {f"a{i}": np.kron(generator.integers(1, 900, (8, 8)), np.ones((16, 16))) for i in range(6)}
    meta = {"slices": [{"subject": f"secret-{i // 2}", "spacing_mm": [0.5 + i, 0.5]} for i in range(6)]}
    np.savez(tmp_path / "squares.npz", meta=json.dumps(meta), **arrays)
    source = {"match": "squares*", "anatomy": "toy", "attribution": "Nobody, CC0"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"training": TRAINING, "sources": [source]}))
    return tmp_path


def train(folder, *more):
    command = ["train", folder / "squares.npz", "-o", folder / "w.safetensors", "--settings", folder / "s.yaml", *more]
    return cli.main([str(part) for part in command])


def test_train_writes_weights_and_card(capsys, images):
    assert train(images) == 0
    assert capsys.readouterr().out == ""
    facts = read_facts(images / "w.safetensors")
    (source,) = facts.sources
    assert (source["attribution"], source["images"], source["subjects"]) == ("Nobody, CC0", 6, 3)
    assert source["pixel_mm"] == [0.5, 5.5]
    card = (images / "w.md").read_text()
    assert card == as_markdown(facts)
    assert "Nobody, CC0" in card
    record = json.dumps(dict(facts.training))
    for private in (str(images), "squares.npz", "secret"):
        assert private not in record and private not in card
    assert {p.name for p in images.iterdir()} == {"squares.npz", "s.yaml", "w.safetensors", "w.md"}


def test_an_existing_card_is_not_replaced_unasked(capsys, images):
    (images / "w.md").write_text("mine")
    assert train(images) == 6
    assert capsys.readouterr().err.startswith("E603 ")
    assert not (images / "w.safetensors").exists()
    assert train(images, "--overwrite") == 0
    assert (images / "w.md").read_text() != "mine"


def test_same_seed_same_weights(images):
    assert train(images) == 0
    first = read_facts(images / "w.safetensors").prior
    assert train(images, "--overwrite") == 0
    second = read_facts(images / "w.safetensors").prior
    assert first.sha256 == second.sha256
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_sources_that_share_a_rule_are_one_record(images):
    rules = [ImageSource(match="squares*", attribution="Nobody"), ImageSource(match="unused*", attribution="Unused")]
    sources = read_sources([images / "squares.npz", images / "squares.npz"], rules)
    (record,) = source_records(sources)
    assert (record["attribution"], record["images"], record["subjects"]) == ("Nobody", 12, 3)
    assert record["formats"] == ["npz"]


def test_the_settings_files_in_the_repository_attribute_every_source(request):
    files = sorted((request.config.rootpath / "training").glob("*.yaml"))
    assert files
    for file in files:
        for source in yaml.safe_load(file.read_text())["sources"]:
            assert source["attribution"], f"{file.name}: {source['match']}"
