import contextlib
import logging
import socket
import struct
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from helpers.fake_core import core, load_prior, reconstruct
from helpers.mrd_factory import CANARY, Scan
from helpers.peer import (
    CONFIG,
    CONFIG_FILE,
    HEADER,
    TEXT,
    configuration,
    fire_stream,
    item_message,
    run_client,
    stream,
    text_message,
)

import gadget.service.client
import gadget.service.handshake
import gadget.service.server
import gadget.target
from gadget.errors import ConfigError, TransportError
from gadget.service.handshake import MAX_TEXT_BYTES, ServedConnection, named_configuration, read_parameters
from gadget.service.server import Server, listen

SCAN = Scan(acceleration=2)
FIRST = item_message(SCAN.acquisitions()[0])


@pytest.fixture
def serve(monkeypatch):
    """Run services in threads, with another reconstruction behind the door."""
    running = []

    def start(host="127.0.0.1", n_waiting=1, **replaced):
        monkeypatch.setattr(gadget.target, "resolve_core", lambda: core(**replaced))
        server = Server(host, 0, n_waiting)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return server.addresses[0]

    yield start
    for server, thread in running:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
    logging.getLogger("pogmdm").setLevel(logging.NOTSET)


def good(outcome):
    assert (outcome.errors, outcome.texts) == ([], [])
    assert [i.image_series_index for i in outcome.images] == [1, 10]
    assert outcome.closed
    return outcome


def any_prior(_name):
    return load_prior()


def told(outcome):
    """The one error of a scan, by whichever dialect."""
    assert len(outcome.errors) + len(outcome.texts) == 1
    assert outcome.closed
    text = (outcome.errors + outcome.texts)[0]
    assert CANARY not in text
    return text


