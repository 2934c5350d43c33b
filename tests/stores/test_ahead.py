"""A thread that works ahead changes when things happen, not what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from saebench.stores.ahead import ahead


def test_items_come_in_order_and_at_most_depth_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    found = ahead(items(), 3)
    assert next(found) == 0
    time.sleep(0.05)
    assert len(made) <= 1 + 3 + 1, "taken, waiting, and one in the making"
    assert list(found) == list(range(1, 20))


def test_an_error_arrives_where_the_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    found = ahead(items(), 2)
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    found = ahead(iter(range(1_000_000)), 2)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    time.sleep(0.3)
    assert threading.active_count() == before
