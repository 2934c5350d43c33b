"""The k-sparse step: encode and select, decode, and both gradients, through (values, indices) only.

    codes = encodeselect.topk(x, W_enc, b_enc, k)            # exactly k latents per row
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
from torch.nn.functional import embedding_bag

from saebench.saes import kernels_select as select
from saebench.saes.kernels import Precision, affine


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

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same pairs with other values; what was computed about the pairs is kept."""
        codes = SparseCodes(values, self.indices, self.offsets, self.dict_size)
        codes.__dict__.update({n: v for n, v in self.__dict__.items() if n in ("row_of_pair", "by_latent")})
        return codes

    def spread(self, per_latent: Tensor) -> Tensor:
        """A number per latent (dict_size,) as a number per pair (pairs,)."""
        return _Spread.apply(per_latent, self)  # type: ignore[no-any-return, no-untyped-call]

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
        return self.with_values(self.values * (self.indices < width))


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """What `encode_above` gives where pairs would be too many: every pre-activation, under the same methods."""

    values: Tensor
    """(rows, dict_size) float32."""

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def dict_size(self) -> int:
        return self.values.shape[1]

    def with_values(self, values: Tensor) -> DenseCodes:
        return DenseCodes(values)

    def spread(self, per_latent: Tensor) -> Tensor:
        """(dict_size,) as it is: it broadcasts over the rows."""
        return per_latent

    def l0(self) -> Tensor:
        return (self.values.detach() != 0).sum(1)

    def firing(self) -> Tensor:
        return (self.values.detach() != 0).sum(0).float()

    def dense(self) -> Tensor:
        return self.values


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
            values, indices = select.topk(x, W_enc, b_enc, k, precision, signed)
        else:
            allowed = among.nonzero().squeeze(1)
            values, indices = select.topk(
                x, W_enc[:, allowed], b_enc[allowed], min(k, allowed.numel()), precision, signed
            )
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
    if x.shape[0] * W_enc.shape[1] >= 1 << 32:
        raise ValueError(f"{x.shape[0]} rows x {W_enc.shape[1]} latents: a batch must have fewer than 2^32 pairs")
    with torch.no_grad():
        keys = select.batchtopk(x, W_enc, b_enc, pairs, precision)
        places, order = select.places_of(keys).sort()
        values = ((keys[order] + places) >> 32).int().view(torch.float32)
        dict_size = W_enc.shape[1]
        starts = torch.arange(x.shape[0] + 1, device=x.device) * dict_size
        offsets = torch.searchsorted(places, starts)
    return _with_gradient(x, W_enc, b_enc, values, places % dict_size, offsets)


Codes = SparseCodes | DenseCodes
MOST_PAIRS = 1 / 24
"""Share of the latents above which pairs cost more than dense products."""


def encode_above(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor | float = 0.0, precision: Precision = "float32"
) -> Codes:
    """The pre-activations x @ W_enc + b_enc above `floor`, a scalar or one per latent (dict_size,), for architectures
    with a threshold: a loss that is 0 at and below it, and so is its gradient, needs no others.

    Dense codes hold every pre-activation, those below the floor too: apply the threshold to `values` either way.
    They come where pairs would cost more, and on a GPU, which would have to wait for their number.
    """
    _check(x, W_enc, b_enc)
    found = None
    if x.device.type == "cpu":
        with torch.no_grad():
            found = select.above(x, W_enc, b_enc, torch.as_tensor(floor, dtype=x.dtype), MOST_PAIRS, precision)
    if found is None:
        return DenseCodes(affine(x, W_enc, b_enc, precision))
    values, places = found
    dict_size = W_enc.shape[1]
    offsets = torch.searchsorted(places, torch.arange(x.shape[0] + 1) * dict_size)
    return _with_gradient(x, W_enc, b_enc, values, places % dict_size, offsets, padded=False)


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """(rows, d_in): the decoder's rows summed with the codes as weights; W_dec (dict_size, d_in)."""
    if W_dec.shape[0] != codes.dict_size:
        raise ValueError(f"W_dec has {W_dec.shape[0]} rows, the codes have {codes.dict_size} latents")
    if isinstance(codes, DenseCodes):
        return affine(codes.values, W_dec, W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else b_dec)
    x_hat: Tensor = _Decode.apply(codes.values, W_dec, codes)  # type: ignore[no-untyped-call]
    return x_hat if b_dec is None else x_hat + b_dec


