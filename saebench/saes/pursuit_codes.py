"""The codes and residuals of a pursuit, and the sweeps on the residual, in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pursuit:
    """The codes and residuals of N examples."""

    values: Tensor
    """(N, k) >= 0, in order of picking; 0 after the pursuit has stopped, and for picks that a refit has dropped."""
    indices: Tensor
    """(N, k) int64: rows of the dictionary; 0 after the pursuit has stopped."""
    gains: Tensor
    """(N, k): product of the pick with the residual at that time; 0 after the pursuit has stopped."""
    residual: Tensor
    """(N, d): x minus the reconstruction."""

    @classmethod
    def empty(cls, x: Tensor, k: int) -> Pursuit:
        """Return a pursuit of x (N, d) without picks."""
        zeros = x.new_zeros(len(x), k)
        return cls(zeros, torch.zeros_like(zeros, dtype=torch.int64), zeros.clone(), x.clone())

    def part(self, rows: slice) -> Pursuit:
        """Return views of some examples."""
        return Pursuit(self.values[rows], self.indices[rows], self.gains[rows], self.residual[rows])


def exact_sweeps(rows: Tensor, found: Pursuit, chosen: Tensor, n: int, times: int) -> None:
    for _ in range(times):
        for i in range(n):
            row = rows.index_select(0, found.indices[:, i])
            change = torch.maximum(-found.values[:, i], (found.residual * row).sum(1))
            change = torch.where(chosen[:, i], change, 0.0)
            found.values[:, i] += change
            found.residual.sub_(change.unsqueeze(1) * row)
