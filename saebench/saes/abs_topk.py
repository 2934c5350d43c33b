"""The k latents of largest magnitude of each example, sign kept (arXiv 2510.00404)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import AbsTopKConfig
from saebench.saes import sparse
from saebench.saes.kernels import Precision
from saebench.saes.kernels_select import by_magnitude
from saebench.saes.ksparse import KSparseSAE
from saebench.saes.lr_rule import LrRule
from saebench.saes.sparse import SparseCodes


class AbsTopKSAE(KSparseSAE):
    """latents = the k pre-activations of largest magnitude of each example, the others 0. A decoder row and its
    opposite are the two ends of one latent."""

    lr_rule = LrRule(share=0.7, l0=5 / 24, width=1 / 4, width_by_l0=-1 / 12)

    config: AbsTopKConfig

    def activate(self, pre: Tensor) -> Tensor:
        _, indices = by_magnitude(pre.detach().float(), self.config.k)  # breaks ties as training does
        return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices))

    def select(self, centred: Tensor, precision: Precision = "float32", k: float | None = None) -> SparseCodes:
        number = round(k or self.config.k)
        return sparse.encode_topk(centred, self.W_enc, self.b_enc, number, precision, magnitude=True)
