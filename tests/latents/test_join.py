"""Rows by which results join the user's own table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from saebench.latents.corpus import Part


def test_a_text_is_known_by_its_row_in_the_data_set_and_by_its_row_in_the_entry_if_that_is_lost() -> None:
    """Rows 1 and 3 of the data set were left out (a duplicate and an empty text)."""
    rows = np.array([0, 2, 4, 5])
    entry: Any = SimpleNamespace(row_numbers=lambda index: rows[index].tolist())
    assert Part("test", entry, np.array([1, 3])).row_numbers == [2, 5]

    def lost(_: object) -> list[int]:
        raise OSError

    assert Part("test", SimpleNamespace(row_numbers=lost), np.array([1, 3])).row_numbers == [1, 3]  # type: ignore[arg-type]
