"""BatchTopK whose nested prefixes each reconstruct the input (Bussmann et al. 2025, 2503.17547)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from saebench.config import MatryoshkaConfig
from saebench.saes import sparse
from saebench.saes.batchtopk import BatchSparseSAE
from saebench.saes.sparse import SparseCodes


class MatryoshkaSAE(BatchSparseSAE):
    """Latents are chosen from the whole dictionary as BatchTopK does; the loss is the mean, over the nested prefixes
    of the dictionary, of the FVU of the reconstruction by the latents in the prefix, plus AuxK on the full one."""

    config: MatryoshkaConfig

    def __init__(self, config: MatryoshkaConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.levels = prefixes(config.groups, self.dict_size)

    def errors(self, z: Tensor, codes: SparseCodes) -> tuple[Tensor, Tensor]:
        z_hat, total = self.b_dec.expand_as(z), torch.zeros_like(self.variance)
        for low, high in pairwise((0, *self.levels)):
            inside = (codes.indices >= low) & (codes.indices < high)
            z_hat = z_hat + sparse.decode(codes.with_values(codes.values * inside), self.W_dec)
            total = total + self.fvu(z, z_hat)
        return total / len(self.levels), z_hat


def prefixes(groups: tuple[float, ...], dict_size: int) -> tuple[int, ...]:
    """Widths of the nested levels, strictly increasing, the last = dict_size. Raises ValueError for an empty one."""
    widths = [round(sum(groups[: i + 1]) / sum(groups) * dict_size) for i in range(len(groups))]
    if any(high <= low for low, high in pairwise((0, *widths))):
        raise ValueError(f"groups {groups} leave a level of {dict_size} latents empty")
    return tuple(widths)
