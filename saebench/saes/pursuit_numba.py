"""The pursuit's kernels for CPUs, compiled by numba: one example at a time, its products in the cache.

Only the dot product is a reordered reduction, with an order that the compiler fixes: on one machine the same input
gives the same bits, with any number of threads. Functions take whole arrays and a row number, because creating a view
of a row costs as much as the work on it.

Compiled code is cached beside this module, or in the user's cache if that folder is read-only.
"""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator, no-any-return, no-untyped-call, misc"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, uintp

_BLOCK = uintp(256)
_GROUP = uintp(32)
_ONE, _TWO, _THREE, _FOUR = uintp(1), uintp(2), uintp(3), uintp(4)
_NONE = np.float32(0)


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Apply numba.njit with the GIL released. If no cache folder is writable, every process compiles again."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:
            return njit(nogil=True, error_model="numpy", **options)(function)

    return compile_


@_compiled()
def _largest_in(bits, b, start, stop):
    largest = np.int32(0)
    for j in range(start, stop):
        value = bits[b, j]
        if value > largest:  # the compiler vectorises this, but not max()
            largest = value
    return largest


@_compiled()
def _largest_of(numbers, b, start, stop):
    largest = np.int32(-(2**31))
    for j in range(start, stop):
        value = numbers[b, j]
        if value > largest:
            largest = value
    return largest


@_compiled()
def _largest(bits, b):
    """Return the first index of the largest positive number of row b, given as the bits of float32 (bits of positive
    floats order as integers, and integers have no NaN); the row's length if no number is positive."""
    largest, where, end = np.int32(0), uintp(0), uintp(bits.shape[1])
    found, start = False, uintp(0)
    while start < end:
        stop = min(start + _BLOCK, end)
        here = _largest_in(bits, b, start, stop)
        if here > largest:
            largest, where, found = here, start, True
        start = stop
    if not found:
        return end
    while bits[b, where] != largest:
        where += _ONE
    return where


@_compiled(fastmath={"reassoc", "contract"})
def _dot(a, i, b, j):
    total = _NONE
    for n in range(uintp(a.shape[1])):
        total += a[i, n] * b[j, n]
    return total


@_compiled()
def _subtract(c, b, rows, f, factor):
    for j in range(uintp(c.shape[1])):
        c[b, j] -= factor * rows[f, j]


@_compiled()
def _subtract_four(c, b, rows, indices, i, factors):
    f0, f1 = uintp(indices[b, i]), uintp(indices[b, i + _ONE])
    f2, f3 = uintp(indices[b, i + _TWO]), uintp(indices[b, i + _THREE])
    a0, a1, a2, a3 = factors[i], factors[i + _ONE], factors[i + _TWO], factors[i + _THREE]
    for j in range(uintp(c.shape[1])):
        c[b, j] = (((c[b, j] - a0 * rows[f0, j]) - a1 * rows[f1, j]) - a2 * rows[f2, j]) - a3 * rows[f3, j]


@_compiled()
def _subtract_all(c, b, rows, indices, factors, n):
    i = uintp(0)
    while i + _FOUR <= n:
        _subtract_four(c, b, rows, indices, i, factors)
        i += _FOUR
    while i < n:
        _subtract(c, b, rows, uintp(indices[b, i]), factors[i])
        i += _ONE


@_compiled()
def _sweep(values, b, left, among, n):
    for i in range(n):
        change = max(-values[b, i], left[i])
        if change != 0:
            values[b, i] += change
            for j in range(n):
                left[j] -= change * among[i, j]


@_compiled()
def _exact_sweeps(rows, b, n, times, values, indices, residual):
    for _ in range(times):
        for i in range(n):
            f = uintp(indices[b, i])
            change = max(-values[b, i], _dot(residual, b, rows, f))
            if change != 0:
                values[b, i] += change
                _subtract(residual, b, rows, f, change)


@_compiled()
def with_gram(c, gram, rows, every, together, floors, values, indices, gains, residual):
    """Do pursuit_gram.with_gram for some rows; fills the last four arguments and overwrites c."""
    k, every, width = uintp(values.shape[1]), uintp(every), uintp(c.shape[1])
    among, left, known = np.zeros((k, k), np.float32), np.zeros(k, np.float32), np.zeros(k, np.float32)
    bits = c.view(np.int32)
    for b in range(uintp(len(floors))):
        n = uintp(0)
        f = _largest(bits, b)
        while n < k and f < width:
            gain = c[b, f]
            if gain <= floors[b]:
                break
            for i in range(n):
                with_it = gram[f, uintp(indices[b, i])]
                among[n, i], among[i, n] = with_it, with_it
                if not together:
                    left[i] -= gain * with_it
            among[n, n], known[n] = np.float32(1), _NONE
            left[n], values[b, n] = (gain, _NONE) if together else (_NONE, gain)
            indices[b, n], gains[b, n] = f, gain
            c[b, f] = -np.inf
            n += _ONE
            if n == k:
                break
            if n % every:
                if not together:
                    _subtract(c, b, gram, f, gain)
                    known[n - _ONE] = gain
            else:
                _sweep(values, b, left, among, n)
                _sweep(values, b, left, among, n)
                for i in range(n):
                    known[i] = values[b, i] - known[i]
                _subtract_all(c, b, gram, indices, known, n)
                for i in range(n):
                    known[i] = values[b, i]
            f = _largest(bits, b)
        _sweep(values, b, left, among, n)
        for i in range(n):
            _subtract(residual, b, rows, uintp(indices[b, i]), values[b, i])
        _exact_sweeps(rows, b, n, 2, values, indices, residual)


@_compiled()
def group(rows, stop, together, rough, candidates, products, floors, count, values, indices, gains, residual):
    """Do pursuit_groups._group and the sweeps after it for some rows: picks up to `stop`. `count` is the number of
    picks so far, or -1 once a row has stopped. `rough`: the products are to be computed, but for those of -inf."""
    end, k = uintp(stop), uintp(values.shape[1])
    for b in range(uintp(len(floors))):
        if count[b] < 0:
            continue
        n = uintp(count[b])
        started = n
        while n < end:
            best = uintp(0)
            compute = not together if n > started else rough
            for m in range(uintp(candidates.shape[1])):
                if compute and products[b, m] > -np.inf:
                    products[b, m] = _dot(residual, b, rows, uintp(candidates[b, m]))
                if products[b, m] > products[b, best]:
                    best = m
            gain, f = products[b, best], uintp(candidates[b, best])
            if gain <= floors[b]:
                break
            indices[b, n], gains[b, n] = f, gain
            products[b, best] = -np.inf
            if not together:
                values[b, n] = gain
                _subtract(residual, b, rows, f, gain)
            n += _ONE
        goes_on = n == end and n < k
        count[b] = stop if goes_on else -1
        _exact_sweeps(rows, b, n, 2 if goes_on else 3, values, indices, residual)


@_compiled()
def refit(rows, start, values, indices, offsets, residual, first, last, times, width):
    """Do refit.refit for rows first to last - 1, in place in `values`."""
    for b in range(uintp(first), uintp(last)):
        low, high = uintp(offsets[b]), uintp(offsets[b + _ONE])
        for i in range(low, high):
            _subtract(residual, b, rows, uintp(indices[i]), start[i])
        for _ in range(times):
            for i in range(low, min(high, low + uintp(width))):
                if start[i] == 0:
                    continue
                f = uintp(indices[i])
                change = max(-values[i], _dot(residual, b, rows, f))
                if change != 0:
                    values[i] += change
                    _subtract(residual, b, rows, f, change)


@_compiled()
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
