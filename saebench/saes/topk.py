"""Exactly k latents per example (Gao et al. 2024, 2406.04093)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import TopKConfig
from saebench.saes import sparse
from saebench.saes.kernels import Precision
from saebench.saes.kernels_select import topk_of
from saebench.saes.ksparse import KSparseSAE
from saebench.saes.lr_rule import LrRule
from saebench.saes.sparse import SparseCodes


class TopKSAE(KSparseSAE):
    """latents = relu of the k largest pre-activations of each example (fewer if fewer are positive)."""

    lr_rule = LrRule(share=0.9, l0=-1 / 12, width=5 / 24, width_by_l0=-1 / 6, steps=1 / 8)

    config: TopKConfig

    def activate(self, pre: Tensor) -> Tensor:
        _, indices = topk_of(pre.detach().float(), self.config.k)  # breaks ties as training does
        return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices).relu())

    def select(self, centred: Tensor, precision: Precision = "float32", k: float | None = None) -> SparseCodes:
        return sparse.encode_topk(centred, self.W_enc, self.b_enc, round(k or self.config.k), precision)
