"""Rows in memory that wait to be written."""

from __future__ import annotations

import torch
from torch import Tensor


class Pending:
    """A queue of rows in one piece of memory: adding one and reading one take the same time however many there are."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self._data = torch.empty(0, width, dtype=dtype)
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def rows(self) -> Tensor:
        """(len, width); a view, good until the next `put`."""
        return self._data[self._start : self._end]

    def put(self, rows: Tensor) -> None:
        if self._end + len(rows) > len(self._data):
            old = self.rows
            self._data = self._data.new_empty(max(2 * len(old), len(old) + len(rows)), self._data.shape[1])
            self._data[: len(old)] = old
            self._start, self._end = 0, len(old)
        self._data[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

    def drop(self, count: int) -> None:
        """Forget the first `count` rows."""
        self._start += count
