"""Non-negative orthogonal matching pursuit: codes picked one by one, values refitted as they come.

    found = pursue(x, rows, gram=rows @ rows.t(), k=32)      # x (N, d) centred, rows (F, d) of length 1

c holds the product of every row of the dictionary with the residual. A pick is the row with the largest c; its value is
that c. After every `refit_every`-th pick and the last one, sweeps of non-negative coordinate descent move all values
chosen so far towards their least-squares optimum; two sweeps on the residual itself end the pursuit. It stops early if
no row has a product with the residual above `least` (at least 0).

c is updated after each pick with rows of `gram`. If that (F, F) matrix is too large (`gram=None`), c is recomputed from
the residual before each group of `refit_every` picks, and a group picks among its `CANDIDATES` largest entries (found
by products of 8-bit integers where the processor is fast at these: pursuit_screen.py).

There are two implementations: kernels compiled by numba, one row at a time, on a CPU; batched torch without syncs
elsewhere, and on a CPU without numba. They differ only by the order in which a dot product is summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes.kernels import Precision, affine_no_grad, on_host
from saebench.saes.pursuit_codes import Pursuit
from saebench.saes.pursuit_gram import with_gram
from saebench.saes.pursuit_groups import CANDIDATES, without_gram
from saebench.saes.pursuit_host import kernels_for
from saebench.saes.pursuit_screen import Screen

ROUNDING = 1e-4
"""A product below this share of the example's length ends a pursuit: it would explain 1e-8 of it."""
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Entries of c per chunk: 32 MiB of float32 on a CPU."""
_CHUNK_GATHERED = {"cpu": 1 << 22, "cuda": 1 << 27}
"""The same for the candidates' rows (N, CANDIDATES, d)."""


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
    screen = Screen.of(rows) if gram is None and len(rows) > CANDIDATES else None
    no_bias = rows.new_zeros(len(rows))
    for part in _chunks(x, rows, gathered=gram is None and kernels_for(x) is None):
        if gram is None:
            without_gram(rows, screen, refit_every, together, floors[part], found.part(part), precision)
        else:
            products = affine_no_grad(x[part], rows.t(), no_bias, precision)
            with_gram(products, rows, gram, refit_every, together, floors[part], found.part(part))
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
