"""Picks by the Gram matrix of the dictionary: c is updated after each pick with a row of it."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes.pursuit_codes import Pursuit, exact_sweeps
from saebench.saes.pursuit_host import kernels_for, on_threads

_GROUP_SWEEPS, _LAST_SWEEPS, _EXACT_SWEEPS = 2, 1, 2


def with_gram(
    c: Tensor, rows: Tensor, gram: Tensor, every: int, together: bool, floors: Tensor, found: Pursuit
) -> None:
    kernels = kernels_for(c)
    if kernels is None:
        _picks(c, gram, every, together, floors, found)
        _finish(rows, found)
        return
    arrays = [t.numpy() for t in (c, gram, rows, floors, *vars(found).values())]
    c_, gram_, rows_, *others = arrays

    def work(part: slice) -> None:
        kernels.with_gram(c_[part], gram_, rows_, every, together, *(array[part] for array in others))

    on_threads(work, len(c))


def _picks(c: Tensor, gram: Tensor, every: int, together: bool, floors: Tensor, found: Pursuit) -> None:
    """Fill values, indices and gains of `found`; overwrites c (N, F)."""
    count, k = found.values.shape
    values, indices = found.values, found.indices
    among = c.new_zeros(count, k, k)  # products of the picks with each other
    left = c.new_zeros(count, k)  # c of the picks
    alive = torch.ones_like(floors, dtype=torch.bool)
    known = torch.zeros_like(values)  # the values that c accounts for
    for n in range(k):
        gain, pick = c.max(1)
        alive = alive & ~(gain <= floors)
        gain, pick = torch.where(alive, gain, 0.0), torch.where(alive, pick, 0)
        row = gram.index_select(0, pick)
        with_others = torch.where(alive.unsqueeze(1), row.gather(1, indices[:, :n]), 0.0)
        among[:, n, :n], among[:, :n, n], among[:, n, n] = with_others, with_others, alive.to(c.dtype)
        indices[:, n], found.gains[:, n] = pick, gain
        if together:
            left[:, n] = gain
        else:
            left[:, :n] -= gain.unsqueeze(1) * with_others
            values[:, n] = gain
        c.scatter_(1, pick.unsqueeze(1), -torch.inf)
        if n + 1 == k:
            break
        if (n + 1) % every:
            if not together:
                c -= gain.unsqueeze(1) * row
                known[:, n] = gain
            continue
        for _ in range(_GROUP_SWEEPS):
            _sweep(values, left, among, n + 1, alive)
        change = values - known
        for i in range(n + 1):
            c -= change[:, i, None] * gram.index_select(0, indices[:, i])
        known.copy_(values)
    for _ in range(_LAST_SWEEPS):
        _sweep(values, left, among, k, torch.ones_like(alive))


def _sweep(values: Tensor, left: Tensor, among: Tensor, n: int, alive: Tensor) -> None:
    """Make one pass of coordinate descent over the first n picks of the examples still `alive`, in place."""
    for i in range(n):
        change = torch.where(alive, torch.maximum(-values[:, i], left[:, i]), 0.0)
        values[:, i] += change
        left[:, :n] -= change.unsqueeze(1) * among[:, i, :n]


def _finish(rows: Tensor, found: Pursuit) -> None:
    """Compute the residual of the values, then sweep on it."""
    chosen = found.gains != 0
    for i in range(found.values.shape[1]):
        found.residual.sub_(found.values[:, i, None] * rows.index_select(0, found.indices[:, i]))
    exact_sweeps(rows, found, chosen, found.values.shape[1], _EXACT_SWEEPS)
