"""What the gadget logs of its progress, for people and for `pogmdm run`."""

import logging

from gadget import logs
from gadget.replay.child import _PROGRESS
from pogmdm_core import Progress


def test_machine_readable_lines_are_what_the_replay_parses(monkeypatch, caplog):
    monkeypatch.setenv("POGMDM_PROGRESS", "1")
    report = logs.progress_lines("slice 0")
    with caplog.at_level(logging.INFO, logger="pogmdm"):
        report(Progress("warm start", 3, 12))
    match = _PROGRESS.search(caplog.messages[-1])
    assert match is not None
    assert (match["stage"], match["done"], match["total"]) == ("warm start", "3", "12")


def test_lines_for_people_are_rare(monkeypatch, caplog):
    monkeypatch.delenv("POGMDM_PROGRESS", raising=False)
    report = logs.progress_lines("slice 0", every_s=3600)
    with caplog.at_level(logging.INFO, logger="pogmdm"):
        for done in range(1, 50):
            report(Progress("MAP", done, 50))
    assert caplog.messages == []
    report = logs.progress_lines("slice 0", every_s=0)
    with caplog.at_level(logging.INFO, logger="pogmdm"):
        report(Progress("MAP", 5, 50))
    assert "slice 0: MAP 5/50" in caplog.messages[-1]


def test_lines_are_told_where_somebody_listens(monkeypatch):
    monkeypatch.delenv("POGMDM_PROGRESS", raising=False)
    told = []
    logs.progress_lines("slice 0", told.append, every_s=0)(Progress("MAP", 5, 50))
    assert told == ["slice 0: MAP 5/50, about 0 s left in this stage"]
