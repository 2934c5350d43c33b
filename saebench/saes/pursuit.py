"""Non-negative orthogonal matching pursuit: codes picked one by one, values refitted as they come.

    found = pursue(x, rows, gram=rows @ rows.t(), k=32)      # x (N, d) centred, rows (F, d) of length 1

c holds the product of every row of the dictionary with the residual. A pick is the row with the largest c; its value is
that c. After every `refit_every`-th pick and the last one, sweeps of non-negative coordinate descent move all values
chosen so far towards their least-squares optimum; two sweeps on the residual itself end the pursuit. It stops early if
no row has a product with the residual above `least` (at least 0).

c is updated after each pick with rows of `gram`. If that (F, F) matrix is too large (`gram=None`), c is recomputed from
the residual before each group of `refit_every` picks, and a group picks among its `CANDIDATES` largest entries.

There are two implementations: kernels compiled by numba, one row at a time, on a CPU; batched torch without syncs
elsewhere, and on a CPU without numba. They differ only by the order in which a dot product is summed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from saebench.saes.kernels import Precision, affine_no_grad, on_host, product
from saebench.saes.kernels_codes import SparseCodes

CANDIDATES = 128
"""Number of rows among which a group picks, without a Gram matrix."""
ROUNDING = 1e-4
"""A product below this share of the example's length ends a pursuit: it would explain 1e-8 of it."""
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Entries of c per chunk: 32 MiB of float32 on a CPU."""
_CHUNK_GATHERED = {"cpu": 1 << 22, "cuda": 1 << 27}
"""The same for the candidates' rows (N, CANDIDATES, d)."""
_GROUP_SWEEPS, _LAST_SWEEPS, _EXACT_SWEEPS = 2, 1, 2


@dataclass(frozen=True, eq=False)
class Pursuit:
    """The codes and residuals of N examples."""

    values: Tensor
    """(N, k) >= 0, in order of picking; 0 after the pursuit has stopped, and for picks that a refit has dropped."""
    indices: Tensor
    """(N, k) int64: rows of the dictionary; 0 after the pursuit has stopped."""
    gains: Tensor
    """(N, k): product of the pick with the residual at that time; 0 after the pursuit has stopped."""
    residual: Tensor
    """(N, d): x minus the reconstruction."""

    @classmethod
    def empty(cls, x: Tensor, k: int) -> Pursuit:
        """Return a pursuit of x (N, d) without picks."""
        zeros = x.new_zeros(len(x), k)
        return cls(zeros, torch.zeros_like(zeros, dtype=torch.int64), zeros.clone(), x.clone())

    def part(self, rows: slice) -> Pursuit:
        """Return views of some examples."""
        return Pursuit(self.values[rows], self.indices[rows], self.gains[rows], self.residual[rows])


@torch.no_grad()
def pursue(
    x: Tensor,
    rows: Tensor,
    gram: Tensor | None,
    k: int,
    refit_every: int = 8,
    least: Tensor | float = 0.0,
    precision: Precision = "float32",
    *,
    together: bool = False,
) -> Pursuit:
    """Return codes of x (N, d) in `rows` (F, d), float32, of length 1: at most k per example, picks with a product
    above `least` (scalar). `precision` applies only to the first product, which determines the picks; values are
    refitted in float32. `together`: take the `refit_every` largest products between two refits at once; the refit sets
    their values."""
    _check(x, rows, gram, k, refit_every)
    x, rows = x.contiguous(), rows.detach().contiguous()
    floors = torch.linalg.vector_norm(x, dim=1).mul_(ROUNDING).clamp_min_(least)
    found = Pursuit.empty(x, k)
    no_bias = rows.new_zeros(len(rows))
    for part in _chunks(x, rows, gathered=gram is None and _kernels(x) is None):
        products = affine_no_grad(x[part], rows.t(), no_bias, precision)
        if gram is None:
            _without_gram(products, rows, refit_every, together, floors[part], found.part(part))
        else:
            _with_gram(products, rows, gram, refit_every, together, floors[part], found.part(part))
    return found


