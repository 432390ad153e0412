"""The look-up of expert tables, compiled: one pass over the responses instead of torch's fifteen.

A tenth of the time of the same arithmetic in torch, which stays the way on a GPU, in double precision, and where numba
is not there; both give the same numbers to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

_BLOCK = 1024  # responses handled at once: they stay in the nearest cache
_ONE = 0x3F800000  # the bits of 1.0

MultiplyByFactor = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]
_Rows = Callable[[Any, Any, Any, int], None]


def _multiply_rows(u: Any, coefficients: Any, per_unit: Any, shift: int) -> None:
    """Multiply `u` `(n_groups, n_members, n)` by g(|u|^2), in place; see `.tables`."""
    n_groups, n_members, n = u.shape
    # every integer is told to be of 32 bits: numba's own have 64, and half as many fit into a register
    last, low, places = np.int32(coefficients.shape[2] - 1), np.int32(shift), np.int32((1 << shift) - 1)
    to_place = np.float32(1 / (1 << shift))
    w = np.empty(_BLOCK, np.float32)
    bits = w.view(np.int32)
    for group in range(n_groups):
        constant, linear, quadratic, cubic = coefficients[group]
        scale = per_unit[group]
        for first in range(0, n, _BLOCK):
            size = min(_BLOCK, n - first)
            for i in range(size):
                value = u[group, 0, first + i]
                w[i] = np.float32(1) + value * value * scale
            for member in range(1, n_members):
                for i in range(size):
                    value = u[group, member, first + i]
                    w[i] += value * value * scale
            for i in range(size):
                where = np.int32(bits[i] - np.int32(_ONE))
                piece = np.uint32(min(max(np.int32(where >> low), np.int32(0)), last))  # NaN may have any bits
                place = np.float32(where & places) * to_place
                w[i] = ((cubic[piece] * place + quadratic[piece]) * place + linear[piece]) * place + constant[piece]
            for member in range(n_members):
                for i in range(size):
                    u[group, member, first + i] *= w[i]


@lru_cache(maxsize=4)
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="expert-table")


@lru_cache(maxsize=1)
def multiply_by_factor() -> MultiplyByFactor | None:
    """Return the compiled `ScoreTable.multiply_` for float32 on the CPU; None without numba.

    It takes contiguous responses `(n_groups, n_members, n)`, which it changes, coefficients, per_unit, and how many low
    bits of w tell the place within a piece. The first call of a process loads it, the first on a machine compiles it.
    """
    if find_spec("numba") is None:
        return None
    try:
        import numba
    except ImportError as error:  # installed, but not for this numpy
        warnings.warn(f"numba cannot be used ({error}): scores take several times as long.", UserWarning, stacklevel=2)
        return None
    fastmath = {"contract", "reassoc"}  # not "no NaN": divergence must show
    rows: _Rows = _multiply_rows
    try:
        compiled: _Rows = numba.njit(nogil=True, fastmath=fastmath, cache=True)(rows)
    except RuntimeError:  # no folder to keep it in: every process compiles it anew
        compiled = numba.njit(nogil=True, fastmath=fastmath)(rows)

    def multiply(u: torch.Tensor, coefficients: torch.Tensor, per_unit: torch.Tensor, shift: int) -> None:
        arrays = (u.numpy(), coefficients.numpy(), per_unit.numpy())
        n_threads = min(torch.get_num_threads(), len(u))
        if n_threads == 1:
            compiled(arrays[0], arrays[1], arrays[2], shift)
            return
        parts = zip(*(np.array_split(array, n_threads) for array in arrays), strict=True)
        list(_threads(n_threads).map(lambda part: compiled(part[0], part[1], part[2], shift), parts))

    return multiply
