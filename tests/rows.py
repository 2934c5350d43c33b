"""A store for tests of trials: rows that a few directions explain, without texts, encoder or cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class RowsStore:
    """The surface of `ActivationsStoreSBERT` that a trial uses."""

    def __init__(self, batch_size: int, seed: int, rows: int = 600, d_in: int = 16, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(40, d_in, generator=generator)
        codes = torch.rand(rows + 200, 40, generator=generator) * (
            torch.rand(rows + 200, 40, generator=generator) < 0.1
        )
        everything = codes @ directions + 0.01 * torch.randn(rows + 200, d_in, generator=generator)
        self._train, self._validation = everything[:rows], everything[rows:]
        self._test = self._validation[:100] + 0.01
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._epoch = self._at = 0
        self._served = torch.arange(rows)

    d_in = property(lambda self: self._train.shape[1])
    num_train = property(lambda self: len(self._train))
    num_validation = property(lambda self: len(self._validation))
    num_test = property(lambda self: len(self._test))

    def _order(self) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1000 + self._epoch)
        return self._served[torch.randperm(len(self._served), generator=generator)]

    def next_batch(self) -> Tensor:
        parts: list[Tensor] = []
        missing = self._batch_size
        while missing:
            part = self._order()[self._at : self._at + missing]
            parts.append(self._train[part])
            missing -= len(part)
            self._at += len(part)
            if self._at == len(self._served):
                self._epoch, self._at = self._epoch + 1, 0
        return torch.cat(parts).to(self._device)

    def sample(self, n: int) -> Tensor:
        return self._train[:n].to(self._device)

    def set_aside(self, _: int, places: Tensor) -> None:
        rest = torch.ones(len(self._train), dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self._validation.to(self._device).split(batch_size)

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self._test.to(self._device).split(batch_size)

    def train_labels(self, _: int) -> None:
        return None

    def validation_labels(self) -> None:
        return None

    def test_labels(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._at = state["epoch"], state["at"]


def open_rows(
    data: object, *, batch_size: int, seed: int, device: str, cache_dir: object, cache_key: object
) -> RowsStore:
    """In the place of `saebench.stores.open_store`."""
    del data, cache_dir, cache_key
    return RowsStore(batch_size, seed, device=device)
