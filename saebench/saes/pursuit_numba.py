"""The pursuit's kernels for CPUs, compiled by numba: one example at a time, its products in the cache.

Only the dot product is a reordered reduction, with an order that the compiler fixes: on one machine the same input
gives the same bits, with any number of threads. Functions take whole arrays and a row number, because creating a view
of a row costs as much as the work on it.

Compiled code is cached beside this module, or in the user's cache if that folder is read-only.
"""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator, no-any-return, no-untyped-call, misc"
from __future__ import annotations

import numpy as np
from numba import uintp

from saebench.saes.pursuit_numba_screen import compiled as _compiled
from saebench.saes.pursuit_numba_screen import eight_bits, largest

__all__ = ["eight_bits", "group", "largest", "refit", "with_gram"]

_BLOCK = uintp(256)
_ONE, _TWO, _THREE, _FOUR = uintp(1), uintp(2), uintp(3), uintp(4)
_NONE = np.float32(0)


@_compiled()
def _largest_in(bits, b, start, stop):
    largest = np.int32(0)
    for j in range(start, stop):
        value = bits[b, j]
        if value > largest:  # the compiler vectorises this, but not max()
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


@_compiled(fastmath={"reassoc", "contract"})
def _dot_four(a, i, b, indices, row, m, found):
    """Write the products of a[i] with four rows of b, those of indices[row, m] and the next three, into found."""
    f0, f1 = uintp(indices[row, m]), uintp(indices[row, m + _ONE])
    f2, f3 = uintp(indices[row, m + _TWO]), uintp(indices[row, m + _THREE])
    s0, s1, s2, s3 = _NONE, _NONE, _NONE, _NONE
    for n in range(uintp(a.shape[1])):
        value = a[i, n]
        s0 += value * b[f0, n]
        s1 += value * b[f1, n]
        s2 += value * b[f2, n]
        s3 += value * b[f3, n]
    found[0], found[1], found[2], found[3] = s0, s1, s2, s3


@_compiled()
def _exact(residual, b, rows, candidates, products, four):
    """Compute the products of a residual with its candidates, but for those of -inf."""
    count, m = uintp(candidates.shape[1]), uintp(0)
    while m + _FOUR <= count:
        _dot_four(residual, b, rows, candidates, b, m, four)
        for i in range(_FOUR):
            if products[b, m + i] > -np.inf:
                products[b, m + i] = four[i]
        m += _FOUR
    while m < count:
        if products[b, m] > -np.inf:
            products[b, m] = _dot(residual, b, rows, uintp(candidates[b, m]))
        m += _ONE


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
    end, k, four = uintp(stop), uintp(values.shape[1]), np.zeros(4, np.float32)
    for b in range(uintp(len(floors))):
        if count[b] < 0:
            continue
        n = uintp(count[b])
        started = n
        while n < end:
            best = uintp(0)
            if not together if n > started else rough:
                _exact(residual, b, rows, candidates, products, four)
            for m in range(uintp(candidates.shape[1])):
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
