import contextlib
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

import ismrmrd
import numpy as np
import pytest
from gadgetron.external.connection import Connection
from helpers.mrd_factory import Scan
from helpers.peer import ERROR, TEXT, item_message, run_in_process, stream, text_message

import gadget.stream.link
from gadget.errors import DataError, PogmdmError, TransportError
from gadget.service.handshake import ServedConnection
from gadget.stream.budget import ByteBudget
from gadget.stream.link import Link, RawMessage
from gadget.stream.wire import ExactSocket

SCAN = Scan(nx=16, ny=16, n_coils=2)
FIRST = item_message(SCAN.acquisitions()[0])


def read_all(parts, hang_up=True, limits=None, **kwargs):
    """Items a Link reads, what it raised, and the outcome at the peer."""
    seen, links = [], []

    def target(connection):
        link = Link(connection, **kwargs)
        links.append(link)
        if limits:
            link.configure(**limits)
        try:
            for item in link.messages():
                seen.append(item)
                if isinstance(item, RawMessage):
                    link.send(item)
        except PogmdmError as error:
            link.fail(str(error), quiet_s=0.2)
            raise

    outcome = run_in_process(parts, target, hang_up=hang_up)
    return seen, outcome, links[0]


def handshake():
    return stream(SCAN.header(), [], close=False)


def introduced_pair():
    """Two ends of a connection on which the handshake is sent."""
    ours, theirs = socket.socketpair()
    for part in handshake():
        ours.sendall(part)
    return ours, theirs


def test_acquisitions_arrive_as_sent():
    sent = SCAN.acquisitions()
    traj = np.arange(64, dtype=np.float32).reshape(32, 2)
    head = sent[3].getHead()
    head.trajectory_dimensions = 2
    sent[3] = ismrmrd.Acquisition(head, data=sent[3].data, trajectory=traj)
    seen, outcome, link = read_all(stream(SCAN.header(), sent), hang_up=False)
    assert seen == sent
    assert outcome.raised is None
    assert outcome.closed
    assert link.ended


def test_images_pass_unchanged_whatever_their_type():
    images = [
        ismrmrd.Image.from_array(np.arange(12, dtype=t).reshape(3, 4), transpose=False, image_series_index=i)
        for i, t in enumerate(["uint16", "float32", "complex64"])
    ]
    for image in images:
        image.meta = {"name": "é<&>"}
    # 4-byte integers: ismrmrd itself reads and writes 8 bytes per pixel
    integer = bytearray(item_message(images[1]))
    integer[4:6] = struct.pack("<H", 4)
    parts = stream(SCAN.header(), [*images, bytes(integer)])
    seen, _, _ = read_all(parts[:-2] + parts[-1:], hang_up=False)
    assert [item.data for item in seen] == [item_message(i) for i in images]
    seen = []

    def target(connection):
        seen.extend(item.data for item in Link(connection).messages())

    run_in_process(parts, target)
    assert seen[-1] == bytes(integer)


def test_waveforms_pass_where_they_are_wanted():
    waveform = ismrmrd.Waveform.from_array(np.arange(100, dtype=np.uint32).reshape(2, 50))
    limits = {"max_message_bytes": 1 << 20, "idle_timeout_s": 5.0, "pass_waveforms": True}
    seen, _, _ = read_all(stream(SCAN.header(), [waveform, SCAN.acquisitions()[0]]), hang_up=False, limits=limits)
    assert seen[0].data == item_message(waveform)
    assert not seen[0].is_image


@pytest.mark.fault("F06")
def test_waveforms_and_texts_are_dropped():
    waveform = ismrmrd.Waveform.from_array(np.zeros((2, 50), np.uint32))
    parts = stream(SCAN.header(), [waveform, text_message(TEXT, b"hello"), SCAN.acquisitions()[0]])
    seen, outcome, link = read_all(parts, hang_up=False)
    assert len(seen) == 1
    assert link.n_waveforms == 1
    assert outcome.order == [4]


@pytest.mark.fault("F01", "F02")
@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (b"", "E401 the stream ended without CLOSE"),
        (b"\xf0", "E402 .*got 1 of 2 bytes"),
        (struct.pack("<H", 1008), "E402 .*got 0 of 340 bytes"),
        (item_message(SCAN.acquisitions()[1])[:102], "E402 .*got 100 of 340 bytes"),
        (item_message(SCAN.acquisitions()[1])[:-3], "E402 .*got 509 of 512 bytes"),
    ],
)
def test_end_of_stream_is_told_at_once(tail, text):
    start, cpu = time.monotonic(), time.process_time()
    _, outcome, _ = read_all([*handshake(), item_message(SCAN.acquisitions()[0]), tail])
    assert time.monotonic() - start < 1
    assert time.process_time() - cpu < 0.5
    with pytest.raises(TransportError, match=text):
        raise outcome.raised
    assert outcome.errors == [str(outcome.raised)]  # a peer that half-closed can still be told
    assert outcome.closed


