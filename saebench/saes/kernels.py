"""Matrix products by the fastest available library.

On a CPU torch computes float32 products with MKL, which on processors not made by Intel is half as fast as oneDNN; both
come with torch. Elsewhere (CUDA, MPS, builds without oneDNN) this is plain `addmm`. The choice depends only on the
build and the shapes, never on a timing, so that a resumed run computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
_BLOCK = 1 << 18
"""Numbers in a block (1 MiB)."""
_STASHED, _DEFERRED = "_lent_gradient", "_later_gradients"


def on_host(tensor: Tensor) -> bool:
    """Return whether the host can read this tensor without waiting for a device. If not, a training step must not have
    shapes that depend on values, nor copies to or from the host, so that it can be recorded as a CUDA graph."""
    return tensor.device.type == "cpu"


def _onednn() -> bool:
    """Return whether oneDNN's dense-in, dense-out linear exists and is correct (checked on a product of integers)."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        a, b = torch.arange(6.0, dtype=torch.float32).view(2, 3), torch.arange(12.0, dtype=torch.float32).view(4, 3)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), a @ b.t())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_ONEDNN = _onednn()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a (n, m) @ b (m, p) + bias (p,), without a gradient; operands may be transposed views."""
    fits = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and a.numel() and b.numel()
    if _ONEDNN and fits and not torch.compiler.is_compiling():  # inductor lowers constant weights only
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
        return result
    return a @ b if bias is None else torch.addmm(bias, a, b)


def blocks(rows: int, width: int, device: torch.device) -> list[slice]:
    """Return slices of the rows of a (rows, width) tensor, small enough that results per slice stay in the processor's
    cache and in memory that is reused: a page fresh from the system costs ten times as much as writing to it."""
    size = max(1, _BLOCK // max(1, width)) if device.type == "cpu" else max(1, rows)
    return [slice(low, min(low + size, rows)) for low in range(0, rows, size)]


def stash_gradients(parameters: Iterable[Tensor]) -> None:
    """Clear the gradients of these parameters, as `zero_grad` does, and keep their memory for `gradient_buffer`. Call
    `add_deferred_gradients` after the backward pass."""
    for parameter in parameters:
        vars(parameter)[_STASHED], parameter.grad = parameter.grad, None
        vars(parameter)[_DEFERRED] = []


def add_deferred_gradients(parameters: Iterable[Tensor]) -> None:
    """Add the gradients that `latents_of` deferred in the backward pass to the parameters' gradients."""
    for parameter in parameters:
        vars(parameter).pop(_STASHED, None)
        for index, gradient, dim in vars(parameter).pop(_DEFERRED, ()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.transpose(0, dim).index_add_(0, index, gradient)


def gradient_buffer(weight: Tensor) -> Tensor:
    """Return memory for the gradient of `weight`, laid out as it is, uninitialised: the stashed gradient's the first
    time, then new memory."""
    stashed: Tensor | None = vars(weight).pop(_STASHED, None)
    if (
        stashed is None
        or stashed.shape != weight.shape
        or stashed.stride() != weight.stride()
        or stashed.device != weight.device
    ):
        return torch.empty_like(weight)
    return stashed


def latents_of(weight: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return `weight` at some latents (M,) along `dim` (0 or 1), in the memory layout of `weight`. The gradient is
    summed over M latents, not over all, if `stash_gradients` was called."""
    result: Tensor = _LatentsOf.apply(weight, index, dim)  # type: ignore[no-untyped-call]
    return result


class _LatentsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(weight, index)
        ctx.dim = dim
        return weight.transpose(0, dim).index_select(0, index).transpose(0, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        weight, index = ctx.saved_tensors
        gradient = grads[0].transpose(0, ctx.dim)
        later = vars(weight).get(_DEFERRED)
        if later is not None:
            later.append((index, gradient, ctx.dim))
            return None, None, None
        whole = torch.zeros_like(weight)
        whole.transpose(0, ctx.dim).index_add_(0, index, gradient)
        return whole, None, None


def affine_no_grad(x: Tensor, weight: Tensor, bias: Tensor, precision: Precision = "float32") -> Tensor:
    """Return x (n, d) @ weight (d, p) + bias (p,) as float32; `precision` applies to the product only."""
    if precision == "float32":
        return product(x, weight, bias)
    return product(x.bfloat16(), weight.bfloat16()).float().add_(bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor, precision: Precision = "float32") -> Tensor:
    """Return `affine_no_grad` with gradients (computed in float32) to all three."""
    result: Tensor = _Affine.apply(x, weight, bias, precision)  # type: ignore[no-untyped-call]
    return result


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, precision: Precision) -> Tensor:
        ctx.save_for_backward(x, weight)
        return affine_no_grad(x, weight, bias, precision)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            _outer(x, grad, weight) if for_weight else None,
            grad.sum(0) if for_bias else None,
            None,
        )


def _outer(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Return x^T grad (d, p) in the memory layout of `weight`, so that autograd keeps it without a copy."""
    return product(x.t(), grad) if weight.is_contiguous() else product(grad.t(), x).t()