def _check(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> None:
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] != W_enc.shape[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (rows >= 1, {W_enc.shape[0]})")
    if b_enc.shape != W_enc.shape[1:]:
        raise ValueError(f"b_enc has shape {tuple(b_enc.shape)}, expected ({W_enc.shape[1]},)")
    if not x.dtype == W_enc.dtype == b_enc.dtype:
        raise TypeError(f"x, W_enc and b_enc must have one dtype, not {x.dtype}, {W_enc.dtype}, {b_enc.dtype}")


# --- gradients -------------------------------------------------------------------------------------------------------


def _with_gradient(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    padded: bool = True,
) -> SparseCodes:
    chosen = SparseCodes(values, indices, offsets, W_enc.shape[1])
    with_grad: Tensor = _Encode.apply(x, W_enc, b_enc, chosen, padded)  # type: ignore[no-untyped-call]
    if with_grad.requires_grad:
        _ = chosen.by_latent, chosen.row_of_pair  # one sort for the encoder and the decoder
    return chosen.with_values(with_grad)


def _bags(pairs: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of `rows[pairs]`, one per bag of pairs."""
    return embedding_bag(pairs, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _Encode(torch.autograd.Function):
    """Selected values as a function of x, W_enc and b_enc; the choice itself has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, _b_enc: Tensor, chosen: SparseCodes, padded: bool) -> Tensor:
        ctx.save_for_backward(x, W_enc, chosen.values)
        ctx.chosen, ctx.padded = chosen, padded
        return chosen.values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, values = ctx.saved_tensors
        chosen: SparseCodes = ctx.chosen
        grad = torch.where(values != 0, grads[0], 0.0) if ctx.padded else grads[0].contiguous()
        for_x = for_W = for_b = None
        if ctx.needs_input_grad[0]:
            for_x = _bags(chosen.indices, W_enc.t().contiguous(), chosen.offsets, grad)
        if ctx.needs_input_grad[1]:
            order, bounds = chosen.by_latent
            for_W = _bags(chosen.row_of_pair[order], x, bounds, grad[order]).t()
        if ctx.needs_input_grad[2]:
            for_b = _sum_by_latent(grad, chosen)
        return for_x, for_W, for_b, None, None


def _sum_by_latent(per_pair: Tensor, codes: SparseCodes) -> Tensor:
    return per_pair.new_zeros(codes.dict_size).index_add_(0, codes.indices, per_pair)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, per_latent: Tensor, codes: SparseCodes) -> Tensor:
        ctx.codes = codes
        return per_latent[codes.indices]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_by_latent(grads[0], ctx.codes), None


class _Decode(torch.autograd.Function):
    """embedding_bag with its own gradient for the values and segment sums, not scattered rows, for W_dec."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, codes: SparseCodes) -> Tensor:
        ctx.save_for_backward(values)
        ctx.codes = codes
        ctx.free = values.detach().requires_grad_(values.requires_grad)
        with torch.enable_grad():
            ctx.inner = _bags(codes.indices, W_dec.detach(), codes.offsets, ctx.free)
        x_hat: Tensor = ctx.inner.detach()
        return x_hat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        codes: SparseCodes = ctx.codes
        grad = grads[0].contiguous()
        for_values = for_W = None
        if ctx.needs_input_grad[0]:
            (for_values,) = torch.autograd.grad(ctx.inner, ctx.free, grad, retain_graph=True)
        if ctx.needs_input_grad[1]:
            order, bounds = codes.by_latent
            for_W = _bags(codes.row_of_pair[order], grad, bounds, values[order])
        return for_values, for_W, None
