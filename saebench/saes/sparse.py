"""The k-sparse step: encode and select, decode, and both gradients, through (values, indices) only.

    codes = encode_topk(x, W_enc, b_enc, k)            # exactly k latents per row
    codes = encode_batchtopk(x, W_enc, b_enc, k)       # round(k * rows) latents in the whole batch
    x_hat = decode(codes, W_dec, b_dec)                # (rows, d_in)

`codes.values` carries the gradient to x, W_enc and b_enc, through the selected pairs only. No dense codes are kept:
pre-activations are computed for one chunk of rows at a time and discarded, and `decode`, its backward and the encoder's
backward read only the selected pairs (on a CPU, if these are a large share of the latents, they are made dense for a
few rows at a time).

Selection is exact: the set a full sort would give. Only positive pre-activations count (`signed=True` keeps negative
ones, for AuxK); if a row or batch has fewer, the rest of `values` is 0 and has no gradient. Equal values: the lower
latent wins in a row, the lower row and then the lower latent in a batch. NaN sorts above everything, so that it
reaches the loss.

W_enc is (d_in, dict_size); as the transpose of a contiguous tensor, `nn.Parameter(torch.empty(dict_size, d_in).t())`,
it is read and its gradient written row by row. Gradients go to memory that `kernels.stash_gradients` keeps, if it was
called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.saes import kernels_select as select
from saebench.saes.kernels import Precision, affine, gradient_buffer, on_host
from saebench.saes.kernels_codes import MOST_PAIRS, collect, combine, dots, sum_by_latent
from saebench.saes.kernels_codes import Codes as Codes
from saebench.saes.kernels_codes import DenseCodes as DenseCodes
from saebench.saes.kernels_codes import SparseCodes as SparseCodes


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    precision: Precision = "float32",
    *,
    among: Tensor | None = None,
    signed: bool = False,
    magnitude: bool = False,
) -> SparseCodes:
    """Return the k largest pre-activations x @ W_enc + b_enc of every row; x (rows, d_in). `magnitude`: the k of
    largest magnitude, sign kept.

    `among` (dict_size,) bool restricts the selection (AuxK: to the dead latents); a row then has min(k, allowed) pairs
    on the CPU, and k pairs, padded with 0, on a GPU, where counting would need a sync.
    """
    _check(x, W_enc, b_enc)
    if not 1 <= k <= W_enc.shape[1]:
        raise ValueError(f"k = {k}: must be between 1 and dict_size = {W_enc.shape[1]}")
    if magnitude and among is not None:
        raise ValueError("among: must be None with magnitude=True, which chooses from all latents")
    signed = signed or magnitude
    with torch.no_grad():
        if magnitude:
            values, indices = select.topk_by_magnitude(x, W_enc, b_enc, k, precision)
        elif among is None:
            values, indices = select.topk(x, W_enc, b_enc, k, precision, signed)
        elif on_host(x):
            some = among.nonzero().squeeze(1)
            W, b = W_enc.t()[some].t(), b_enc[some]
            values, indices = select.topk(x, W, b, min(k, some.numel()), precision, signed)
            indices = some[indices]
        else:
            values, indices = select.topk(x, W_enc, b_enc.masked_fill(~among, -torch.inf), k, precision, signed)
            values = values.masked_fill(values.isneginf(), 0.0)
        values = values if signed else values.relu()
        offsets = torch.arange(x.shape[0] + 1, device=x.device) * values.shape[1]
    return _with_gradient(x, W_enc, b_enc, values.flatten(), indices.flatten(), offsets)


def encode_batchtopk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: float, precision: Precision = "float32"
) -> SparseCodes:
    """Return the round(k * rows) largest pre-activations of the whole batch, in order of row and latent."""
    _check(x, W_enc, b_enc)
    pairs = round(k * x.shape[0])
    if not 1 <= pairs <= x.shape[0] * W_enc.shape[1]:
        raise ValueError(
            f"k = {k}: {pairs} values to keep; must be between 1 and {x.shape[0]} rows x {W_enc.shape[1]} latents"
        )
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


def encode_above(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor | float = 0.0, precision: Precision = "float32"
) -> Codes:
    """Return the pre-activations x @ W_enc + b_enc above `floor`, a scalar or one per latent (dict_size,). This
    suffices for architectures with a threshold whose loss and gradient are 0 at and below it.

    Returns dense codes if pairs would cost more, and on a GPU, where counting pairs would need a sync. Dense codes hold
    every pre-activation, also those below the floor: apply the threshold to `values` in both cases.
    """
    _check(x, W_enc, b_enc)
    found = None
    if on_host(x):
        with torch.no_grad():
            found = select.above(x, W_enc, b_enc, torch.as_tensor(floor, dtype=x.dtype), MOST_PAIRS, precision)
    if found is None:
        return DenseCodes(affine(x, W_enc, b_enc, precision))
    values, places = found
    dict_size = W_enc.shape[1]
    offsets = torch.searchsorted(places, torch.arange(x.shape[0] + 1) * dict_size)
    return _with_gradient(x, W_enc, b_enc, values, places % dict_size, offsets, padded=False)


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Return (rows, d_in): the decoder's rows summed with the codes as weights; W_dec (dict_size, d_in)."""
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
    if not x.dtype == W_enc.dtype == b_enc.dtype == torch.float32:
        raise TypeError(f"x, W_enc and b_enc must be float32, not {x.dtype}, {W_enc.dtype}, {b_enc.dtype}")


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
    if with_grad.requires_grad and not chosen.crowded:
        _ = chosen.by_latent, chosen.row_of_pair, on_host(values) or chosen.pieces  # once for encoder and decoder
    return chosen.with_values(with_grad)


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
        for_x, for_W, for_b, *_ = ctx.needs_input_grad
        return (
            combine(chosen, grad, W_enc.t().contiguous()) if for_x else None,
            collect(chosen, grad, x, gradient_buffer(W_enc).t()).t() if for_W else None,
            sum_by_latent(grad, chosen) if for_b else None,
            None,
            None,
        )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, codes: SparseCodes) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.codes = codes
        return combine(codes, values, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        return (
            dots(ctx.codes, grad, W_dec) if ctx.needs_input_grad[0] else None,
            collect(ctx.codes, values, grad, gradient_buffer(W_dec)) if ctx.needs_input_grad[1] else None,
            None,
        )
