"""Work in another thread. scipy's sparse products release the lock, so both threads run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def prefetched(work: Callable[[Given], Made], items: Sequence[Given]) -> Iterator[Made]:
    """Yield work(item) of every item in order, computing the next one while the caller uses this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(work, items[0]) if items else None
        for item in items[1:]:
            assert coming is not None
            ready, coming = coming.result(), pool.submit(work, item)
            yield ready
        if coming is not None:
            yield coming.result()
