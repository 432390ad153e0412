import contextlib
import threading
import time

import pytest
import torch

from pogmdm_core.run import Run
from pogmdm_core.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 4])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_the_threads_are_shared(n_threads):
    def work(number, stop):
        time.sleep(0.02 * (4 - number))
        return number, torch.get_num_threads(), threading.get_ident()

    found = list(side_by_side(work, 4, CPU))
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert {n for _, n, _ in found} == {1}
    assert len({thread for _, _, thread in found}) == n_threads
    assert torch.get_num_threads() == n_threads


def test_fewer_pieces_than_threads_have_more_threads_each():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(side_by_side(lambda number, stop: torch.get_num_threads(), 2, CPU)) == [2, 2]
        inside = []
        threading.Thread(target=lambda: inside.append(torch.get_num_threads())).start()
        time.sleep(0.1)
        assert inside == [4]  # threads to come have all of them again
    finally:
        torch.set_num_threads(before)


def test_no_threads_on_a_card(n_threads):
    work = lambda number, stop: threading.current_thread()  # noqa: E731
    assert set(side_by_side(work, 3, torch.device("cuda"))) == {threading.current_thread()}


def test_an_error_ends_what_runs_beside_it(n_threads):
    ended = []

    def work(number, stop):
        if number == 1:
            raise MemoryError
        for _ in range(400):
            if stop() or n_threads == 1:
                break
            time.sleep(0.01)
        ended.append(number)
        return number

    begin = time.monotonic()
    with pytest.raises(MemoryError), contextlib.closing(side_by_side(work, 3, CPU)) as pieces:
        for number in pieces:
            assert number == 0
            break
        next(pieces)
    assert time.monotonic() - begin < 8.5
    assert threading.active_count() < 20 and 0 in ended


def test_who_stops_listening_stops_the_work():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    stopped, begun = [], threading.Event()

    def work(number, stop):
        begin = time.monotonic()
        if number:
            begun.set()
        else:
            begun.wait(5)
        while number and not stop() and time.monotonic() - begin < 20:
            time.sleep(0.01)
        stopped.append(stop())
        return number

    try:
        with contextlib.closing(side_by_side(work, 2, CPU)) as pieces:
            assert next(pieces) == 0
        assert stopped == [False, True]
    finally:
        torch.set_num_threads(before)


def test_progress_does_not_go_back():
    seen = []
    run = Run(lambda progress: seen.append((progress.done, progress.total)), None)
    first, second = run.reporter("folds", 0, 20), run.reporter("folds", 10, 20)
    first(1, 10), second(1, 10), first(2, 10), second(2, 10)
    assert seen == [(1, 20), (11, 20), (12, 20)]
