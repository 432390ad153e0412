"""Progress of a replay where stderr is not a terminal."""

import io

import pytest

from gadget import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_told_once_it_is_known(clock):
    # within the first second the rate is a guess
    stream = io.StringIO()
    display = progress.ProgressDisplay(stream, bar=False)
    display.update("sampling", 0, 20)
    clock[0] += 0.9
    display.update("sampling", 4, 20)
    clock[0] += 4.1
    display.update("sampling", 10, 20)
    clock[0] += 5
    display.update("sampling", 20, 20)
    assert stream.getvalue().splitlines() == [
        "sampling 0/20",
        "sampling 4/20",
        "sampling 10/20, about 5 s left",
        "sampling 20/20",
    ]