@pytest.mark.fault("F03")
def test_silence_ends_the_scan():
    start = time.monotonic()
    _, outcome, _ = read_all(handshake(), hang_up=False, idle_timeout_s=0.3)
    assert 0.3 <= time.monotonic() - start < 2
    assert "E403 nothing was received for 0.3 s" in outcome.errors[0]


@pytest.mark.fault("F04")
def test_slow_but_steady_is_no_silence():
    message = item_message(SCAN.acquisitions()[0])[:345]
    parts = [*handshake(), *[bytes([b]) for b in message[:6]]]
    ours, theirs = socket.socketpair()

    def feed():
        for part in parts:
            ours.sendall(part)
            time.sleep(0.1)
        ours.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    with Connection(theirs) as connection, pytest.raises(TransportError, match="E402"):
        list(Link(connection, idle_timeout_s=0.4).messages())
    feeder.join()


@pytest.mark.fault("F05")
@pytest.mark.parametrize("mid", [0, 7777, 1024, 1050])
def test_unknown_messages_end_the_scan(mid):
    first = SCAN.acquisitions()[0]
    _, outcome, _ = read_all([*handshake(), item_message(first), struct.pack("<H", mid), b"x" * 50])
    with pytest.raises(TransportError, match=f"E404 message 1 of the stream has the unknown id {mid}"):
        raise outcome.raised


@pytest.mark.fault("F07")
def test_error_of_the_sender_ends_the_scan():
    _, outcome, _ = read_all([*handshake(), struct.pack("<HQ", ERROR, 3) + b"abc"])
    assert outcome.errors[0].startswith("E405 no acquisitions")
    first = item_message(SCAN.acquisitions()[0])
    _, outcome, _ = read_all([*handshake(), first, struct.pack("<HQ", ERROR, 3) + b"abc"])
    assert outcome.errors[0].startswith("E414")


def lie(**fields):
    head = ismrmrd.AcquisitionHeader()
    for name, value in fields.items():
        setattr(head, name, value)
    return struct.pack("<H", 1008) + bytes(head)


@pytest.mark.fault("F12")
@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            lie(number_of_samples=65535, active_channels=65535),
            "number of channels 65535 exceeds 1024",
        ),
        (lie(number_of_samples=65535, active_channels=256, trajectory_dimensions=65535), "limits.max_message_bytes"),
        (struct.pack("<HI", TEXT, 2**32 - 1), "limits.max_message_bytes"),
        (struct.pack("<HQ", ERROR, 2**60), "limits.max_message_bytes"),
    ],
)
def test_announced_sizes_are_checked_before_memory_is_taken(message, text):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = {"max_message_bytes": 1 << 20, "idle_timeout_s": 5.0}
    _, outcome, _ = read_all([*handshake(), message], limits=limits)
    with pytest.raises(DataError, match=f"E302 .*{text}"):
        raise outcome.raised
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB


@pytest.mark.fault("F13")
def test_images_of_impossible_size_are_refused():
    head = ismrmrd.ImageHeader()
    head.matrix_size[:], head.channels, head.data_type = [65535] * 3, 65535, 8
    for attributes in (0, 2**40):
        message = struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", attributes)
        _, outcome, _ = read_all([*handshake(), message])
        assert "E302" in outcome.errors[0]


@pytest.mark.fault("F16")
def test_error_comes_after_what_the_peer_still_sends():
    """The peer writes everything before it reads; a gadget that does not drain would leave it stuck or reset it."""
    big = Scan(nx=256, ny=200, n_coils=8)
    parts = stream(big.header(), big.acquisitions())
    assert sum(map(len, parts)) > 5_000_000
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    got = []

    def peer():
        for part in parts:
            ours.sendall(part)
        while chunk := ours.recv(1 << 16):
            got.append(chunk)

    thread = threading.Thread(target=peer)
    thread.start()
    with Connection(theirs) as connection:
        link = Link(connection)
        next(link.messages())
        link.fail("E999 no")
        assert link.ended
    thread.join(10)
    ours.close()
    assert b"".join(got) == struct.pack("<HQ", ERROR, 7) + b"E999 no" + struct.pack("<H", 4)