def test_both_dialects_one_after_the_other_get_the_same_images(serve):
    address = serve()
    config = {"preset": "fast", "sampler.n_samples": 2, "output.maps": "image,std"}
    by_gadgetron = good(run_client(address, stream(SCAN.header(), SCAN.acquisitions(), configuration(**config))))
    by_fire = good(run_client(address, fire_stream(SCAN.header(), SCAN.acquisitions(), parameters=config)))
    for a, b in zip(by_gadgetron.images, by_fire.images, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.meta["POGMDM_NSamples"] == b.meta["POGMDM_NSamples"] == "2"


@pytest.mark.parametrize("name", ["openrecon", "fast", "pogmdm_standalone", "pogmdm_standalone.xml"])
def test_configurations_by_name(serve, name):
    good(run_client(serve(), fire_stream(SCAN.header(), SCAN.acquisitions(), name)))


def test_the_preset_of_a_name_arrives(serve):
    outcome = good(run_client(serve(load_prior=any_prior), fire_stream(SCAN.header(), SCAN.acquisitions(), "paper")))
    assert outcome.images[0].meta["POGMDM_NSteps"] == "250"


@pytest.mark.fault("F59")
@pytest.mark.parametrize("name", ["os", "../presets/fast", "/etc/passwd", "", "gadget.cli", "é" * 400])
def test_other_names_are_refused_with_a_text(serve, name):
    outcome = run_client(serve(), fire_stream(SCAN.header(), SCAN.acquisitions(), name))
    assert outcome.order == [5, 4]
    assert outcome.texts[0].startswith("ERR E112 there is no configuration")
    assert outcome.texts[0].endswith("\0")


def test_nothing_is_imported_for_a_name():
    with pytest.raises(ConfigError, match="E112"):
        named_configuration("antigravity")
    assert "antigravity" not in sys.modules


def test_configuration_text_with_a_nul_is_fire(serve):
    parts = stream(SCAN.header(), SCAN.acquisitions(), configuration(sampler__n_sampels=1) + b"\0")
    outcome = run_client(serve(), parts)
    assert outcome.order == [5, 4]
    assert "did you mean 'sampler.n_samples'" in outcome.texts[0]


def test_a_whole_chain_may_be_sent(serve):
    chain = (
        b"<?xml version='1.0'?><configuration><version>2</version><stream><external><connect port='1'/>"
        + configuration(preset="paper")
        + b"</external></stream></configuration>"
    )
    outcome = good(run_client(serve(load_prior=any_prior), stream(SCAN.header(), SCAN.acquisitions(), chain)))
    assert outcome.images[0].meta["POGMDM_NSteps"] == "250"


@pytest.mark.fault("F06")
def test_texts_before_and_among_the_data(serve, caplog):
    caplog.set_level(logging.DEBUG)
    parts = fire_stream(SCAN.header(), SCAN.acquisitions(), parameters={"output.maps": "mean", "device": ""})
    parts.insert(2, text_message(TEXT, CANARY.encode() + b"\0"))
    parts.insert(9, text_message(TEXT, CANARY.encode() + b"\0"))
    outcome = run_client(serve(), parts)
    assert [i.image_series_index for i in outcome.images] == [2]
    assert CANARY not in caplog.text


@pytest.mark.parametrize("text", [b"\0", b"[]", b"{", b'{"parameters": 3}', b'{"version": 1}', b"[" * 100_000, b"\xff"])
def test_texts_without_parameters_are_skipped(text):
    assert read_parameters(text) == {}


@pytest.mark.parametrize("named", [{"settings": "/etc/passwd"}, {"prior": "/etc/passwd"}])
def test_parameters_name_no_files(serve, monkeypatch, named):
    address = serve()
    assert "E113" in told(run_client(address, fire_stream(SCAN.header(), [], parameters=named)))
    monkeypatch.setattr(ServedConnection, "_is_local", lambda _: False)
    assert "E113" in told(run_client(address, stream(SCAN.header(), [], configuration(**named))))


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        pytest.param([text_message(HEADER, SCAN.header())], "E406 a message of id 3", marks=pytest.mark.fault("F08")),
        pytest.param([struct.pack("<H", 4)], "E406 the scan ended", marks=pytest.mark.fault("F08")),
        pytest.param([text_message(CONFIG, b""), FIRST], "E406 a message of id 1008", marks=pytest.mark.fault("F08")),
        ([struct.pack("<HI", CONFIG, MAX_TEXT_BYTES + 1)], "E302 the configuration has 8388609 bytes"),
        ([text_message(CONFIG, b""), struct.pack("<HI", HEADER, 2**32 - 1)], "E302 the header"),
        ([text_message(CONFIG, b"<a")], "E108"),
        ([text_message(CONFIG, b"<!DOCTYPE a [<!ENTITY b 'c'>]><configuration/>")], "E108"),
        ([text_message(CONFIG, b""), text_message(HEADER, CANARY.encode())], "E201"),
        ([struct.pack("<H", CONFIG_FILE), b"x" * 100], "E402"),
        ([text_message(CONFIG, b"")], "E401"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "E406"),
        ([], "E401"),
    ],
)
def test_bad_clients_are_told_and_the_next_is_served(serve, parts, text):
    address = serve()
    assert text in told(run_client(address, parts, hang_up=True))
    good(run_client(address, stream(SCAN.header(), SCAN.acquisitions())))


def test_a_client_that_trickles_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(gadget.service.client, "ServedConnection", partial(ServedConnection, timeout_s=0.5))
    address = serve()
    with socket.create_connection(address) as sock, contextlib.suppress(OSError):
        start = time.monotonic()
        while time.monotonic() - start < 1.0:
            sock.sendall(b"\x02")
            time.sleep(0.05)
    good(run_client(address, stream(SCAN.header(), SCAN.acquisitions())))
    assert time.monotonic() - start < 10


