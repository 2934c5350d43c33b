"""Which implementation a pursuit runs on: numba kernels on the threads of a CPU, or torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor

from saebench.saes.kernels import on_host


@cache
def numba_kernels() -> ModuleType | None:
    try:
        from saebench.saes import pursuit_numba
    except ImportError as error:
        warnings.warn(f"numba: {error}: pursuits run in torch, six times as long: pip install numba", stacklevel=2)
        return None
    return pursuit_numba


def kernels_for(x: Tensor) -> ModuleType | None:
    return numba_kernels() if on_host(x) else None


def on_threads(work: Callable[[slice], None], rows: int) -> None:
    """Run `work` on slices of the rows, on as many threads as torch uses. Rows are independent, so the result does not
    depend on the number of threads."""
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1:
        work(slice(0, rows))
        return
    bounds = [rows * n // threads for n in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [slice(low, high) for low, high in pairwise(bounds)]))