@pytest.mark.fault("F16")
@pytest.mark.parametrize("state", ["messages", "ahead", "lost"])
def test_a_sender_that_never_ends_is_told_all_the_same(link, monkeypatch, state):
    monkeypatch.setattr(gadget.stream.link, "_DRAIN_S", 0.5)
    link.configure(1 << 20, 60.0)
    items = link.ahead(ByteBudget()) if state == "ahead" else link.messages()

    def feed():
        with contextlib.suppress(OSError):
            while True:
                link.peer.sendall(FIRST)

    feeder = threading.Thread(target=feed)
    feeder.start()
    next(items)
    link.lost = state == "lost"
    start = time.monotonic()
    link.fail("E999 no")
    assert 0.4 < time.monotonic() - start < 3
    link.connection.socket.close()
    feeder.join(10)
    assert link.peer.recv(100) == struct.pack("<HQ", ERROR, 7) + b"E999 no" + struct.pack("<H", 4)


@pytest.mark.fault("F15")
def test_a_receiver_that_takes_nothing_is_given_up():
    ours, theirs = introduced_pair()
    with Connection(theirs) as connection:
        link = Link(connection, idle_timeout_s=0.3)
        with pytest.raises(TransportError, match="E407"):
            link.send(RawMessage(b"x" * 10_000_000))
        # the message went out in part: neither ERROR nor CLOSE may be read as the rest of its pixels
        link.fail("E407", quiet_s=0.1)
    received = bytearray()
    while chunk := ours.recv(1 << 20):
        received += chunk
    ours.close()
    assert set(received) == {ord("x")}


def test_a_receiver_that_is_gone_is_told_apart():
    ours, theirs = introduced_pair()
    with Connection(theirs) as connection:
        link = Link(connection, idle_timeout_s=0.3)
        ours.close()
        with pytest.raises(TransportError, match="E409"):
            link.send(RawMessage(b"x" * 10_000_000))


@pytest.fixture(params=["tcp", "unix"])
def ends(request):
    """Both ends of a connection."""
    if request.param == "unix":
        pair = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            pair = socket.create_connection(server.getsockname()), server.accept()[0]
    yield pair
    for one in pair:
        one.close()


def test_a_peer_that_says_no_more_is_not_gone(ends):
    ours, theirs = ends
    source = ExactSocket(theirs, 1.0)
    assert not source.gone()
    ours.sendall(b"data")
    ours.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    assert not source.gone()
    assert source.read(4) == b"data"
    with pytest.raises(TransportError, match="E401"):
        source.read(2, first=True)
    assert not source.gone()


@pytest.mark.fault("F17")
@pytest.mark.parametrize("read_first", [False, True])
def test_a_peer_that_resets_is_gone_for_good(ends, read_first):
    ours, theirs = ends
    source = ExactSocket(theirs, 1.0)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    time.sleep(0.05)
    if read_first:  # a thread that reads on takes the error from the socket
        with pytest.raises(TransportError, match="E401"):
            source.read(2, first=True)
    assert source.gone()
    assert source.gone()


def test_an_image_is_one_write():
    class Recorder:
        def __init__(self):
            self.writes = []

        def write(self, data):
            self.writes.append(bytes(data))

    ours, theirs = introduced_pair()
    image = ismrmrd.Image.from_array(np.ones((3, 4), np.float32), transpose=False)
    with Connection(theirs) as connection:
        link = Link(connection)
        recorder, real = Recorder(), link.socket
        link.socket = recorder
        link.send(image)
        link.socket = real
    assert recorder.writes == [item_message(image)]
    ours.close()


