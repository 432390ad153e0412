import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers.fake_core import core, reconstruct
from helpers.frames import prepared_of
from helpers.mrd_factory import Scan

from gadget.compute import Deadline, compute
from gadget.errors import ComputeError, TransportError
from gadget.settings.load import load
from pogmdm_core import SamplerStatus


def run(replaced, n_coils=16, **settings):
    prepared = prepared_of(Scan(n_coils=n_coils))
    config = load(properties={"sampler.n_samples": "3", **settings})
    return compute(core(reconstruct=replaced), prepared.frame, None, config, prepared.key, None)


class Failing:
    """Raises in the first calls, and remembers what each was asked."""

    def __init__(self, error, times):
        self.error, self.times, self.asked = error, times, []

    def __call__(self, frame, prior, settings, **hooks):
        self.asked.append((settings.sampler.batch, frame.n_coils, settings.device))
        if len(self.asked) <= self.times:
            raise self.error
        return reconstruct(frame, prior, settings)


OUT_OF_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory")
STEPS = [(0, 16, "auto"), (1, 16, "auto"), (1, 8, "auto"), (1, 8, "cpu")]
NAMES = ("SMALLER_BATCH", "FEWER_CHANNELS", "ON_CPU")


@pytest.fixture
def gpu(monkeypatch):
    """A graphics card as far as the ladder can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.fault("F49")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_out_of_memory_goes_down_the_ladder(times, gpu, caplog):
    failing = Failing(OUT_OF_MEMORY, times)
    result = run(failing)
    assert failing.asked == STEPS[: times + 1]
    assert result.warnings == NAMES[:times]
    assert [record.message for record in caplog.records if "out of memory; trying again" in record.message] == [
        f"slice 0: out of memory; trying again: {name}" for name in NAMES[:times]
    ]


@pytest.mark.fault("F49")
def test_fewer_channels_begin_with_a_start_of_their_own(gpu):
    given = []

    def failing(frame, prior, settings, start, **hooks):
        given.append(start)
        if len(given) < 4:
            raise OUT_OF_MEMORY
        return replace(reconstruct(frame, prior, settings), start="of 8 channels")

    prepared = prepared_of(Scan(n_coils=16))
    config = load(properties={"sampler.n_samples": "3"})
    result = compute(
        core(reconstruct=failing), prepared.frame, None, config, prepared.key, None, start="of 16 channels"
    )
    assert given == ["of 16 channels"] * 2 + [None] * 2
    assert result.start is None  # it does not belong to the frame that was asked for


@pytest.mark.fault("F49")
@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    ],
)
def test_the_end_of_the_ladder_is_an_error(error, gpu):
    failing = Failing(error, 99)
    with pytest.raises(ComputeError, match=f"E502 slice 0: out of memory, after trying {', '.join(NAMES)}"):
        run(failing)
    assert failing.asked == STEPS


@pytest.mark.fault("F49", "F50")
def test_without_a_gpu_the_cpu_is_no_further_step():
    failing = Failing(MemoryError(), 99)
    with pytest.raises(ComputeError, match="E502"):
        run(failing, n_coils=4)
    assert failing.asked == [(0, 4, "auto"), (1, 4, "auto")]


@pytest.mark.fault("F50")
def test_a_lost_device_gets_one_retry_on_the_cpu(gpu):
    """Simulated: no test can take a card out of the machine."""
    lost = RuntimeError("CUDA error: unspecified launch failure")
    failing = Failing(lost, 1)
    result = run(failing)
    assert failing.asked[-1][2] == "cpu"
    assert len(failing.asked) == 2
    assert result.warnings == ("ON_CPU",)
    with pytest.raises(ComputeError, match="E503"):
        run(Failing(lost, 99))


@pytest.mark.fault("F50")
def test_a_lost_device_whose_memory_cannot_be_freed(gpu, monkeypatch, caplog):
    def dead():
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(torch.cuda, "empty_cache", dead)
    result = run(Failing(RuntimeError("CUDA error: unspecified launch failure"), 1))
    assert result.warnings == ("ON_CPU",)


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        run(Failing(RuntimeError("shapes differ"), 1))


_THREADS = """
import threading, time, torch
import pogmdm_core as pg
from pogmdm_core.measurement import trajectories
k, shot = trajectories.radial(32, (64, 64))
frame = pg.KSpaceFrame.noncartesian(torch.randn(4, k.shape[1], dtype=torch.complex64), k, (64, 64), shot=shot)
prior, settings = pg.load_prior(), pg.Settings(n_samples=2, n_steps=3, map={"steps": 20})
cpu, wall = time.process_time(), time.monotonic()
pg.reconstruct(frame, prior, settings)
print(torch.get_num_threads(), (time.process_time() - cpu) / (time.monotonic() - wall), threading.active_count())
"""


@pytest.mark.fault("F55")
def test_the_number_of_threads_is_what_the_environment_says():
    """Nobody takes more cores than OMP_NUM_THREADS leaves: not torch, not the NUFFT library, not this software."""
    command = [sys.executable, "-c", _THREADS]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    n_threads, busy, n_python = map(float, done.stdout.split())
    assert (n_threads, n_python) == (1, 1)
    assert busy < 1.2


@pytest.mark.fault("F55")
@pytest.mark.parametrize(
    ("told", "expected"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_threads_wait_without_much_spinning_unless_told(told, expected):
    """Before torch is loaded: OpenMP reads it then."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    code = f"import gadget, os, sys; print(*map(os.environ.get, {names})); assert 'torch' not in sys.modules"
    environment = {k: v for k, v in os.environ.items() if k not in names} | told
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.fault("F55")
def test_the_deadline_does_not_follow_the_wall_clock(monkeypatch):
    deadline = Deadline(1000.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not deadline.passed()
    assert not Deadline(None).passed()
    assert Deadline(0.0).passed()


def stopped(n_samples, with_map):
    def replaced(frame, prior, settings, progress, should_stop, start, early):
        while not should_stop():
            time.sleep(0.001)
        assert settings.sampler.batch == 1  # finished samples count one by one
        result = reconstruct(frame, prior, settings)
        changes = {"status": SamplerStatus.CANCELLED, "n_samples": n_samples}
        if not with_map:
            changes["map"] = None
        for name, value in changes.items():
            object.__setattr__(result, name, value)
        return result

    return replaced


@pytest.mark.fault("F17")
@pytest.mark.parametrize("stage", ["warm start", "MAP", "held-out k-space", "samples"])
def test_a_client_that_hangs_up_ends_the_real_reconstruction(stage):
    import pogmdm_core

    prepared = prepared_of(Scan(n_coils=4))
    config = load(overrides={"sampler.n_samples": 3, "sampler.n_steps": 5, "map.steps": 5})
    seen = []

    def gone():
        return stage in seen

    key = prepared.key
    with pytest.raises(TransportError, match="E409"):
        compute(
            pogmdm_core, prepared.frame, pogmdm_core.load_prior(), config, key, lambda p: seen.append(p.stage), gone
        )
    assert seen.count(stage) <= 2  # nothing else was begun, and this was not finished


def test_a_client_that_was_gone_once_is_gone():
    """What has to be asked by sending something may be answered once only."""
    answers = iter([True])

    def ask_twice(frame, prior, settings, should_stop, **more):
        assert should_stop() and should_stop()
        return reconstruct(frame, prior, settings)

    prepared = prepared_of(Scan())
    with pytest.raises(TransportError, match="E409"):
        compute(
            core(reconstruct=ask_twice), prepared.frame, None, load(), prepared.key, None, lambda: next(answers, False)
        )


@pytest.mark.fault("F52")
@pytest.mark.parametrize(("n_samples", "with_map"), [(2, True), (0, True), (2, False)])
def test_time_is_up_the_best_so_far_is_labelled(n_samples, with_map):
    result = run(stopped(n_samples, with_map), **{"limits.recon_deadline_s": "0.01"})
    assert (result.status, result.n_samples) == (SamplerStatus.DEADLINE, n_samples)
    assert "DEADLINE" in result.warnings


@pytest.mark.fault("F52")
def test_time_is_up_before_anything_is_there():
    with pytest.raises(ComputeError, match="E511 slice 0: limits.recon_deadline_s = 0.01 s"):
        run(stopped(0, False), **{"limits.recon_deadline_s": "0.01"})


@pytest.mark.fault("F52")
@pytest.mark.parametrize(("stage", "n_reports", "n_samples"), [("MAP", 2, 0), ("samples", 7, 2)])
def test_the_real_reconstruction_stops_with_what_it_has(stage, n_reports, n_samples, monkeypatch):
    import pogmdm_core

    reports = []
    monkeypatch.setattr(Deadline, "passed", lambda _: [p.stage for p in reports].count(stage) >= n_reports)
    prepared = prepared_of(Scan(acceleration=2))
    settings = {"sampler.n_samples": "9", "sampler.n_steps": "3", "uncertainty.method": "samples"}
    config = load("fast", properties={**settings, "map.steps": "5", "limits.recon_deadline_s": "3"})
    result = compute(pogmdm_core, prepared.frame, pogmdm_core.load_prior(), config, prepared.key, reports.append)
    assert (result.status, result.n_samples) == (SamplerStatus.DEADLINE, n_samples)
    assert result.map is not None
    assert (result.std is not None) == (n_samples >= 2)
    assert "DEADLINE" in result.warnings
