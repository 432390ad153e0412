"""Parts of a computation in threads."""

import threading

import pytest
import torch

from pogmdm_core.threads import shared_out, side_by_side, summed


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "n_parts"), [(1, 4), (5, 2), (30, 4), (8, 8)])
def test_everything_is_shared_out_once(n, n_parts):
    parts = shared_out(n, n_parts)
    assert [i for part in parts for i in part] == list(range(n))
    assert len(parts) == min(n, n_parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_thread_computes_alone_and_nobody_elses_number_changes(two_threads):
    def look(part):
        return part, torch.get_num_threads(), torch.is_grad_enabled(), threading.current_thread().name

    found = side_by_side(look, [1, 2, 3])
    assert [part for part, *_ in found] == [1, 2, 3]
    assert {(n, grad) for _, n, grad, _ in found} == {(1, False)}
    assert all(name.startswith("pogmdm") for *_, name in found)
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_errors_come_back_and_inner_calls_stay_in_their_thread(two_threads):
    def inner(_):
        return side_by_side(lambda part: threading.current_thread().name, [1, 2])

    assert all(len(set(names)) == 1 for names in side_by_side(inner, [1, 2]))
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 / part, [1, 0])


def test_sum():
    assert summed([torch.ones(2), torch.full((2,), 3.0)]).tolist() == [4.0, 4.0]
