"""Work on the threads of this process: compiled loops and numpy's products release the lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from saebench.cores import count_cores


def on_threads(work: Callable[[slice], None], rows: int) -> None:
    """Run `work` on slices of the rows, a few per core: some rows take longer than others."""
    threads = min(count_cores(), rows)
    if threads <= 1:
        work(slice(0, rows))
        return
    pieces = min(rows, 4 * threads)
    bounds = [rows * n // pieces for n in range(pieces + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [slice(low, high) for low, high in pairwise(bounds)]))
