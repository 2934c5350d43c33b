"""BatchTopK whose nested prefixes each reconstruct the input (Bussmann et al. 2025, 2503.17547)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.config import MatryoshkaConfig, nested_widths
from saebench.saes import sparse
from saebench.saes.batchtopk import BatchSparseSAE
from saebench.saes.lr_rule import LrRule
from saebench.saes.sparse import SparseCodes


class MatryoshkaSAE(BatchSparseSAE):
    """Latents are selected from the whole dictionary as in BatchTopK; the loss is the mean, over the nested prefixes
    of the dictionary, of the FVU of the reconstruction from the prefix's latents, plus AuxK on the full one."""

    default_encoder_decay = 2.0
    """The whole code is only one of the levels that train: more of the decay pays (experiments/recipe)."""
    lr_rule = LrRule(share=0.85, l0=-1 / 8, width=3 / 8, width_by_l0=-1 / 6, steps=1 / 12)

    config: MatryoshkaConfig
    level_starts: Tensor

    def __init__(self, config: MatryoshkaConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.levels = nested_widths(config.groups, self.dict_size)
        self.register_buffer("level_starts", torch.tensor([0, *self.levels[:-1]]), persistent=False)

    def errors(self, z: Tensor, codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
        parts = sparse.decode(codes.cut(self.level_starts), self.W_dec).view(len(z), len(self.levels), self.d_in)
        total, last = NestedError.apply(parts, z - self.b_dec)  # type: ignore[no-untyped-call]
        return total / (len(self.levels) * len(z) * self.variance), self.share(last), last.neg_()


class NestedError(torch.autograd.Function):
    """Running sums over the levels of parts (B, L, d), each against a target (B, d): (squared error of all of them,
    error of the last (B, d), which has no gradient).

    A part is in the sums of its own level and all later ones: its gradient is twice the sum of their errors.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        errors = torch.empty_like(parts)
        torch.sub(parts[:, 0], target, out=errors[:, 0])
        for level in range(1, parts.shape[1]):
            torch.add(errors[:, level - 1], parts[:, level], out=errors[:, level])
        ctx.save_for_backward(errors)
        last = errors[:, -1].clone()
        ctx.mark_non_differentiable(last)
        return torch.linalg.vector_norm(errors).square(), last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (errors,) = ctx.saved_tensors
        to_parts = errors * (2 * grads[0])
        for level in range(errors.shape[1] - 2, -1, -1):
            to_parts[:, level] += to_parts[:, level + 1]
        return to_parts, -to_parts[:, 0]
