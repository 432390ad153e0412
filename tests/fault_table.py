"""The table of faults F01 to F78: which test covers a row, and how it went.

A test says ``@pytest.mark.fault("F01")`` (several rows are possible). ``pytest --fault-table FILE.md`` writes the
table; a row without a test is listed as missing.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

ROWS = [f"F{number:02}" for number in range(1, 79)]
_rows_of_test: dict[str, list[str]] = {}
_outcomes: dict[str, dict[str, str]] = defaultdict(dict)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the table of faults, tests and outcomes here (Markdown)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        rows = [row for mark in item.iter_markers("fault") for row in mark.args]
        unknown = sorted(set(rows) - set(ROWS))
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no fault row {unknown}")
        if rows:
            _rows_of_test[item.nodeid] = rows


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    for row in _rows_of_test.get(report.nodeid, ()):
        _outcomes[row][report.nodeid] = report.outcome


def pytest_terminal_summary(config: pytest.Config) -> None:
    path = config.getoption("--fault-table")
    if path is None:
        return
    lines = ["| row | test | outcome |", "|---|---|---|"]
    for row in ROWS:
        tests = _outcomes.get(row)
        if not tests:
            lines.append(f"| {row} | none | missing |")
        else:
            lines += [f"| {row} | {test} | {outcome} |" for test, outcome in sorted(tests.items())]
    path.write_text("\n".join(lines) + "\n")
