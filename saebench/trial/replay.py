"""The same work again and again on a GPU, recorded once as a CUDA graph and replayed.

A training step of these sizes is a hundred short kernels: the GPU is done with each before the host has launched the
next. A replay launches them all at once, and the host is free.
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
"""Takes a batch and a few numbers (n,) float64, both on the device; changes tensors in place."""
WARM_UP = 3
"""Calls of a kind that are made as they are before one is recorded: libraries and the optimiser set themselves up."""


class Recorder(Protocol):
    """How work becomes something to replay (`CudaRecorder`)."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """In it work runs where it would be recorded, and in order with what is before and after."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do not run `work`, but keep what it asks the device to do; calling the result does that."""


class CudaRecorder:
    """CUDA graphs on one stream, in memory that they share: they never run side by side."""

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
        # Other threads (a store that reads ahead) go on copying. A recording that fails may leave its stream set.
        with (
            torch.cuda.stream(before),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay


@dataclass(frozen=True)
class _Recording:
    """Work that reads `batch` and `numbers` and leaves its metrics in `values` (len(names),) float64."""

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
        values = self.values.clone()  # the next replay writes over them
        return dict(zip(self.names, values.unbind(), strict=True)) | self.constants


class Replay:
    """Runs a step: the first `WARM_UP` calls of a kind as they are, the next is recorded, later ones are replayed.

    The step must be a function of its arguments and of tensors that stay where they are in memory, wait for no number,
    and keep nothing in Python; what of that differs from call to call is its kind. `forget` what was recorded when such
    a tensor is put elsewhere. Where recording fails, the step runs as it is from then on, and a warning says why.
    """

    def __init__(self, step: Step, recorder: Recorder, device: torch.device, prepare: Callable[[], None]) -> None:
        """prepare: called before a recording and after one that failed, to release the gradients' memory."""
        self._step, self._recorder, self._device, self._prepare = step, recorder, device, prepare
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recording] = {}
        self._failed = False

    def __call__(self, kind: Hashable, x: Tensor, numbers: tuple[float, ...]) -> Metrics:
        """One step on x (B, d_in); calls of the same kind are alike but for the values of x and numbers."""
        kind, asked = (kind, x.shape), torch.tensor(numbers, dtype=torch.float64)
        if kind not in self._recorded and not self._failed and self._seen.get(kind, 0) >= WARM_UP:
            self._record(kind, x, asked)
        if kind in self._recorded:
            return self._recorded[kind](x, asked)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        with self._recorder.aside():
            return self._step(x, asked.to(self._device, non_blocking=True))

    def forget(self) -> None:
        """What the step reads has moved."""
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
        except RuntimeError as error:  # out of memory too: without recordings there may be enough
            self._failed = True
            self._prepare()
            reason = str(error.__context__ or error).partition("\n")[0]  # ending a failed recording fails as well
            warnings.warn(f"no CUDA graph of the training step, which is slower without: {reason}", stacklevel=2)
            return
        names, values, constants = made[0]
        self._recorded[kind] = _Recording(batch, numbers, replay, names, values, constants)
