"""The k-sparse step against a full sort and dense float64 autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench.saes import sparse


def _weights(d_in: int, dict_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(dict_size, d_in, generator=g).t(), 0.1 * torch.randn(dict_size, generator=g)


def _rows(rows: int, d_in: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))


def _topk_by_sort(pre: Tensor, k: int) -> Tensor:
    """Dense codes by a full stable sort: among equals the lower latent wins."""
    best = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(pre).scatter(1, best, pre.gather(1, best).relu())


def _batchtopk_by_sort(pre: Tensor, pairs: int) -> Tensor:
    flat = pre.flatten()
    best = flat.sort(descending=True, stable=True).indices[:pairs]
    return torch.zeros_like(flat).scatter(0, best, flat[best].relu()).view_as(pre)


@pytest.mark.parametrize(
    ("rows", "d_in", "dict_size", "k"), [(1, 4, 8, 3), (37, 16, 96, 5), (64, 8, 61, 61), (3, 5, 7, 1)]
)
def test_topk_keeps_the_set_of_a_full_sort(rows: int, d_in: int, dict_size: int, k: int) -> None:
    x, (W, b) = _rows(rows, d_in), _weights(d_in, dict_size)
    torch.testing.assert_close(sparse.encode_topk(x, W, b, k).dense(), _topk_by_sort(x @ W + b, k))


@pytest.mark.parametrize(
    ("rows", "d_in", "dict_size", "k"), [(1, 4, 8, 3), (37, 16, 96, 5.3), (64, 8, 61, 61), (9, 5, 7, 0.5)]
)
def test_batchtopk_keeps_the_set_of_a_full_sort(rows: int, d_in: int, dict_size: int, k: float) -> None:
    x, (W, b) = _rows(rows, d_in), _weights(d_in, dict_size)
    want = _batchtopk_by_sort(x @ W + b, round(k * rows))
    torch.testing.assert_close(sparse.encode_batchtopk(x, W, b, k).dense(), want)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_gradients_equal_dense_float64_autograd(kind: str) -> None:
    x, (W, b), D = _rows(37, 16), _weights(16, 96), _weights(16, 96, 3)[0].t().contiguous()
    leaves = [t.clone().requires_grad_() for t in (x, W, b, D)]
    codes = (sparse.encode_topk if kind == "topk" else sparse.encode_batchtopk)(*leaves[:3], 5)
    target = _rows(37, 16, 7)
    (sparse.decode(codes, leaves[3]) - target).square().sum().backward()
    exact = [t.double().requires_grad_() for t in (x, W, b, D)]
    pre = exact[0] @ exact[1] + exact[2]
    kept = (codes.dense().detach() != 0).double()
    ((pre * kept) @ exact[3] - target.double()).square().sum().backward()
    for ours, dense in zip(leaves, exact, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.double(), dense.grad, rtol=1e-4, atol=1e-3)
