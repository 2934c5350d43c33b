"""Which columns of a table a screen has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Column = TypeVar("Column")


def fitting(
    columns: Iterable[Column], drop: Callable[[Column], int], fits: Callable[[list[Column]], bool]
) -> list[Column]:
    """Return the columns that are left once they fit, in order. Those of the highest `drop` go first; of 0, never."""
    kept = list(columns)
    while kept and not fits(kept) and (most := max(map(drop, kept))) > 0:
        kept = [column for column in kept if drop(column) != most]
    return kept
