"""TopK trained for every number of latents up to k at once (Balagansky et al. 2025, arXiv 2505.24473)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import HierarchicalTopKConfig
from saebench.saes import sparse
from saebench.saes.kernels import Precision
from saebench.saes.kernels_select import keys_of, topk_of
from saebench.saes.ksparse import KSparseSAE
from saebench.saes.lr_rule import LrRule
from saebench.saes.matryoshka import NestedError
from saebench.saes.sparse import SparseCodes


class HierarchicalTopKSAE(KSparseSAE):
    """latents = relu of the k largest pre-activations of each example; the loss is the mean over j = 1, ..., k of the
    FVU of the reconstruction from the j largest, plus AuxK on the one from all k."""

    lr_rule = LrRule(share=0.95, l0=-1 / 6, width=1 / 4, width_by_l0=-5 / 24, steps=1 / 12)

    config: HierarchicalTopKConfig

    def activate(self, pre: Tensor) -> Tensor:
        return self.activate_at(pre, self.config.k)

    def activate_at(self, pre: Tensor, k: int) -> Tensor:
        """Return latents (B, dict_size) of which at most `k` fire per example."""
        _, indices = topk_of(pre.detach().float(), k)
        return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices).relu())

    def select(self, centred: Tensor, precision: Precision = "float32", k: float | None = None) -> SparseCodes:
        return sparse.encode_topk(centred, self.W_enc, self.b_enc, round(k or self.config.k), precision)

    def errors(self, z: Tensor, codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
        pairs = codes.indices.numel()
        parts = sparse.decode(one_per_row(codes), self.W_dec).view(len(z), pairs // len(z), self.d_in)
        total, last = NestedError.apply(parts, z - self.b_dec)  # type: ignore[no-untyped-call]
        return total / (pairs * self.variance), self.share(last), last.neg_()


def one_per_row(codes: SparseCodes) -> SparseCodes:
    """Return codes of B rows with k pairs each as codes of B * k rows with one pair each: of every row first the
    largest value, of equal values that of the lower latent."""
    shape = (codes.rows, codes.indices.numel() // codes.rows)
    indices = codes.indices.view(shape)
    order = keys_of(codes.values.detach().view(shape), indices).argsort(dim=1, descending=True)
    values = codes.values.view(shape).gather(1, order).flatten()
    offsets = torch.arange(values.numel() + 1, device=values.device)
    return SparseCodes(values, indices.gather(1, order).flatten(), offsets, codes.dict_size)
