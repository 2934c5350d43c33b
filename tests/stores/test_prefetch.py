"""A thread that works ahead changes when things happen, not what."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from saebench.stores.prefetch import prefetch


def test_items_come_in_order_and_at_most_depth_ahead() -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(20):
            made.release()
            yield i

    found = prefetch(items(), 3)
    assert next(found) == 0
    for _ in range(1 + 3 + 1):
        assert made.acquire(timeout=30), "taken, waiting, and one in the making"
    assert not made.acquire(timeout=0.1), "and no more than that"
    assert list(found) == list(range(1, 20))


def test_an_error_arrives_where_the_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    found = prefetch(items(), 2)
    assert next(found) == 1
    with pytest.raises(KeyError, match="broken"):
        next(found)


def test_closing_ends_the_thread() -> None:
    makers = []

    def items() -> Iterator[int]:
        makers.append(threading.current_thread())
        yield from itertools.count()

    found = prefetch(items(), 2)
    assert next(found) == 0
    assert makers[0].is_alive()
    found.close()  # type: ignore[attr-defined]
    makers[0].join(30)
    assert not makers[0].is_alive()
    assert makers[0] is not threading.current_thread()
