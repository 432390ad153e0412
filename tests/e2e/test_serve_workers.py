"""`pogmdm serve --workers 2` behind workers of a Gadgetron, each slice of a scan on a connection of its own."""

import contextlib
import os
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest
from helpers.mrd_factory import Scan
from helpers.peer import run_client, stream
from helpers.service import Service

pytestmark = pytest.mark.e2e

# What the serialiser of Gadgetron's <distributed> leaves of a <configuration>, as a real server sent it.
EMPTY = b'<?xml version="1.0"?>\n'
SETTINGS = ["sampler.n_samples=2", "sampler.n_steps=4", "map.steps=5", "uncertainty.method=samples"]
SETTINGS += ["device=cpu", "noise.whiten=upstream"]
# noise as a NoiseAdjustGadget leaves it: variance 2 x .793 per complex sample
SCAN = Scan(acceleration=2, n_slices=6, noise_scan=False, scale=1.26 / 0.01)


def of_slice(number):
    """The readouts that AcquisitionDistributor sends to the connection of a slice."""
    return [acq for acq in SCAN.acquisitions() if acq.idx.slice == number]


def arguments(*settings):
    return [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def service():
    one = Service("--workers", "2", "--preset", "fast", *arguments())
    yield one
    status, seconds = one.end(signal.SIGTERM)
    assert status == 0, one.log
    assert seconds < 3
    assert "ResourceWarning" not in "".join(one.log)


def played(service, slices, timeout=30):
    """Outcome by slice; all connections are opened at once, as that distributor does."""
    outcomes = {}

    def play(number):
        outcomes[number] = run_client(service.address, stream(SCAN.header(), of_slice(number), EMPTY), timeout=timeout)

    clients = [threading.Thread(target=play, args=(number,)) for number in slices]
    for client in clients:
        client.start()
    for client in clients:
        client.join(timeout)
    return outcomes


def processes(service):
    return [int(number) for number in re.findall(r"worker \d is ready: process (\d+)", "".join(service.log))]


def test_two_workers_make_six_slices(service):
    outcomes = played(service, range(6))
    for number in range(6):
        outcome = outcomes[number]
        assert outcome.errors == []
        assert [i.image_series_index for i in outcome.images] == [1, 10]
        for image in outcome.images:
            assert (image.slice, image.image_index) == (number, number + 1)
            assert image.meta["POGMDM_NoiseWhitened"] == "upstream"
            assert image.meta["POGMDM_NSteps"] == "4"
    # as the whole scan on one connection has it
    whole = run_client(service.address, stream(SCAN.header(), SCAN.acquisitions(), EMPTY))
    assert [i.image_index for i in whole.series(1)] == [1, 2, 3, 4, 5, 6]
    for image in whole.series(1):
        np.testing.assert_array_equal(image.data, outcomes[image.slice].series(1)[0].data)


@pytest.mark.fault("F53")
def test_a_worker_that_is_killed_costs_its_slice_only():
    service = Service("--workers", "2", "--preset", "fast", *arguments("sampler.n_steps=30", "sampler.n_samples=8"))
    before = processes(service)
    outcomes = {}
    player = threading.Thread(target=lambda: outcomes.update(played(service, range(6))))
    player.start()
    service.wait_for("slice 0: 4 channels")
    time.sleep(0.1)
    os.kill(before[0], signal.SIGKILL)
    player.join(40)
    lost = [number for number, outcome in outcomes.items() if outcome.errors]
    try:
        assert len(outcomes) == 6 and len(lost) == 1
        (text,) = outcomes[lost[0]].errors
        assert text.startswith(f"E513 slice {lost[0]}: the worker process that reconstructed it ended (SIGKILL)")
        assert outcomes[lost[0]].closed
        for number in set(range(6)) - set(lost):
            assert [i.image_series_index for i in outcomes[number].images] == [1, 10]
        service.wait_for("worker 0 is ready", begun=service.log.index(next(t for t in service.log if "E513" in t)))
        assert len(processes(service)) == 3
    finally:
        status, seconds = service.end(signal.SIGTERM)
    assert status == 0, service.log
    assert seconds < 3


@pytest.mark.fault("F53")
def test_a_worker_that_died_idle_costs_nothing():
    service = Service("--workers", "2", "--preset", "fast", *arguments())
    try:
        for number in processes(service):
            os.kill(number, signal.SIGKILL)
        time.sleep(0.3)
        outcomes = played(service, range(3))
        assert [outcomes[number].errors for number in range(3)] == [[]] * 3
        assert len(processes(service)) == 4
    finally:
        status, _ = service.end(signal.SIGTERM)
    assert status == 0, service.log


@pytest.mark.fault("F17")
def test_sigterm_cancels_all_workers_and_tells_their_clients():
    service = Service("--workers", "2", "--preset", "fast", *arguments("sampler.n_steps=5000", "sampler.n_samples=64"))
    outcomes = {}
    player = threading.Thread(target=lambda: outcomes.update(played(service, range(2))))
    player.start()
    service.wait_for("slice 0: 4 channels")
    service.wait_for("slice 1: 4 channels")
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(service.address)) for _ in range(12)]
        time.sleep(0.5)
        status, seconds = service.end(signal.SIGTERM)
        for one in waiting:
            one.settimeout(5)
            assert b"E412" in one.recv(1000)
    player.join(20)
    assert status == 0, service.log
    assert seconds < 3
    assert [outcomes[number].errors for number in range(2)] == [["E412 cancelled (SIGTERM)."]] * 2


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--preset", "none"], "E104"),
        (["--set", "sampler.n_sampels=3"], "E101"),
        (["--set", "prior=nowhere", "--workers", "2"], "E512 worker 0 did not start (exit status"),
        (["--settings", "nowhere.yaml"], "E107"),
    ],
)
def test_wrong_defaults_show_at_once(wrong, text, capfd):
    from gadget.cli import main

    assert main(["serve", "--port", "0", *wrong]) in (2, 5)
    assert text in capfd.readouterr().err
