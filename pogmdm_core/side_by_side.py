"""Independent pieces of work on a CPU's threads at the same time: held-out images, posterior samples.

torch splits single operations among its threads, which for images of one slice gains a fifth to a half; whole
reconstructions beside each other gain nearly all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from pogmdm_core.run import StopHook

T = TypeVar("T")


def side_by_side(
    work: Callable[[int, StopHook], T], n: int, device: torch.device, should_stop: StopHook = lambda: False
) -> Generator[T, None, None]:
    """Yield ``work(0, stop)``, ``work(1, stop)``, .. in this order, computed at the same time on a CPU.

    Each has its share of torch's threads. On another device, or with one thread, one follows the other.

    Parameters
    ----------
    work
        Is given its number, and what to ask between steps: True where nobody waits for the result any more, or
        `should_stop` says so.
    n
        How many.
    device
        Where the work is done.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(n, n_threads) if device.type == "cpu" else 1
    if n_workers < 2:
        for number in range(n):
            yield work(number, should_stop)
        return
    over = threading.Event()
    pool = ThreadPoolExecutor(n_workers, "pogmdm", _use_threads, (n_threads // n_workers,))
    try:
        for future in [pool.submit(work, number, lambda: over.is_set() or should_stop()) for number in range(n)]:
            yield future.result()
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # what one thread sets is what threads to come begin with


def _use_threads(n: int) -> None:
    torch.get_num_threads()  # the first call of a thread takes the process's number, and would undo the next line
    torch.set_num_threads(n)
