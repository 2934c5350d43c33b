"""Values of given latents: sweeps of coordinate descent towards their least-squares optimum."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes import sparse
from saebench.saes.kernels_codes import SparseCodes
from saebench.saes.pursuit_codes import Pursuit, exact_sweeps
from saebench.saes.pursuit_host import kernels_for, on_threads


@torch.no_grad()
def refit(x: Tensor, rows: Tensor, codes: SparseCodes, times: int, width: int | None = None) -> Tensor:
    """Return the values (pairs,) of codes >= 0 of x (N, d) after `times` sweeps of non-negative coordinate descent
    towards the least-squares optimum of the latents that fire. Zeros stay 0. `width`: pairs of an example after the
    first `width` keep their values; None: none do, which costs a device-to-host sync."""
    x, rows, start = x.contiguous(), rows.detach().contiguous(), codes.values.detach().contiguous()
    kernels = kernels_for(x)
    if kernels is None:
        return _refit(x, rows, codes, times, width)
    values, residual = start.clone(), x.clone()
    arrays = [t.numpy() for t in (rows, start, values, codes.indices, codes.offsets, residual)]
    width = width or rows.shape[0]
    on_threads(lambda part: kernels.refit(*arrays, part.start, part.stop, times, width), len(x))
    return values


@torch.no_grad()
def refined(x: Tensor, rows: Tensor, latents: Tensor, times: int) -> Tensor:
    """Return dense `latents` (N, F) of x (N, d), nonzero values moved by `times` sweeps of `refit`."""
    texts, indices = latents.nonzero().unbind(1)
    offsets = torch.searchsorted(texts, torch.arange(len(x) + 1, device=x.device))
    codes = SparseCodes(latents[texts, indices], indices, offsets, latents.shape[1])
    return codes.with_values(refit(x, rows, codes, times)).dense()


def _refit(x: Tensor, rows: Tensor, codes: SparseCodes, times: int, width: int | None) -> Tensor:
    if width is None:
        width = int(codes.offsets.diff().max()) if len(x) else 0
    place = torch.arange(codes.indices.numel(), device=x.device) - codes.offsets[codes.row_of_pair]
    values, beyond = codes.values.detach(), place >= width
    place = place.clamp_max(width)  # a last column takes the pairs beyond
    found = Pursuit.empty(x, width + 1)
    found.residual.sub_(sparse.decode(codes.with_values(torch.where(beyond, values, 0.0)), rows))
    found.values[codes.row_of_pair, place] = values
    found.indices[codes.row_of_pair, place] = codes.indices
    chosen = found.values != 0
    for i in range(width):
        found.residual.sub_(found.values[:, i, None] * rows.index_select(0, found.indices[:, i]))
    exact_sweeps(rows, found, chosen, width, times)
    return torch.where(beyond, values, found.values[codes.row_of_pair, place])
