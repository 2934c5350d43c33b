"""Where the processor time of a training step goes, part by part, and how far each part is from its memory floor."""

from __future__ import annotations

import importlib
import inspect
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

PARTS: dict[str, tuple[str, ...]] = {
    "encoder product": ("saebench.saes.kernels_select:affine_no_grad",),
    "selection": ("saebench.saes.sparse:encode_topk", "saebench.saes.sparse:encode_batchtopk"),
    "decode and gradient to b_dec": ("saebench.saes.sparse:combine",),
    "gradient to the codes": ("saebench.saes.sparse:dots",),
    "gradients of the weights": ("saebench.saes.sparse:collect",),
    "gradients of the biases": ("saebench.saes.sparse:sum_by_latent",),
    "AuxK": ("saebench.saes.ksparse:KSparseSAE.auxk",),
    "zeroing": ("saebench.trainer:lend",),
    "projection": ("saebench.saes.base:SAE.project_gradient",),
    "clipping": ("saebench.optim:clip_gradients",),
    "Adam": ("torch.optim:Adam.step",),
    "decoder norm": ("saebench.saes.base:SAE.constrain",),
    "bookkeeping": ("saebench.trainer:Training._remember", "saebench.trainer:Training._without_calibration"),
}
"""Functions whose time is a part's, without that of the functions of other parts that they call."""
REST = "the rest"
BYTES = {"Adam": 28, "clipping": 4, "gradients of the weights": 4, "decoder norm": 4, "projection": 4}
"""Bytes per weight of W_enc and W_dec together that must move at least."""


class Clock:
    """Processor time by part: each moment counts for the innermost part that runs."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._stack, self._since = [REST], time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._stack.pop()

        return call

    def lap(self) -> dict[str, float]:
        """Milliseconds by part since the last lap."""
        self._turn()
        spent, self.spent = {part: 1e3 * s for part, s in self.spent.items()}, defaultdict(float)
        return spent


def measure_parts(step: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median milliseconds of every part over the rounds, on one thread."""
    torch.set_num_threads(1)
    clock, laps = Clock(), []
    with ExitStack() as stack:
        for part, names in PARTS.items():
            for name in names:
                module, _, path = name.partition(":")
                owner: Any = importlib.import_module(module)
                *outer, last = path.split(".")
                for attribute in outer:
                    owner = getattr(owner, attribute)
                original = inspect.getattr_static(owner, last)
                plain = original.__func__ if isinstance(original, staticmethod) else original
                timed: Any = clock.timed(part, plain)
                stack.enter_context(
                    patch.object(owner, last, staticmethod(timed) if isinstance(original, staticmethod) else timed)
                )
        for _ in range(3):
            step()
        clock.lap()
        for _ in range(rounds):
            step()
            laps.append(clock.lap())
    return {part: statistics.median(lap.get(part, 0.0) for lap in laps) for part in [*PARTS, REST]}


def copy_bandwidth(numbers: int) -> float:
    """Bytes per millisecond, read and written, of copying so many float32 from one place to another."""
    source, target = torch.ones(numbers), torch.ones(numbers)
    times = []
    for _ in range(9):
        start = time.process_time()
        target.copy_(source)
        times.append(time.process_time() - start)
    return 8 * numbers / (1e3 * statistics.median(times))