def _check(x: Tensor, rows: Tensor, gram: Tensor | None, k: int, refit_every: int) -> None:
    if x.ndim != 2 or rows.ndim != 2 or x.shape[1] != rows.shape[1]:
        raise ValueError(f"x {tuple(x.shape)}, rows {tuple(rows.shape)}: expected (N, d) and (F, d)")
    if gram is not None and gram.shape != (len(rows), len(rows)):
        raise ValueError(f"gram {tuple(gram.shape)}: expected ({len(rows)}, {len(rows)})")
    if not 1 <= k <= len(rows):
        raise ValueError(f"k = {k}: must be between 1 and dict_size = {len(rows)}")
    if refit_every < 1:
        raise ValueError(f"refit_every = {refit_every}: must be at least 1")
    if not x.dtype == rows.dtype == torch.float32:
        raise TypeError(f"x and rows must be float32, not {x.dtype} and {rows.dtype}")


def _chunks(x: Tensor, rows: Tensor, gathered: bool) -> list[slice]:
    device = "cpu" if on_host(x) else "cuda"
    size = _CHUNK[device] // len(rows)
    if gathered:
        size = min(size, _CHUNK_GATHERED[device] // (CANDIDATES * x.shape[1]))
    return [slice(low, min(low + max(1, size), len(x))) for low in range(0, len(x), max(1, size))]


@cache
def _numba_kernels() -> ModuleType | None:
    try:
        from saebench.saes import pursuit_numba
    except ImportError as error:
        warnings.warn(f"numba: {error}: pursuits run in torch, six times as long: pip install numba", stacklevel=2)
        return None
    return pursuit_numba


def _kernels(x: Tensor) -> ModuleType | None:
    return _numba_kernels() if on_host(x) else None


def _on_threads(work: Callable[[slice], None], rows: int) -> None:
    """Run `work` on slices of the rows, on as many threads as torch uses. Rows are independent, so the result does not
    depend on the number of threads."""
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1:
        work(slice(0, rows))
        return
    bounds = [rows * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [slice(low, high) for low, high in pairwise(bounds)]))


# --- with a Gram matrix -----------------------------------------------------------------------------------------------


def _with_gram(
    c: Tensor, rows: Tensor, gram: Tensor, every: int, together: bool, floors: Tensor, found: Pursuit
) -> None:
    kernels = _kernels(c)
    if kernels is None:
        _picks(c, gram, every, together, floors, found)
        _finish(rows, found)
        return
    arrays = [t.numpy() for t in (c, gram, rows, floors, *vars(found).values())]
    c_, gram_, rows_, *others = arrays

    def work(part: slice) -> None:
        kernels.with_gram(c_[part], gram_, rows_, every, together, *(array[part] for array in others))

    _on_threads(work, len(c))


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
    _exact_sweeps(rows, found, chosen, found.values.shape[1], _EXACT_SWEEPS)


def _exact_sweeps(rows: Tensor, found: Pursuit, chosen: Tensor, n: int, times: int) -> None:
    for _ in range(times):
        for i in range(n):
            row = rows.index_select(0, found.indices[:, i])
            change = torch.maximum(-found.values[:, i], (found.residual * row).sum(1))
            change = torch.where(chosen[:, i], change, 0.0)
            found.values[:, i] += change
            found.residual.sub_(change.unsqueeze(1) * row)


# --- without ----------------------------------------------------------------------------------------------------------


