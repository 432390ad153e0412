"""A peer that dies after any byte of a scan: the right code at once, no CPU, no thread left, the service goes on."""

import concurrent.futures
import itertools
import socket
import threading
import time
from functools import partial

import pytest
from helpers.fake_core import core
from helpers.mrd_factory import Scan
from helpers.peer import fire_stream, run_client, stream

import gadget.settings.schema
import gadget.target
from gadget.errors import TransportError
from gadget.service.handshake import ServedConnection
from gadget.service.server import Server
from gadget.settings.schema import LimitsSettings
from gadget.stream.budget import ByteBudget
from gadget.stream.link import Link

SCAN = Scan(nx=8, ny=8, n_coils=1, oversampling=1, noise_scan=False)
PARTS = {
    "gadgetron": stream(SCAN.header(), SCAN.acquisitions()),
    "fire": fire_stream(SCAN.header(), SCAN.acquisitions(), parameters={"preset": "fast"}),
}
STALL_S = 1.0


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(gadget.target, "resolve_core", core)
    server = Server("127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.addresses[0]
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def kill_at(address, dialect, offsets):
    whole = b"".join(PARTS[dialect])
    ends = {0, *itertools.accumulate(map(len, PARTS[dialect]))}
    n_threads = None
    for offset in offsets:
        start, cpu = time.monotonic(), time.process_time()
        outcome = run_client(address, [whole[:offset]], hang_up=True)
        assert time.monotonic() - start < 5, offset
        assert time.process_time() - cpu < 1, offset
        (text,) = outcome.errors + outcome.texts
        assert ("E401" if offset in ends else "E402") in text, (offset, text)
        assert outcome.closed, offset
        # the whole frame was there
        assert len(outcome.images) == (2 if offset >= len(whole) - 2 else 0), offset
        n_threads = n_threads or threading.active_count()
        assert threading.active_count() <= n_threads, offset
    outcome = run_client(address, [whole])
    assert outcome.errors + outcome.texts == []
    assert len(outcome.images) == 2


@pytest.mark.fault("F01", "F02")
@pytest.mark.parametrize("dialect", PARTS)
def test_killed_at_some_bytes(address, dialect):
    ends = list(itertools.accumulate(map(len, PARTS[dialect])))
    around = {end + step for end in ends[:-1] for step in (-1, 0, 1, 2, 3)}
    kill_at(address, dialect, sorted(k for k in {0, 1, 2, *around, *range(5, ends[-1], 211)} if k < ends[-1]))


def read_scan(connection, link):
    settings, _ = connection.introduction()
    connection.socket.idle_timeout_s = STALL_S
    for _ in link.ahead(ByteBudget(settings.limits.max_buffer_bytes)):
        pass


def stall_at(monkeypatch, dialect, offsets):
    """Silent, but alive, from `offset` on: E403 after the time-out, and next to no CPU until then."""
    # how long a FIRE scanner may prepare after its header
    monkeypatch.setattr(gadget.settings.schema, "LimitsSettings", partial(LimitsSettings, idle_timeout_s=STALL_S))
    whole = b"".join(PARTS[dialect])
    n_threads = threading.active_count()
    for offset in offsets:
        ours, theirs = socket.socketpair()
        with ours, theirs, concurrent.futures.ThreadPoolExecutor(1) as pool:
            connection = ServedConnection(theirs, STALL_S)
            reading = pool.submit(read_scan, connection, Link(connection))
            ours.sendall(whole[:offset])
            time.sleep(STALL_S / 2)  # everything that came has been read
            start, cpu = time.monotonic(), time.process_time()
            error = reading.exception(STALL_S + 5)
            seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        assert isinstance(error, TransportError), (offset, error)
        assert error.code == 403, (offset, error)
        assert cpu < 0.05 * seconds, (offset, cpu, seconds)
        assert threading.active_count() <= n_threads, offset


@pytest.mark.fault("F02", "F03")
@pytest.mark.parametrize("dialect", PARTS)
def test_stalled_at_some_bytes(monkeypatch, dialect):
    ends = list(itertools.accumulate(map(len, PARTS[dialect])))
    stall_at(monkeypatch, dialect, [1, ends[0], ends[0] + 3, ends[1], ends[2] + 1, ends[2] + 341, ends[-2]])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.fault("F02", "F03")
@pytest.mark.parametrize("dialect", PARTS)
def test_stalled_at_many_bytes(monkeypatch, dialect):
    stall_at(monkeypatch, dialect, range(1, len(b"".join(PARTS[dialect])) - 2, 97))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.fault("F01", "F02")
@pytest.mark.parametrize("dialect", PARTS)
def test_killed_at_every_byte(address, dialect):
    kill_at(address, dialect, range(len(b"".join(PARTS[dialect]))))
