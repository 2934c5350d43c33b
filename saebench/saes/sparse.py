"""The k-sparse step: encode and select, decode, and both gradients, through (values, indices) only.

    codes = encode_topk(x, W_enc, b_enc, k)            # exactly k latents per row
    codes = encode_batchtopk(x, W_enc, b_enc, k)       # round(k * rows) latents in the whole batch
    x_hat = decode(codes, W_dec, b_dec)                # (rows, d_in)

`codes.values` carries the gradient to x, W_enc and b_enc; it flows through the selected pairs alone. No (rows, dict_size)
tensor outlives a chunk: pre-activations exist for one chunk of rows at a time, and neither direction of `decode` nor
the backward of the encoder needs more than the selected pairs.

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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Precision = Literal["float32", "bfloat16"]

CHUNK_ELEMENTS = 1 << 21
"""Pre-activations computed at a time (8 MiB of float32), rounded up to whole rows."""


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
        values, indices = _topk(x, W_enc, b_enc, k, precision, among)
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
        values, places = _batchtopk(x, W_enc, b_enc, pairs, precision)
        dict_size = W_enc.shape[1]
        starts = torch.arange(x.shape[0] + 1, device=x.device) * dict_size
        offsets = torch.searchsorted(places, starts)
    return _with_gradient(x, W_enc, b_enc, values.relu(), places % dict_size, offsets)


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


def _keys(values: Tensor, places: Tensor) -> Tensor:
    """int64 that orders like (value, lower place first): no two keys are equal, so every algorithm picks one set."""
    bits = values.float().view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return (ordered << 32) - places


def _topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: Precision, among: Tensor | None
) -> tuple[Tensor, Tensor]:
    latents = torch.arange(W_enc.shape[1], device=x.device)
    if among is not None:
        latents = among.nonzero().squeeze(1)
        W_enc, b_enc, k = W_enc[:, latents], b_enc[latents], min(k, latents.numel())
    values = x.new_empty(x.shape[0], k)
    indices = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // max(1, W_enc.shape[1]))
    for start in range(0, x.shape[0], rows):
        pre = _pre(x[start : start + rows], W_enc, b_enc, precision)
        best = _keys(pre, latents).topk(k, dim=1, sorted=False).indices
        values[start : start + rows] = pre.gather(1, best)
        indices[start : start + rows] = latents[best]
    return values, indices


def _batchtopk(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> tuple[Tensor, Tensor]:
    dict_size = W_enc.shape[1]
    values = x.new_empty(0)
    places = torch.empty(0, dtype=torch.int64, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // dict_size)
    for start in range(0, x.shape[0], rows):
        pre = _pre(x[start : start + rows], W_enc, b_enc, precision).flatten()
        values = torch.cat([values, pre])
        places = torch.cat([places, torch.arange(pre.numel(), device=x.device) + start * dict_size])
        keys = (values.relu().view(torch.int32).long() << 32) - torch.arange(values.numel(), device=x.device)
        best = keys.topk(min(pairs, keys.numel()), sorted=False).indices.sort().values
        values, places = values[best], places[best]
    return values, places


def _pre(x: Tensor, W_enc: Tensor, b_enc: Tensor, precision: Precision) -> Tensor:
    if precision == "bfloat16":
        return (x.bfloat16() @ W_enc.bfloat16()).to(x.dtype) + b_enc
    return torch.addmm(b_enc, x, W_enc)


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
