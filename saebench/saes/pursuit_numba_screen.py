"""The kernels for CPUs of pursuit_screen.py: a dictionary in 8 bits, and the largest of many products."""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator, no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, uintp

_GROUP = uintp(32)
_ONE = uintp(1)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Apply numba.njit with the GIL released. If no cache folder is writable, every process compiles again."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:
            return njit(nogil=True, error_model="numpy", **options)(function)

    return compile_


@compiled()
def _largest_of(numbers, b, start, stop):
    largest = np.int32(-(2**31))
    for j in range(start, stop):
        value = numbers[b, j]
        if value > largest:
            largest = value
    return largest


@compiled()
def eight_bits(x, factors, found):
    """Write each row of x times its factor, rounded to 8 bits, into found; NaN becomes some number."""
    for b in range(uintp(len(x))):
        factor = factors[b]
        for j in range(uintp(x.shape[1])):
            value = np.rint(x[b, j] * factor)
            value = value if value > np.float32(-127) else np.float32(-127)
            found[b, j] = np.int8(value if value < np.float32(127) else np.float32(127))


@compiled()
def largest(products, found, marks):
    """Write the places of the largest numbers of each row of products (N, F), int32, into found (N, M), best first, and
    -inf into marks (N, M) where a number is that of a row that was taken (pursuit_screen.TAKEN). M <= F."""
    width, count = uintp(products.shape[1]), uintp(found.shape[1])
    groups = (width + _GROUP - _ONE) // _GROUP
    maxima = np.empty(groups, np.int32)
    keys = np.empty(width, np.int64)
    for b in range(uintp(len(products))):
        for g in range(groups):
            maxima[g] = _largest_of(products, b, g * _GROUP, min(width, (g + _ONE) * _GROUP))
        bound = np.int32(-(2**31))
        if groups > count:
            bound = np.partition(maxima, groups - count)[groups - count]
        n = uintp(0)
        for g in range(groups):
            if maxima[g] >= bound:
                for j in range(g * _GROUP, min(width, (g + _ONE) * _GROUP)):
                    if products[b, j] >= bound:
                        keys[n] = (np.int64(products[b, j]) << 32) - np.int64(j)
                        n += _ONE
        best = np.sort(keys[:n])
        for m in range(count):
            key = best[n - _ONE - m]
            place = -key & 0xFFFFFFFF
            found[b, m] = place
            if products[b, uintp(place)] == 1 - 2**31:
                marks[b, m] = -np.inf
