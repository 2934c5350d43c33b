"""What every contestant works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 1_000_000
"""Length of the run that schedules are made for; nobody gets there."""


@dataclass(frozen=True)
class Work:
    """The same for every contestant."""

    batch: int
    d_in: int
    dict_size: int
    k: int
    rows: Tensor
    """(4 batches, d_in) float32, on the device that is measured."""

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def batches(self) -> Iterator[Tensor]:
        while True:
            yield from torch.split(self.rows, self.batch)

    def __str__(self) -> str:
        return f"Batch {self.batch}, d_in {self.d_in}, dict_size {self.dict_size}, k {self.k}"


def make_work(batch: int, d_in: int, dict_size: int, k: int, device: str = "cpu") -> Work:
    """Unit vectors around a common mean, as sentence embeddings are; the same on every device."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * batch, d_in, generator=g) @ torch.randn(d_in, d_in, generator=g) + 3.0
    return Work(batch, d_in, dict_size, k, torch.nn.functional.normalize(rows, dim=1).to(device))
