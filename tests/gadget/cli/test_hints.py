"""Hints of errors name commands that exist."""

import re
from pathlib import Path

import gadget.cli
from gadget.cli.command_line import _parser

ROOT = Path(gadget.cli.__file__).parents[2]


def test_every_command_named_in_the_code_exists():
    known = set(next(a for a in _parser()._actions if a.choices).choices)
    found = set()
    for path in [*ROOT.glob("gadget/**/*.py"), *ROOT.glob("pogmdm_core/**/*.py")]:
        found |= set(re.findall(r"[:\"`] ?pogmdm ([a-z]+)\b", path.read_text(encoding="utf-8")))
    assert {"configs", "run"} <= found
    assert found <= known
