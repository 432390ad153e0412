import socket
import struct
import threading
import time

import pytest
from helpers.fake_core import core, reconstruct
from helpers.mrd_factory import Scan
from helpers.peer import configuration, item_message, run_client, run_in_process, stream, text_message

import gadget.target
from gadget.errors import TransportError
from gadget.service.handshake import ServedConnection
from gadget.stream.budget import OBJECT_BYTES, ByteBudget
from gadget.stream.link import Link

SCAN = Scan(nx=64, ny=32, n_coils=4, oversampling=1, noise_scan=False)
ITEMS = SCAN.acquisitions()
MESSAGES = [item_message(item) for item in ITEMS]
CLOSE = struct.pack("<H", 4)


@pytest.fixture
def pair():
    """A link, its peer's socket with a small buffer, and no thread left behind."""
    before = threading.active_count()
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.settimeout(5)
    yield Link(ServedConnection(theirs)), ours
    ours.close()
    theirs.close()
    assert threading.active_count() == before


def test_the_sender_gets_rid_of_everything_while_nobody_consumes(pair):
    link, ours = pair
    messages = link.ahead(ByteBudget())
    ours.sendall(MESSAGES[0])
    assert next(messages) == ITEMS[0]
    ours.sendall(b"".join(MESSAGES[1:]) + CLOSE)  # far beyond the buffers: blocks, and times out, unless it is read
    assert list(messages) == ITEMS[1:]
    assert link.ended


def test_what_is_kept_is_bounded(pair):
    link, ours = pair
    link.configure(1 << 20, 5.0)
    messages = link.ahead(ByteBudget(3 * (len(MESSAGES[0]) + OBJECT_BYTES)))
    ours.sendall(MESSAGES[0])
    next(messages)
    ours.settimeout(0.3)
    n_sent = 0
    with pytest.raises(TimeoutError):
        for _ in range(100):
            n_sent += ours.send(MESSAGES[1])
    assert n_sent < 3 * len(MESSAGES[1]) + len(MESSAGES[1]) + 4 * 8192
    assert link.socket.n_read <= 5 * len(MESSAGES[0])
    link.fail("E999", quiet_s=0.1, most_s=0.2)  # joins the thread, which waits for room


def settled(budget, n_bytes):
    """Whether so many bytes are read ahead, within 5 s, and no more a while later."""
    end = time.monotonic() + 5
    while budget.ahead < n_bytes and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    return budget.ahead == n_bytes


@pytest.mark.fault("F51")
def test_what_waits_for_its_frame_leaves_less_room(pair):
    """The limit is one for both; a frame that is done makes room at once, and one message always has some."""
    link, ours = pair
    one = len(MESSAGES[0]) + OBJECT_BYTES
    budget = ByteBudget(10 * one)
    messages = link.ahead(budget)
    ours.sendall(MESSAGES[0])
    next(messages)
    assert budget.hold(10 * one)
    # more than the socket takes at once
    sender = threading.Thread(target=ours.sendall, args=(b"".join(MESSAGES[1:5]),))
    sender.start()
    assert settled(budget, one)
    budget.release(5 * one)
    assert settled(budget, 4 * one)
    sender.join()
    next(messages)
    link.fail("E999", quiet_s=0.1, most_s=0.2)
    assert budget.ahead == 0


@pytest.mark.fault("F51")
def test_a_buffer_that_is_full_ends_a_scan_that_is_read_ahead(monkeypatch):
    """No frame is ever complete: the limit is hit in the buffer, not waited for in the thread that reads."""
    monkeypatch.setattr(gadget.target, "resolve_core", core)
    scan = Scan(nx=64, ny=64, n_coils=4, oversampling=1, noise_scan=False)
    parts = stream(scan.header(), scan.acquisitions(), configuration(limits__max_buffer_bytes=30 * 3436))
    outcome = run_in_process(parts, gadget.pogmdm_recon)
    assert outcome.errors[0].startswith("E306")
    assert outcome.closed


def test_errors_come_after_the_messages_before_them(pair):
    link, ours = pair
    ours.sendall(MESSAGES[0] + MESSAGES[1][:77])
    ours.close()
    seen = []
    with pytest.raises(TransportError, match="E402"):
        seen.extend(link.ahead(ByteBudget()))
    assert seen == ITEMS[:1]
    assert link.lost


def test_silence_counts_only_while_somebody_waits(pair):
    link, ours = pair
    link.configure(1 << 20, 0.4)
    messages = link.ahead(ByteBudget())
    ours.sendall(MESSAGES[0])
    next(messages)
    time.sleep(1.0)  # the sampler works
    ours.sendall(MESSAGES[1])
    next(messages)
    start = time.monotonic()
    with pytest.raises(TransportError, match="E403"):
        next(messages)
    assert 0.35 < time.monotonic() - start < 1.2


def test_failing_reads_to_the_end_first(pair):
    link, ours = pair
    ours.sendall(MESSAGES[0])
    messages = link.ahead(ByteBudget())
    next(messages)
    feeder = threading.Thread(target=lambda: ours.sendall(b"".join(MESSAGES[1:]) + CLOSE))
    feeder.start()
    link.fail("E999 no")
    feeder.join(5)
    assert link.ended
    assert ours.recv(100) == struct.pack("<HQ", 8, 7) + b"E999 no"


def test_cancelling_does_not_wait_for_a_silent_sender(pair):
    link, ours = pair
    ours.sendall(MESSAGES[0])
    next(link.ahead(ByteBudget()))
    start = time.monotonic()
    link.fail("E412", quiet_s=0.1, most_s=0.3)
    assert time.monotonic() - start < 1.5
    assert b"E412" in ours.recv(100)


def test_a_scanner_is_not_held_up_by_the_sampler(monkeypatch):
    """All slices get sent while the first is still being reconstructed."""
    sent = threading.Event()

    def slow(*args, **kwargs):
        assert sent.wait(20)
        return reconstruct(*args, **kwargs)

    monkeypatch.setattr(gadget.target, "resolve_core", lambda: core(reconstruct=slow))
    scan = Scan(nx=256, ny=128, n_coils=8, n_slices=4)
    parts = stream(scan.header(), scan.acquisitions())
    assert sum(map(len, parts)) > 8e6  # no socket buffer is that large
    from gadget.service.server import Server

    server = Server("127.0.0.1", 0)
    service = threading.Thread(target=server.run)
    service.start()

    def parts_then_tell():
        yield from parts
        sent.set()

    outcome = run_client(server.addresses[0], parts_then_tell())
    server.stop()
    service.join(10)
    assert outcome.errors == []
    assert len(outcome.images) == 8


def test_texts_count_as_read(pair):
    link, ours = pair
    ours.sendall(text_message(5, b"x" * 100) + MESSAGES[0] + CLOSE)
    assert list(link.ahead(ByteBudget())) == ITEMS[:1]
    assert link.socket.n_read == 106 + len(MESSAGES[0]) + 2