def _without_gram(c: Tensor, rows: Tensor, every: int, together: bool, floors: Tensor, found: Pursuit) -> None:
    k = found.values.shape[1]
    kernels = _kernels(c)
    among = min(len(rows), max(CANDIDATES, 2 * every))
    count = torch.zeros(len(c), dtype=torch.int64, device=c.device)
    alive = torch.ones_like(floors, dtype=torch.bool)
    for first in range(0, k, every):
        stop = min(first + every, k)
        if first:
            c = product(found.residual, rows.t())
            c.scatter_(1, torch.where(found.gains[:, :first] != 0, found.indices[:, :first], 0), -torch.inf)
        gains, candidates = c.topk(among, dim=1)
        if kernels is None:
            _group(rows, candidates, gains, floors, alive, found, slice(first, stop), together)
            chosen = (found.gains != 0) & alive.unsqueeze(1)  # examples that stopped earlier are done
            alive = alive & (found.gains[:, stop - 1] != 0)
            ended = ~alive.unsqueeze(1) | (stop == k)
            _exact_sweeps(rows, found, chosen, stop, _GROUP_SWEEPS)
            _exact_sweeps(rows, found, chosen & ended, stop, _LAST_SWEEPS + _EXACT_SWEEPS - _GROUP_SWEEPS)
            continue
        arrays = [t.numpy() for t in (rows, candidates, gains, floors, count, *vars(found).values())]
        rows_, *others = arrays

        _on_threads(partial(_group_of, kernels, rows_, stop, together, others), len(c))


def _group_of(
    kernels: ModuleType,
    rows: NDArray[Any],
    stop: int,
    together: bool,
    others: list[NDArray[Any]],
    part: slice,
) -> None:
    kernels.group(rows, stop, together, *(array[part] for array in others))


def _group(
    rows: Tensor,
    candidates: Tensor,
    gains: Tensor,
    floors: Tensor,
    alive: Tensor,
    found: Pursuit,
    picks: slice,
    together: bool,
) -> None:
    """Make these picks among candidates (N, M) for the examples `alive`; `gains`: their products with the residual."""
    theirs = rows[candidates]  # (N, M, d)
    taken = torch.where(gains == -torch.inf, gains, 0.0)
    for n in range(picks.start, picks.stop):
        gain, place = gains.max(1)
        alive = alive & ~(gain <= floors)
        gain = torch.where(alive, gain, 0.0)
        pick = candidates.gather(1, place.unsqueeze(1)).squeeze(1)
        pick = torch.where(alive, pick, 0)
        found.indices[:, n], found.gains[:, n] = pick, gain
        taken.scatter_(1, place.unsqueeze(1), -torch.inf)
        if together:
            gains = gains + taken
            continue
        found.values[:, n] = gain
        found.residual.sub_(gain.unsqueeze(1) * rows.index_select(0, pick))
        if n + 1 < picks.stop:
            gains = torch.bmm(theirs, found.residual.unsqueeze(2)).squeeze(2) + taken


# --- values alone -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def refit(x: Tensor, rows: Tensor, codes: SparseCodes, times: int, width: int | None = None) -> Tensor:
    """Return the values (pairs,) of codes >= 0 of x (N, d) after `times` sweeps of non-negative coordinate descent
    towards the least-squares optimum of the latents that fire. Zeros stay 0. `width`: the most pairs of any example, if
    known, which avoids a device-to-host sync."""
    x, rows, start = x.contiguous(), rows.detach().contiguous(), codes.values.detach().contiguous()
    kernels = _kernels(x)
    if kernels is None:
        return _refit(x, rows, codes, times, width)
    values, residual = start.clone(), x.clone()
    arrays = [t.numpy() for t in (rows, start, values, codes.indices, codes.offsets, residual)]
    _on_threads(lambda part: kernels.refit(*arrays, part.start, part.stop, times), len(x))
    return values


def _refit(x: Tensor, rows: Tensor, codes: SparseCodes, times: int, width: int | None) -> Tensor:
    if width is None:
        width = int(codes.offsets.diff().max()) if len(x) else 0
    place = torch.arange(codes.indices.numel(), device=x.device) - codes.offsets[codes.row_of_pair]
    found = Pursuit.empty(x, width)
    found.values[codes.row_of_pair, place] = codes.values.detach()
    found.indices[codes.row_of_pair, place] = codes.indices
    chosen = found.values != 0
    for i in range(width):
        found.residual.sub_(found.values[:, i, None] * rows.index_select(0, found.indices[:, i]))
    _exact_sweeps(rows, found, chosen, width, times)
    return found.values[codes.row_of_pair, place]
