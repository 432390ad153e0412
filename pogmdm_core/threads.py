"""Parts of a computation side by side.

On a CPU two threads that each do half of the filters or coils are faster than two that share every small transform.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def n_side_by_side(x: torch.Tensor) -> int:
    """How many parts of a computation on `x` to make: torch's threads on a CPU, else 1."""
    return torch.get_num_threads() if x.device.type == "cpu" else 1


def shared_out(n: int, n_parts: int) -> list[range]:
    """Ranges of nearly equal lengths that cover 0..n - 1, none of them empty."""
    n_parts = max(1, min(n, n_parts))
    return [range(n * part // n_parts, n * (part + 1) // n_parts) for part in range(n_parts)]


def summed(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum, in the first one's place."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0]


def side_by_side(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Do `work` on each part, in a thread each where torch has several; no gradients are recorded there.

    Called from such a thread, it goes on in it.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    return list(_workers(n_threads).map(work, parts))


@lru_cache(maxsize=1)
def _workers(n: int) -> ThreadPoolExecutor:
    started = threading.Barrier(n + 1)

    def alone() -> None:
        torch.get_num_threads()  # a thread's first question sets its number, and would undo what follows
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        started.wait()

    pool = ThreadPoolExecutor(n, thread_name_prefix="pogmdm", initializer=alone)
    for _ in range(n):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(n)  # threads that begin later take the number that was set last
    return pool
