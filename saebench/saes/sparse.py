"""The k-sparse step: encode and select, decode, and both gradients, through (values, indices) only.

    codes = encode_topk(x, W_enc, b_enc, k)            # exactly k latents per row
    codes = encode_batchtopk(x, W_enc, b_enc, k)       # round(k * rows) latents in the whole batch
    x_hat = decode(codes, W_dec, b_dec)                # (rows, d_in)

`codes.values` carries the gradient to x, W_enc and b_enc; it flows through the selected pairs alone. No dense codes
exist: pre-activations are computed for one chunk of rows at a time and forgotten, and `decode`, its backward and the
encoder's backward touch the selected pairs only.

Selection is exact: the set a full sort would give. Only positive pre-activations count (`signed=True` keeps negative
ones, for AuxK); where a row or batch has fewer, the rest of `values` is 0 and has no gradient. Equal values: the lower
latent wins in a row, the lower row and then the lower latent in a batch. NaN sorts above everything, so that it
reaches the loss.

W_enc is (d_in, dict_size). Its gradient comes out as the transpose of a contiguous (dict_size, d_in) tensor; a
parameter with the same strides, `nn.Parameter(torch.empty(dict_size, d_in).t())`, takes it without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, max_pool1d

from saebench.saes.kernels import Precision, affine_no_grad

CHUNK_ROWS = 256
"""Rows whose pre-activations exist at a time, halved until a chunk holds at most CHUNK_ELEMENTS of them."""
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
"""32 MiB of float32 on a CPU, where a chunk should stay in the cache; on a GPU, few large launches."""


class ByLatent(NamedTuple):
    """Pairs sorted by latent: latent f has the pairs `order[bounds[f]:bounds[f + 1]]`."""

    order: Tensor
    bounds: Tensor


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of a batch as pairs, row by row: row b has the pairs `offsets[b]:offsets[b + 1]`."""

    values: Tensor
    """(pairs,) float32; 0 is padding."""
    indices: Tensor
    """(pairs,) int64: the latent of each pair."""
    offsets: Tensor
    """(rows + 1,) int64."""
    dict_size: int

    @property
    def rows(self) -> int:
        """Examples in the batch."""
        return self.offsets.numel() - 1

    @cached_property
    def row_of_pair(self) -> Tensor:
        """(pairs,) int64."""
        rows = torch.arange(self.rows, device=self.indices.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.indices.numel())

    @cached_property
    def by_latent(self) -> ByLatent:
        """The same pairs column by column; computed once for both gradients."""
        latents, order = self.indices.sort(stable=True)
        every = torch.arange(self.dict_size + 1, device=latents.device)
        return ByLatent(order, torch.searchsorted(latents, every))

    def l0(self) -> Tensor:
        """(rows,) int64: latents that fire per example."""
        running = torch.zeros(self.indices.numel() + 1, dtype=torch.int64, device=self.indices.device)
        torch.cumsum(self.values.detach() != 0, 0, out=running[1:])
        return running[self.offsets].diff()

    def firing(self) -> Tensor:
        """(dict_size,) float32: examples on which each latent fires."""
        counts = torch.zeros(self.dict_size, device=self.values.device)
        return counts.index_add_(0, self.indices, (self.values.detach() != 0).float())

    def dense(self) -> Tensor:
        """(rows, dict_size), differentiable; for inspection, the training step never needs it."""
        flat = torch.zeros(self.rows * self.dict_size, dtype=self.values.dtype, device=self.values.device)
        return flat.index_add(0, self.row_of_pair * self.dict_size + self.indices, self.values).view(
            self.rows, self.dict_size
        )

    def prefix(self, width: int) -> SparseCodes:
        """The same pairs with only the first `width` latents kept, the rest set to 0."""
        return SparseCodes(self.values * (self.indices < width), self.indices, self.offsets, self.dict_size)


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    precision: Precision = "float32",
    *,
    among: Tensor | None = None,
    signed: bool = False,
) -> SparseCodes:
    """The k largest pre-activations x @ W_enc + b_enc of every row; x (rows, d_in).

    `among` (dict_size,) bool restricts the choice, to the dead latents in AuxK; a row then has min(k, allowed) pairs
    on the CPU, and k pairs, the rest 0, on a GPU, where counting would stall it.
    """
    _check(x, W_enc, b_enc)
    if not 1 <= k <= W_enc.shape[1]:
        raise ValueError(f"k = {k}: must be between 1 and dict_size = {W_enc.shape[1]}")
    with torch.no_grad():
        if among is None:
            values, indices = _topk(x, W_enc, b_enc, k, precision, signed)
        else:
            allowed = among.nonzero().squeeze(1)
            values, indices = _topk(x, W_enc[:, allowed], b_enc[allowed], min(k, allowed.numel()), precision, signed)
            indices = allowed[indices]
        values = values if signed else values.relu()
        offsets = torch.arange(x.shape[0] + 1, device=x.device) * values.shape[1]
    return _with_gradient(x, W_enc, b_enc, values.flatten(), indices.flatten(), offsets)


