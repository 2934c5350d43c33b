"""Where the processor time of a training step goes, part by part, and how far each part is from its memory floor."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

PARTS: dict[str, tuple[str, ...]] = {
    "encoder product": ("saebench.saes.kernels_groups:affine_no_grad", "saebench.saes.kernels_select:affine_no_grad"),
    "selection": ("saebench.saes.sparse:encode_topk", "saebench.saes.sparse:encode_batchtopk"),
    "decode and gradient to b_dec": ("saebench.saes.sparse:combine",),
    "gradient to the codes": ("saebench.saes.sparse:dots",),
    "gradients of the weights": ("saebench.saes.sparse:collect",),
    "gradients of the biases": ("saebench.saes.sparse:sum_by_latent",),
    "AuxK": ("saebench.saes.ksparse:KSparseSAE.auxk",),
    "zeroing": ("saebench.trial.trainer:stash_gradients",),
    "projection": ("saebench.saes.base:SAE.project_gradient",),
    "clipping": ("saebench.trial.optim:clip_gradients",),
    "Adam": ("torch.optim:Adam.step",),
    "decoder norm": ("saebench.saes.base:SAE.constrain",),
    "bookkeeping": ("saebench.trial.trainer:Training._remember",),
}
"""Functions whose time is a part's, without that of the functions of other parts that they call."""
REST = "the rest"
FLOORS: dict[str, tuple[float, float]] = {
    "selection": (0, 4),
    "gradients of the weights": (4, 0),
    "projection": (6, 0),
    "clipping": (4, 0),
    "Adam": (28, 0),
    "decoder norm": (4, 0),
}
"""Bytes that must move, per weight (of W_enc and W_dec together) and per pre-activation. A gradient is written, and
read for the norm; the projection reads it and the decoder and writes it, for half of the weights; Adam reads p, g, m, v
and writes p, m, v; the decoder is read and written once more; each pre-activation is read once to choose."""


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
                stack.enter_context(patch.object(owner, last, clock.timed(part, getattr(owner, last))))
        for _ in range(3):
            step()
        clock.lap()
        for _ in range(rounds):
            step()
            laps.append(clock.lap())
    return {part: statistics.median(lap.get(part, 0.0) for lap in laps) for part in [*PARTS, REST]}


def floors(batch: int, d_in: int, dict_size: int) -> dict[str, float]:
    """Milliseconds that the bytes of each part take at the bandwidth of a copy of a weight matrix, measured now."""
    bandwidth = copy_bandwidth(d_in * dict_size)
    weights, pre_activations = 2 * d_in * dict_size, batch * dict_size
    return {part: (w * weights + p * pre_activations) / bandwidth for part, (w, p) in FLOORS.items()}


def copy_bandwidth(numbers: int) -> float:
    """Bytes per millisecond, read and written, of copying so many float32 from one place to another."""
    source, target = torch.ones(numbers), torch.ones(numbers)
    times = []
    for _ in range(9):
        start = time.process_time()
        target.copy_(source)
        times.append(time.process_time() - start)
    return 8 * numbers / (1e3 * statistics.median(times))


def parts_table(kind: str, measured: dict[int, tuple[dict[str, float], dict[str, float]]]) -> list[str]:
    """Rows of parts, columns of widths: milliseconds (floor). `measured`: (parts, floors) by width."""
    widths = list(measured)
    lines = [f"| {kind}, cpu-ms | {' | '.join(str(w) for w in widths)} |", f"| --- |{' ---: |' * len(widths)}"]
    for part in [*PARTS, REST]:
        if max(measured[w][0][part] for w in widths) >= 0.1:
            cells = [_cell(measured[w][0][part], measured[w][1].get(part)) for w in widths]
            lines.append(f"| {part} | {' | '.join(cells)} |")
    beyond = {w: sum(parts.values()) - parts["encoder product"] for w, (parts, _) in measured.items()}
    lines.append(f"| all but the encoder product | {' | '.join(f'{beyond[w]:.1f}' for w in widths)} |")
    return lines


def _cell(milliseconds: float, floor: float | None) -> str:
    return f"{milliseconds:.1f}" if floor is None else f"{milliseconds:.1f} ({floor:.1f})"
