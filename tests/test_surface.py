"""What users hold on to stays as it is, unless somebody means to change it."""

import json
from pathlib import Path

import pytest
from helpers.surface import surface

GOLDEN = Path(__file__).parent / "golden" / "surface.json"


@pytest.fixture(scope="module")
def both():
    # as JSON knows it: tuples are lists
    return json.loads(json.dumps(surface())), json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.golden
@pytest.mark.parametrize("part", ["python", "settings", "meta", "commands", "chains"])
def test_the_surface_is_the_recorded_one(both, part):
    found, recorded = both
    assert found[part] == recorded[part], "see tests/helpers/surface.py"