def encode_batchtopk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: float, precision: Precision = "float32"
) -> SparseCodes:
    """The round(k * rows) largest pre-activations of the whole batch, in order of row and latent."""
    _check(x, W_enc, b_enc)
    pairs = round(k * x.shape[0])
    if not 1 <= pairs <= x.shape[0] * W_enc.shape[1]:
        raise ValueError(f"k = {k}: {pairs} pairs of {x.shape[0]} rows x {W_enc.shape[1]} latents")
    with torch.no_grad():
        keys = _batchtopk(x, W_enc, b_enc, pairs, precision)
        places, order = _places(keys).sort()
        values = ((keys[order] + places) >> 32).int().view(torch.float32)
        dict_size = W_enc.shape[1]
        starts = torch.arange(x.shape[0] + 1, device=x.device) * dict_size
        offsets = torch.searchsorted(places, starts)
    return _with_gradient(x, W_enc, b_enc, values, places % dict_size, offsets)


def decode(codes: SparseCodes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """(rows, d_in): the decoder's rows summed with the codes as weights; W_dec (dict_size, d_in)."""
    if W_dec.shape[0] != codes.dict_size:
        raise ValueError(f"W_dec has {W_dec.shape[0]} rows, the codes have {codes.dict_size} latents")
    x_hat: Tensor = _Decode.apply(codes.values, W_dec, codes)  # type: ignore[no-untyped-call]
    return x_hat if b_dec is None else x_hat + b_dec


def _check(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> None:
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] != W_enc.shape[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (rows >= 1, {W_enc.shape[0]})")
    if b_enc.shape != W_enc.shape[1:]:
        raise ValueError(f"b_enc has shape {tuple(b_enc.shape)}, expected ({W_enc.shape[1]},)")
    if not x.dtype == W_enc.dtype == b_enc.dtype:
        raise TypeError(f"x, W_enc and b_enc must have one dtype, not {x.dtype}, {W_enc.dtype}, {b_enc.dtype}")


# --- selection -------------------------------------------------------------------------------------------------------
#
# A chunk is cut into groups of adjacent latents. The k best pairs lie in the k groups with the best maxima, because a
# pair outside of them has k better ones, one in each. So a pass over the chunk for the maxima and two small choices
# replace one choice among all of it. Choices are made among int64 keys that order like (value, lower place first): no
# two are equal, so the result does not depend on algorithm, thread count, chunking or device.


def _keys(values: Tensor, places: Tensor, signed: bool = False) -> Tensor:
    """Keys of float32 values; places are below 2^32. Without `signed` negative values count as 0."""
    if not signed:
        return ((values.relu().view(torch.int32) & 0x7FFFFFFF).long() << 32) - places
    bits = values.view(torch.int32).long()
    return (torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF)) << 32) - places


def _places(keys: Tensor) -> Tensor:
    return -keys & 0xFFFFFFFF


def _group_size(dict_size: int, k: float) -> int:
    """A power of two that divides dict_size and balances the number of groups with the number of their members."""
    size = 1
    while dict_size % (2 * size) == 0 and 2 * k * (2 * size) ** 2 <= 3 * dict_size:
        size *= 2
    return size


def _chunks(x: Tensor, dict_size: int) -> tuple[Tensor, ...]:
    rows = CHUNK_ROWS if x.device.type == "cpu" else 1 << 30
    most = CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"])
    while rows > 1 and min(rows, x.shape[0]) * dict_size > most:
        rows //= 2
    return torch.split(x, rows)


