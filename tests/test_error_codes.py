"""Every code has one meaning, and the table that users read is the one that the code goes by."""

import ast
from pathlib import Path

import pytest

from pogmdm_core import errors
from pogmdm_core.error_codes import CODES, FAMILIES, as_markdown

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("gadget/**/*.py"), *ROOT.glob("pogmdm_core/**/*.py")]
CLASSES = {
    "ConfigError": 1,
    "HeaderError": 2,
    "DataError": 3,
    "TransportError": 4,
    "ComputeError": 5,
    "OutputError": 6,
}
MAKERS = {**CLASSES, "broken": 4}


def raised():
    """(code, family of the class or None, place) of every error that is made in the code."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0] if node.args else None
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            if name in MAKERS and isinstance(first, ast.Constant):
                yield first.value, MAKERS[name], place
            yield from ((k.value.value, None, place) for k in node.keywords if k.arg == "code")


def test_all_codes_that_are_raised_are_in_the_table_and_none_else():
    codes = {code for code, _, _ in raised()}
    # 214 and 215 come out of a table of the header's elements, 201 is what it has for others
    assert codes == set(CODES)


def test_codes_are_of_the_family_of_their_class():
    # what a 3-D scan lacks shows in the header or in its readouts: both are input
    wrong = [entry for entry in raised() if entry[1] not in (None, entry[0] // 100) and entry[0] != 204]
    assert not wrong


def test_the_table_in_the_documents_is_up_to_date():
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == "\n".join(as_markdown()) + "\n"


@pytest.mark.parametrize("name", CLASSES)
def test_exit_statuses_are_those_of_the_table(name):
    assert getattr(errors, name).exit_code == FAMILIES[CLASSES[name]][1]
