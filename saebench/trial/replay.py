"""Record a repeated GPU step once as a CUDA graph and replay it.

A training step of these sizes is a hundred short kernels: the GPU finishes each before the host has launched the next.
A replay launches them all with one call.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Metrics = dict[str, Tensor | float]
Step = Callable[[Tensor, Tensor], Metrics]
"""Takes a batch and a few numbers (n,) float64, both on the device; modifies tensors in place."""
WARM_UP = 3
"""Unrecorded calls of a kind before one is recorded: libraries and the optimiser initialise lazily in them."""


class Recorder(Protocol):
    """Turns work into a callable that replays it (`CudaRecorder`)."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which work runs on the recording stream, ordered with the work before and after it."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the device operations of `work` without running them; return a function that runs them."""


class CudaRecorder:
    """CUDA graphs on one stream, in a shared memory pool: they never run concurrently."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._stream.device)
        # Thread-local: other threads (a store that prefetches) may copy meanwhile. A failed recording may leave its
        # stream current.
        with (
            torch.cuda.stream(before),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay


@dataclass(frozen=True)
class _Recording:
    """Recorded work that reads `batch` and `numbers` and writes its metrics to `values` (len(names),) float64."""

    batch: Tensor
    numbers: Tensor
    replay: Callable[[], None]
    names: tuple[str, ...]
    values: Tensor
    constants: dict[str, float]

    def __call__(self, x: Tensor, numbers: Tensor) -> Metrics:
        self.batch.copy_(x)
        self.numbers.copy_(numbers, non_blocking=True)
        self.replay()
        values = self.values.clone()  # the next replay overwrites them
        return dict(zip(self.names, values.unbind(), strict=True)) | self.constants


class Replay:
    """Runs a step: the first `WARM_UP` calls of a kind directly, the next is recorded, later ones are replayed.

    The step must depend only on its arguments and on tensors that keep their address, must not sync with the host, and
    must keep no state in Python; calls that differ in any of this need a different kind. Call `forget` after such a
    tensor was moved. If recording fails, the step runs directly from then on, with one warning that gives the reason.
    """

    def __init__(self, step: Step, recorder: Recorder, device: torch.device, prepare: Callable[[], None]) -> None:
        """prepare: called before a recording and after a failed one, to release the gradients' memory."""
        self._step, self._recorder, self._device, self._prepare = step, recorder, device, prepare
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recording] = {}
        self._failed = False

    def __call__(self, kind: Hashable, x: Tensor, numbers: tuple[float, ...]) -> Metrics:
        """Run one step on x (B, d_in); calls of the same kind may differ only in the values of x and numbers."""
        kind, asked = (kind, x.shape), torch.tensor(numbers, dtype=torch.float64)
        if kind not in self._recorded and not self._failed and self._seen.get(kind, 0) >= WARM_UP:
            self._record(kind, x, asked)
        if kind in self._recorded:
            return self._recorded[kind](x, asked)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        with self._recorder.aside():
            return self._step(x, asked.to(self._device, non_blocking=True))

    def forget(self) -> None:
        """Discard the recordings: call it after a tensor that the step reads was moved."""
        self._seen.clear()
        self._recorded.clear()

    def _record(self, kind: Hashable, x: Tensor, asked: Tensor) -> None:
        batch, numbers = torch.empty_like(x), torch.empty_like(asked, device=self._device)
        made: list[tuple[tuple[str, ...], Tensor, dict[str, float]]] = []

        def work() -> None:
            metrics = self._step(batch, numbers)
            tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
            constants = {name: value for name, value in metrics.items() if not isinstance(value, Tensor)}
            made.append((tuple(tensors), torch.stack([value.double() for value in tensors.values()]), constants))

        self._prepare()
        try:
            replay = self._recorder.record(work)
        except RuntimeError as error:  # includes out of memory: it may suffice without recordings
            self._failed = True
            self._prepare()
            reason = str(error.__context__ or error).partition("\n")[0]  # ending a failed recording raises, too
            warnings.warn(f"no CUDA graph of the training step, which is slower without: {reason}", stacklevel=2)
            return
        names, values, constants = made[0]
        self._recorded[kind] = _Recording(batch, numbers, replay, names, values, constants)