def test_importing_the_entry_does_not_bring_torch():
    code = (
        "import sys, gadget; t = __import__('gadget', fromlist=['pogmdm_recon']).pogmdm_recon;"
        "import gadget.stream.link;"
        "assert callable(t); assert 'torch' not in sys.modules, 'torch'; assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.fault("F04")
def test_a_message_that_takes_far_longer_than_the_timeout_arrives():
    message = item_message(Scan(nx=16, ny=16, n_coils=1, oversampling=1, noise_scan=False).acquisitions()[0])
    ours, theirs = socket.socketpair()

    def feed():
        for part in handshake():
            ours.sendall(part)
        for start in range(0, len(message), 12):  # 40 pieces
            ours.sendall(message[start : start + 12])
            time.sleep(0.05)
        ours.sendall(struct.pack("<H", 4))

    feeder = threading.Thread(target=feed)
    feeder.start()
    start, cpu = time.monotonic(), time.thread_time()
    with Connection(theirs) as connection:
        (item,) = Link(connection, idle_timeout_s=0.5).messages()
    assert time.monotonic() - start > 3 * 0.5
    assert time.thread_time() - cpu < 0.05 * (time.monotonic() - start)
    feeder.join()
    ours.close()
    assert item_message(item) == message


def trickle(link, message, every_s):
    """Let a peer send a message byte by byte; what the link raises, and after how long."""
    ours = link.peer
    stop = threading.Event()

    def feed():
        for byte in message:
            if stop.wait(every_s):
                return
            ours.sendall(bytes([byte]))

    feeder = threading.Thread(target=feed)
    feeder.start()
    start = time.monotonic()
    try:
        with pytest.raises(TransportError) as raised:
            list(link.messages())
        return str(raised.value), time.monotonic() - start
    finally:
        stop.set()
        feeder.join()


@pytest.fixture
def link():
    """A link whose idle time-out is a second, with its peer's socket."""
    ours, theirs = socket.socketpair()
    made = Link(ServedConnection(theirs, 1.0))
    made.peer = ours
    yield made
    ours.close()
    theirs.close()


@pytest.mark.fault("F04")
def test_a_message_that_dribbles_is_given_up(link):
    """Four bytes a second are never silent for the time-out, and never get anywhere."""
    text, seconds = trickle(link, FIRST[:50], 0.25)
    assert text.startswith("E403 the sender is too slow")
    assert 1.2 < seconds < 5


@pytest.mark.fault("F04")
def test_a_byte_every_50_ms_is_fast_enough(link):
    text, seconds = trickle(link, FIRST[:40], 0.05)
    assert text.startswith("E403 nothing was received")  # after the last byte
    assert seconds > 40 * 0.05


@pytest.mark.fault("F04")
def test_time_in_which_nobody_waits_is_not_the_senders(link):
    """As while the sampler works: half a message that comes meanwhile is not too slow."""
    messages = link.ahead(ByteBudget())
    link.peer.sendall(FIRST)
    next(messages)
    link.peer.sendall(FIRST[:5])
    time.sleep(2.0)
    link.peer.sendall(FIRST[5:])
    assert next(messages) == SCAN.acquisitions()[0]
    link.fail("E999", quiet_s=0.1, most_s=0.1)


@pytest.mark.fault("F03")
def test_waiting_costs_no_cpu():
    ours, theirs = introduced_pair()
    with Connection(theirs) as connection:
        link = Link(connection, idle_timeout_s=1.0)
        cpu = time.thread_time()
        with pytest.raises(TransportError, match="E403"):
            list(link.messages())
        assert time.thread_time() - cpu < 0.05
    ours.close()


def closing_pair():
    """Two ends of a TCP connection; a socket pair knows no reset."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        raw, _ = server.accept()
    return ExactSocket(raw, 5.0), theirs


def gone_within(source, next_byte, seconds=2.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if source.gone(next_byte):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.fault("F17")
def test_a_peer_that_closes_is_gone_and_one_that_sends_no_more_is_not():
    ours, theirs = closing_pair()
    assert not ours.gone(b"\xfe")
    theirs.shutdown(socket.SHUT_WR)
    assert not gone_within(ours, b"\xfe", 0.2)
    # the byte that told is the first of the message that follows
    ours.write(b"\xfe\x03 image")
    assert not gone_within(ours, b"\xfe", 0.1)
    ours.write(b"\xfe\x03 other")
    ours.close()
    with theirs:
        received = b""
        while part := theirs.recv(100):
            received += part
    assert received == b"\xfe\x03 image\xfe\x03 other" + struct.pack("<H", 4)

    ours, theirs = closing_pair()
    theirs.close()
    assert not ours.gone()  # nothing is tried
    assert gone_within(ours, b"\xfe")
    ours.close()


@pytest.mark.fault("F17")
def test_no_other_message_follows_the_first_byte_of_an_image():
    ours, theirs = closing_pair()
    theirs.shutdown(socket.SHUT_WR)
    assert not gone_within(ours, b"\xfe", 0.1)
    assert ours.is_mid_message
    with pytest.raises(TransportError, match="E409"):
        ours.write(b"\x08\x00 error")
    ours.close()
    with theirs:
        assert theirs.recv(100) == b"\xfe"


@pytest.mark.fault("F17")
def test_nothing_follows_a_message_that_was_interrupted():
    """A signal may come while half of an image is out: what follows would be read as its rest."""

    class Interrupted(BaseException):
        pass

    ours, theirs = closing_pair()

    class Interrupting:
        def sendall(self, data):
            raw.sendall(data[:3])
            raise Interrupted

    raw, ours.socket = ours.socket, Interrupting()
    with pytest.raises(Interrupted):
        ours.write(b"\xfe\x03 image")
    ours.socket = raw
    assert ours.is_mid_message
    with pytest.raises(TransportError, match="E409"):
        ours.write(b"\x08\x00 error")
    ours.close()
    with theirs:
        assert theirs.recv(100) == b"\xfe\x03 "