def _topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: Precision, signed: bool) -> tuple[Tensor, Tensor]:
    """Values (rows, k) and latents (rows, k)."""
    size = _group_size(W_enc.shape[1], k)
    groups = torch.arange(W_enc.shape[1] // size, device=x.device)
    members = torch.arange(size, device=x.device)
    values, latents = [], []
    for chunk in _chunks(x, W_enc.shape[1]):
        pre = affine_no_grad(chunk, W_enc, b_enc, precision)
        among = None
        if size > 1:
            maxima = max_pool1d(pre, size)
            best = _keys(maxima, groups, signed).topk(k, dim=1, sorted=False).indices
            among = (best.unsqueeze(2) * size + members).flatten(1)
            pre = pre.gather(1, among)
        best = _keys(pre, groups if among is None else among, signed).topk(k, dim=1, sorted=False).indices
        values.append(pre.gather(1, best))
        latents.append(best if among is None else among.gather(1, best))
    return torch.cat(values), torch.cat(latents)


def _batchtopk(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor:
    """Keys of the best pairs of the batch, by place = row * dict_size + latent."""
    if x.device.type == "cpu":
        keys = _above_a_guess(x, W_enc, b_enc, pairs, precision)
        if keys is not None:
            return keys
    size = _group_size(W_enc.shape[1], pairs / x.shape[0])
    members = torch.arange(size, device=x.device)
    kept, first = torch.empty(0, dtype=torch.int64, device=x.device), 0
    for chunk in _chunks(x, W_enc.shape[1]):
        pre = affine_no_grad(chunk, W_enc, b_enc, precision).view(-1, size)
        groups = torch.arange(pre.shape[0], device=x.device)
        if pairs < pre.shape[0]:
            groups = _best(_keys(max_pool1d(pre, size).flatten(), groups), pairs, True)
        places = first + groups.unsqueeze(1) * size + members
        kept = _best(torch.cat([kept, _keys(pre[groups], places).flatten()]), pairs)
        first += pre.numel()
    return kept


def _best(keys: Tensor, count: int, as_places: bool = False) -> Tensor:
    best = keys.topk(min(count, keys.numel()), sorted=False).values
    return _places(best) if as_places else best


def _above_a_guess(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor | None:
    """The same keys from the pairs above a threshold that the first chunk suggests; None where it was too high."""
    dict_size = W_enc.shape[1]
    size = _group_size(dict_size, pairs / x.shape[0])
    members = torch.arange(size)
    found: list[Tensor] = []
    guess, first = 0.0, 0
    for chunk in _chunks(x, dict_size):
        pre = affine_no_grad(chunk, W_enc, b_enc, precision).view(-1, size)
        if not found:
            guess = _quantile(pre, 1.3 * pairs / (x.shape[0] * dict_size))
        groups = (max_pool1d(pre, size).flatten() <= guess).logical_not().nonzero().squeeze(1)
        near = pre[groups]
        row, member = (near <= guess).logical_not().nonzero(as_tuple=True)
        found.append(_keys(near[row, member], first + groups[row] * size + members[member]))
        first += pre.numel()
    keys = torch.cat(found)
    return _best(keys, pairs) if keys.numel() >= pairs or guess == 0.0 else None


def _quantile(pre: Tensor, share: float) -> float:
    """A value that about `share` of pre exceeds, at least 0, from one row in sixteen."""
    sample = pre.flatten()[:: 17 if pre.numel() > 1 << 16 else 1]
    rank = min(sample.numel(), int(share * sample.numel()) + 1)
    return max(0.0, float(sample.topk(rank, sorted=False).values.min()))


# --- gradients -------------------------------------------------------------------------------------------------------


def _with_gradient(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, values: Tensor, indices: Tensor, offsets: Tensor
) -> SparseCodes:
    chosen = SparseCodes(values, indices, offsets, W_enc.shape[1])
    with_grad: Tensor = _Encode.apply(x, W_enc, b_enc, chosen)  # type: ignore[no-untyped-call]
    codes = SparseCodes(with_grad, indices, offsets, W_enc.shape[1])
    if torch.is_grad_enabled():
        codes.__dict__["by_latent"] = chosen.by_latent  # one sort for the encoder and the decoder
    return codes


def _bags(pairs: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of `rows[pairs]`, one per bag of pairs."""
    return embedding_bag(pairs, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _Encode(torch.autograd.Function):
    """Selected values as a function of x, W_enc and b_enc; the choice itself has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, _b_enc: Tensor, chosen: SparseCodes) -> Tensor:
        ctx.save_for_backward(x, W_enc, chosen.values)
        ctx.chosen = chosen
        return chosen.values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, values = ctx.saved_tensors
        chosen: SparseCodes = ctx.chosen
        grad = torch.where(values != 0, grads[0], 0.0)
        for_x = for_W = for_b = None
        if ctx.needs_input_grad[0]:
            for_x = _bags(chosen.indices, W_enc.t().contiguous(), chosen.offsets, grad)
        if ctx.needs_input_grad[1]:
            order, bounds = chosen.by_latent
            for_W = _bags(chosen.row_of_pair[order], x, bounds, grad[order]).t()
        if ctx.needs_input_grad[2]:
            for_b = grad.new_zeros(chosen.dict_size).index_add_(0, chosen.indices, grad)
        return for_x, for_W, for_b, None


class _Decode(torch.autograd.Function):
    """embedding_bag with its own gradient for the values and segment sums, not scattered rows, for W_dec."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, codes: SparseCodes) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.codes = codes
        return _bags(codes.indices, W_dec, codes.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        codes: SparseCodes = ctx.codes
        grad = grads[0].contiguous()
        for_values = for_W = None
        if ctx.needs_input_grad[0]:
            with torch.enable_grad():
                free = values.detach().requires_grad_()
                again = _bags(codes.indices, W_dec.detach(), codes.offsets, free)
                (for_values,) = torch.autograd.grad(again, free, grad)
        if ctx.needs_input_grad[1]:
            order, bounds = codes.by_latent
            for_W = _bags(codes.row_of_pair[order], grad, bounds, values[order])
        return for_values, for_W, None
