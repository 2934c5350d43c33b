"""A training step as a GPU runs it: recorded once, then replayed.

Where no GPU is, a recorder does on the CPU what a CUDA graph does: it keeps each operation with the memory that it
reads and writes, and a replay runs the operations again without any of the Python around them. `on_host` is made to say
that nothing is, so that these are the operations that a GPU would be given.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_examples import K_SPARSE, TYPES
from test_trainer import OPTIONS, Rows, config, store
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saebench.saes import kernels_codes, kernels_select, omp, pursuit, pursuit_host, sparse
from saebench.trial import dead as dead_latents
from saebench.trial import optim
from saebench.trial.replay import WARM_UP, Metrics, Replay
from saebench.trial.trainer import Training

WAITS = {"_local_scalar_dense", "bincount", "equal", "is_nonzero", "item", "lift_fresh", "masked_select", "nonzero"}
"""Operations that wait for a number, or copy one from the host."""


class Kept(TorchDispatchMode):
    """Operations, and where their results lie."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
        assert name not in WAITS, f"{name} makes the host wait"
        assert not masks, "choosing by a mask makes the host wait"
        for declared, value in zip(func._schema.arguments, args, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                self._remember(value)
        result = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        fresh = [t.untyped_storage().data_ptr() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._made.update(place for place in fresh if place not in given)
        self.calls.append((func, args, kwargs, tree_leaves(result)))
        return result

    def _remember(self, written: Any) -> None:
        for tensor in tree_leaves(written):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._made and place not in self._before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[place] = whole, whole.clone()

    def undo(self) -> None:
        """A recording runs nothing: what was there before is as it was."""
        for tensor, before in self._before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """In the place of CudaRecorder."""

    def __init__(self) -> None:
        self.recorded = 0

    def aside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        kept = Kept()
        with kept:
            work()
        with torch.no_grad():
            kept.undo()
        self.recorded += 1
        return lambda: _without_gradient(kept.replay)


def _without_gradient(work: Callable[[], None]) -> None:
    with torch.no_grad():
        work()


class Refused(Recorder):
    says = RuntimeError("operation not permitted when stream is capturing\nand more")

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        super().record(work)  # in vain, but for what Python keeps of it
        raise self.says


class Full(Refused):
    says = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is on the host."""
    for module in (dead_latents, kernels_codes, kernels_select, omp, optim, pursuit, pursuit_host, sparse):
        monkeypatch.setattr(module, "on_host", lambda _: False)


def begin(kind: str, rows: Rows, recorder: Recorder | None, **fields: Any) -> Training:
    """As `Training.start` does on a GPU; without a recorder it never replays."""
    training = Training.start(*config(kind, samples=6000, **fields), rows)
    if recorder is not None:
        training._replay = training._recorded_steps(recorder)
    return training


def advance(training: Training, rows: Rows, steps: int) -> list[dict[str, float]]:
    """All metrics, read after the last step."""
    seen = [training.advance(rows.next_batch()) for _ in range(steps)]
    return [{name: float(value) for name, value in metrics.items()} for metrics in seen]


def silence(training: Training, count: int) -> None:
    """Make some latents dead."""
    with torch.no_grad():
        if "b_enc" in dict(training.sae.named_parameters()):
            training.sae.b_enc[:count] = -100.0
    training.dead.since_fired[:count] = training.dead.after


@pytest.mark.parametrize(("kind", "fields"), OPTIONS)
@pytest.mark.usefixtures("gpu")
def test_a_replayed_step_is_the_step(kind: str, fields: dict[str, Any]) -> None:
    """Bit for bit the same as when every operation is launched anew, with no, few and many dead latents; and each
    metric is still that of its own step when later ones have been replayed."""
    recorder, never = Recorder(), Refused()
    here, there = store(), store()
    replayed = begin(kind, here, recorder, sae=fields)
    plain = begin(kind, there, never, sae=fields)
    assert plain._replay is not None
    plain._replay._failed = True
    for dead in (0, 3, 40):
        silence(replayed, dead)
        silence(plain, dead)
        assert advance(replayed, here, 12) == advance(plain, there, 12)
    for name, tensor in replayed.sae.state_dict().items():
        torch.testing.assert_close(tensor, plain.sae.state_dict()[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert recorder.recorded == (2 if kind in K_SPARSE else 1)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_given_the_same_training_as_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = store(), store()
    on_gpu = begin(kind, here, Recorder())
    silence(on_gpu, 5)
    seen = advance(on_gpu, here, 30)
    monkeypatch.undo()
    monkeypatch.setattr(omp, "GRAM_EVERY", 1)  # as a GPU has it
    on_cpu = begin(kind, there, None)
    silence(on_cpu, 5)
    for ours, theirs in zip(seen, advance(on_cpu, there, 30), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.usefixtures("gpu")
def test_training_on_refined_values_is_replayed(kind: str) -> None:
    """No sweep waits for the number of a text's latents, which BatchTopK decides batch by batch."""
    recorder, never = Recorder(), Refused()
    here, there = store(), store()
    replayed = begin(kind, here, recorder, sae={"refine": 2, "refine_training": True})
    plain = begin(kind, there, never, sae={"refine": 2, "refine_training": True})
    assert plain._replay is not None
    plain._replay._failed = True
    assert advance(replayed, here, 12) == advance(plain, there, 12)
    assert recorder.recorded == 1


@pytest.mark.usefixtures("gpu")
def test_a_checkpoint_goes_on_replaying() -> None:
    whole, half, rows, again = Recorder(), Recorder(), store(), store()
    straight = begin("topk", rows, whole)
    silence(straight, 5)
    first = advance(straight, rows, 10)
    state = straight.state_dict()
    second = advance(straight, rows, 10)
    resumed = begin("topk", again, half)
    advance(resumed, again, 10)  # something is recorded, then all that it wrote to is put elsewhere
    resumed.load_state_dict(*state)
    again.position = rows.position // 2
    assert advance(resumed, again, 10) == second
    assert first != second
    assert half.recorded == 2


@pytest.mark.usefixtures("gpu")
def test_a_cpu_checkpoint_continues_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of dead latents has the length of their number on the one, and one of a few on the other."""
    rows = store()
    on_gpu = begin("topk", rows, None)
    silence(on_gpu, 5)
    advance(on_gpu, rows, 1)
    assert len(on_gpu.dead.index) == 48  # the shortest list, but no longer than the dictionary
    with monkeypatch.context() as patch:
        patch.undo()
        on_cpu = begin("topk", rows, None)
        on_cpu.load_state_dict(*on_gpu.state_dict())
    assert on_cpu.dead.index.tolist()[:5] == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("recorder", [Refused(), Full()])
def test_a_step_that_cannot_be_recorded_runs_as_it_is(recorder: Refused) -> None:
    """Said once; nothing is lost, and what the vain attempt left in Python does no harm."""
    rows = store()
    training = begin("topk", rows, recorder)
    silence(training, 5)
    advance(training, rows, WARM_UP)
    with pytest.warns(UserWarning, match=r"no CUDA graph of the training step.*(stream is capturing|20 MiB)$"):
        training.advance(rows.next_batch())
    later = advance(training, rows, 10)
    assert training.step == WARM_UP + 11
    assert later[-1]["train/fvu"] < later[0]["train/fvu"]


@pytest.mark.usefixtures("gpu")
def test_a_batch_of_another_size_is_another_kind() -> None:
    """The last batch of a run is shorter."""
    recorder, rows = Recorder(), store()
    training = begin("batchtopk", rows, recorder)
    advance(training, rows, 6)
    training.advance(rows.next_batch()[:10])
    assert training.samples == 6 * 64 + 10
    assert recorder.recorded == 1


def test_the_recorder_of_tests_finds_what_a_graph_may_not_do() -> None:
    """Lest the tests above pass because nothing is looked for."""
    x = torch.randn(8)
    for work in (lambda: float(x.sum()), lambda: x.nonzero(), lambda: x[x > 0], lambda: torch.tensor([1.0]) + x):
        with pytest.raises(AssertionError, match="makes the host wait"), Kept():
            work()


def test_what_python_remembers_is_not_replayed() -> None:
    """Lest they pass because a replay runs the Python."""
    total, calls = torch.zeros(()), []

    def step(x: Tensor, numbers: Tensor) -> Metrics:
        calls.append(1)
        total.add_(x.sum() * numbers[0])
        return {"total": total, "half": 0.5}

    replay = Replay(step, Recorder(), torch.device("cpu"), lambda: None)
    seen = [replay("kind", torch.full((2, 2), float(n)), (10.0,)) for n in range(WARM_UP + 5)]
    assert len(calls) == WARM_UP + 1
    assert [float(metrics["total"]) for metrics in seen[WARM_UP:]] == [240.0, 400.0, 600.0, 840.0, 1120.0]
    assert {metrics["half"] for metrics in seen} == {0.5}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", TYPES)
def test_on_a_gpu_a_replayed_training_is_the_one_without(kind: str) -> None:
    torch.set_deterministic_debug_mode("error")
    try:
        results = []
        for graph in (True, False):
            rows = store()
            training = Training.start(*config(kind, samples=6000, cuda_graph=graph), rows, "cuda")
            silence(training, 5)
            seen = advance(training, _OnGpu(rows), 30)
            results.append((seen, {n: t.cpu() for n, t in training.sae.state_dict().items()}))
            if graph:
                assert isinstance(training._replay, Replay)
                assert training._replay._recorded
    finally:
        torch.set_deterministic_debug_mode("default")
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(tensor, results[1][1][name], rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", TYPES)
def test_on_a_gpu_no_step_waits(kind: str) -> None:
    rows = store()
    training = Training.start(*config(kind, samples=100_000, dead_after=50_000), rows, "cuda")
    advance(training, _OnGpu(rows), 5)
    batches = [rows.next_batch().cuda() for _ in range(20)]
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings(action="ignore"):  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        for batch in batches:
            training.advance(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _OnGpu(Rows):
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def next_batch(self) -> Tensor:
        return self._rows.next_batch().cuda()
