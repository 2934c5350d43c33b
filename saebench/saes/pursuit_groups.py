"""Picks without a Gram matrix: c is recomputed before each group of picks, which are made among its largest entries."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from saebench.saes.kernels import Precision, affine_no_grad
from saebench.saes.pursuit_codes import Pursuit, exact_sweeps
from saebench.saes.pursuit_host import kernels_for, on_threads
from saebench.saes.pursuit_screen import Screen

CANDIDATES = 128
"""Number of rows among which a group picks."""
_GROUP_SWEEPS, _LAST_SWEEPS = 2, 3
"""Sweeps on the residual after a group, and after the last one."""


def without_gram(
    rows: Tensor,
    screen: Screen | None,
    every: int,
    together: bool,
    floors: Tensor,
    found: Pursuit,
    precision: Precision,
) -> None:
    k = found.values.shape[1]
    kernels = kernels_for(rows)
    among = min(len(rows), max(CANDIDATES, 2 * every))
    count = torch.zeros(len(floors), dtype=torch.int64, device=rows.device)
    alive = torch.ones_like(floors, dtype=torch.bool)
    for first in range(0, k, every):
        stop = min(first + every, k)
        taken = torch.where(found.gains[:, :first] != 0, found.indices[:, :first], found.indices[:, :1])
        if screen is not None:
            gains, candidates = screen.largest(found.residual, taken, among)
        else:
            c = affine_no_grad(found.residual, rows.t(), rows.new_zeros(len(rows)), "float32" if first else precision)
            gains, candidates = c.scatter_(1, taken, -torch.inf).topk(among, dim=1)
        if kernels is None:
            _group(rows, candidates, gains, floors, alive, found, slice(first, stop), together)
            chosen = (found.gains != 0) & alive.unsqueeze(1)  # examples that stopped earlier are done
            alive = alive & (found.gains[:, stop - 1] != 0)
            ended = ~alive.unsqueeze(1) | (stop == k)
            exact_sweeps(rows, found, chosen, stop, _GROUP_SWEEPS)
            exact_sweeps(rows, found, chosen & ended, stop, _LAST_SWEEPS - _GROUP_SWEEPS)
            continue
        arrays = [t.numpy() for t in (rows, candidates, gains, floors, count, *vars(found).values())]
        rows_, *others = arrays

        on_threads(partial(_group_of, kernels, rows_, stop, together, screen is not None, others), len(floors))


def _group_of(
    kernels: ModuleType,
    rows: NDArray[Any],
    stop: int,
    together: bool,
    rough: bool,
    others: list[NDArray[Any]],
    part: slice,
) -> None:
    kernels.group(rows, stop, together, rough, *(array[part] for array in others))


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