@pytest.mark.fault("F03")
def test_the_time_of_an_introduction_is_exact():
    """A byte shortly before its end buys no second time-out."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        late = threading.Timer(0.8, ours.sendall, [b"\x02"])
        late.start()
        start = time.monotonic()
        with pytest.raises(TransportError, match="E403 the sender is too slow"):
            ServedConnection(theirs, timeout_s=1.0).introduction()
        assert 0.95 < time.monotonic() - start < 1.7
        late.join()


def test_no_state_goes_from_one_scan_to_the_next(serve):
    address = serve()
    plain = good(run_client(address, stream(SCAN.header(), SCAN.acquisitions())))
    other = Scan(nx=32, ny=32, n_coils=3, seed=5)
    run_client(address, fire_stream(other.header(), other.acquisitions(), "paper", {"log": "error"}))
    run_client(address, stream(SCAN.header(), SCAN.acquisitions()[:9], close=False), hang_up=True)
    again = good(run_client(address, stream(SCAN.header(), SCAN.acquisitions())))
    for a, b in zip(plain.images, again.images, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.meta["POGMDM_NSteps"] == b.meta["POGMDM_NSteps"]


@pytest.mark.fault("F14")
def test_others_wait_or_are_refused(serve):
    going, go_on = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        going.set()
        assert go_on.wait(20)
        return reconstruct(*args, **kwargs)

    address = serve(n_waiting=1, reconstruct=slow)
    outcomes = {}

    def client(name, scan):
        outcomes[name] = run_client(address, stream(scan.header(), scan.acquisitions()))

    scans = {"first": SCAN, "second": Scan(acceleration=2, seed=9, scale=3.0)}
    clients = [threading.Thread(target=client, args=("first", scans["first"]))]
    clients[0].start()
    assert going.wait(20)
    clients.append(threading.Thread(target=client, args=("second", scans["second"])))
    clients[1].start()
    time.sleep(0.2)
    refused = run_client(address, stream(SCAN.header(), SCAN.acquisitions()))
    assert told(refused).startswith("E411 busy")
    by_fire = run_client(address, fire_stream(SCAN.header(), SCAN.acquisitions()))
    assert by_fire.texts[0].startswith("ERR E411 busy")
    go_on.set()
    for thread in clients:
        thread.join(20)
    for name, scan in scans.items():
        alone = run_client(address, stream(scan.header(), scan.acquisitions()))
        for a, b in zip(good(outcomes[name]).images, alone.images, strict=True):
            np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.fault("F18")
def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=f"E408 cannot listen on 127.0.0.1 port {port}.*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(TransportError, match="E408"):
        listen("192.0.2.1", 0)
    with pytest.raises(TransportError, match="E408"):
        listen("no.such.host.invalid", 0)


@pytest.mark.fault("F18")
def test_only_this_machine_may_connect_unless_told(monkeypatch):
    from gadget import cli

    told = {}
    monkeypatch.setattr("gadget.service.serve.serve_command", lambda host, port, *_: told.update(host=host, port=port))
    assert cli.main(["serve"]) == 0
    assert told == {"host": "127.0.0.1", "port": 18000}


@pytest.mark.fault("F18")
def test_dual_stack_falls_back_to_ipv4(serve, monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    host, port = serve("::")
    assert host == "0.0.0.0"  # noqa: S104 - that is what it must be
    good(run_client(("127.0.0.1", port), stream(SCAN.header(), SCAN.acquisitions())))


@pytest.mark.fault("F18")
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_dual_stack_serves_both(serve):
    _, port = serve("::")
    good(run_client(("127.0.0.1", port), stream(SCAN.header(), SCAN.acquisitions())))
    good(run_client(("::1", port), stream(SCAN.header(), SCAN.acquisitions())))


@pytest.mark.fault("F03")
def test_a_fire_scanner_may_prepare_longer_than_it_introduces_itself(serve, monkeypatch):
    monkeypatch.setattr(gadget.service.client, "ServedConnection", partial(ServedConnection, timeout_s=0.5))

    def parts():
        whole = fire_stream(SCAN.header(), SCAN.acquisitions())
        yield from whole[:2]
        time.sleep(1.0)
        yield from whole[2:]

    good(run_client(serve(), parts()))


def test_without_descriptors_the_service_waits_for_some(serve, monkeypatch, caplog):
    address = serve()
    real, failures = socket.socket.accept, iter([OSError(24, "Too many open files")] * 2)

    def accept(self):
        if (failure := next(failures, None)) is not None:
            raise failure
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    good(run_client(address, stream(SCAN.header(), SCAN.acquisitions())))
    assert caplog.text.count("Too many open files") == 2
