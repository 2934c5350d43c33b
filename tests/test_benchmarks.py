"""The benchmarks' own arithmetic: what they count, divide and leave out, and that they run."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from waiting import wait_for

BENCHMARKS = Path(__file__).parent.parent / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import ceilings
    import contestants
    import encode
    import gpu
    import on_device
    import reading
    import scale
    import timing
    import train_step
    import work
finally:
    sys.path.remove(str(BENCHMARKS))

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Machine:
    """A GPU on which a step of `ms` milliseconds costs the host nothing, and a clock that shows what the host sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.ready = 0.0
        self.steps = 0
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self, _device: torch.device) -> None:
        self.now = max(self.now, self.ready)

    def step(self, ms: float) -> Callable[[], None]:
        def run() -> None:
            self.steps += 1
            self.ready = max(self.ready, self.now) + ms / 1e3

        return run

    def clock(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


# --- timing ----------------------------------------------------------------------------------------------------------


def test_a_gpu_is_waited_for_before_and_after_the_steps_that_are_timed(machine: Machine) -> None:
    machine.step(500)()  # somebody else's work, still under way
    assert timing.time_steps(machine.step(2), 10, CUDA, machine.clock) == pytest.approx(2.0)
    assert machine.now == pytest.approx(0.52)


@pytest.mark.parametrize(("ms", "steps"), [(2.0, 20), (0.01, 50), (100.0, 3)], ids=["40 ms", "at most", "at least"])
def test_a_turn_on_a_gpu_has_as_many_steps_as_last_40_ms(machine: Machine, ms: float, steps: int) -> None:
    assert timing.steps_a_turn(timing.Contestant(machine.step(ms)), CUDA, machine.clock) == steps
    assert machine.steps == timing.WARM_UP["cuda"] + timing.PILOT


def test_every_round_gives_each_contestant_a_turn(machine: Machine) -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("ours", "theirs")}
    times = timing.measure({n: timing.Contestant(s) for n, s in steps.items()}, 2, CPU, {}, machine.clock)
    assert order == ["ours"] * 2 + ["theirs"] * 2 + ["ours", "theirs"] * 2, "warm-ups, then one step each a round"
    assert times == {"ours": [0.0, 0.0], "theirs": [0.0, 0.0]}


@pytest.mark.parametrize("survives", [0, 2, 3], ids=["warm-up", "first round", "second round"])
def test_a_contestant_that_raises_is_out_and_the_others_go_on(survives: int) -> None:
    calls: list[None] = []

    def fails() -> None:
        calls.append(None)
        if len(calls) > survives:
            raise RuntimeError("no kernel\nat all")

    failed: dict[str, str] = {}
    contestants = {"theirs": timing.Contestant(fails), "ours": timing.Contestant(lambda: None)}
    times = timing.measure(contestants, 3, CPU, failed)
    assert failed == {"theirs": "RuntimeError: no kernel"}
    assert list(times) == list(contestants) == ["ours"], "the memory of the other is free"
    assert len(times["ours"]) == 3


def test_tf32_is_allowed_to_one_contestant_alone() -> None:
    seen: list[str] = []
    look = lambda: seen.append(torch.get_float32_matmul_precision())  # noqa: E731
    entries = {"a": timing.Contestant(look, "tf32", tf32=True), "b": timing.Contestant(look)}
    timing.measure(entries, 1, CPU, {})
    assert seen == ["high"] * 2 + ["highest"] * 2 + ["high", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_spread_is_the_widest_quartile_range_over_its_median() -> None:
    """1, 2, 3, 4, 5: quartiles 2 and 4, median 3."""
    assert timing.spread({"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [7.0] * 5, "c": [1.0]}) == pytest.approx(2 / 3)


# --- ceilings --------------------------------------------------------------------------------------------------------


def test_the_floor_of_a_step_by_hand() -> None:
    """Batch 2, d_in 3, 5 latents, k 1: 10 pre-activations, 2 pairs, 30 weights. Operations: 2 * 3 * (10 + 5 * 2).
    Bytes: 30 * (4 + 28), 10 * 8, 2 pairs of 12 written and read, 6 numbers of the batch."""
    floor = ceilings.Floor.of(work.make_work(2, 3, 5, 1))
    assert (floor.operations, floor.bytes) == (120, 960 + 80 + 48 + 24)
    limits = ceilings.Ceilings(copy=1112.0, product={"float32": 60.0, "bfloat16": 240.0})
    assert (floor.by_copy(limits), floor.by_product(limits, "bfloat16")) == (1.0, 0.5)
    assert floor.by_product(limits, "tf32") == 2.0, "where tf32 was not measured, float32 counts"


def test_ceilings_are_bytes_and_operations_per_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "time_steps", lambda *_: 2.0)
    assert ceilings.copy_rate(CPU, 1000) == 8 * 1000 / 2.0
    assert ceilings.product_rates(CPU, 10) == {"float32": 2000 / 2.0, "bfloat16": 2000 / 2.0}


# --- what the device and the host do ---------------------------------------------------------------------------------


def event(category: str, name: str, microseconds: float = 1.0) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "dur": microseconds}


def test_a_trace_is_counted_by_category() -> None:
    events = [
        *[event("kernel", "gemm", 300.0), event("kernel", "topk", 50.0)] * 2,
        event("gpu_memcpy", "Memcpy HtoD", 100.0),
        event("gpu_user_annotation", "Optimizer.step#Adam.step", 9000.0),
        event("cpu_op", "aten::mm", 9000.0),
        *[event("cuda_runtime", name) for name in ("cudaLaunchKernelExC", "cudaGraphLaunch", "cudaMemcpyAsync")],
        event("cuda_driver", "cuLaunchKernel"),
        *[event("cuda_runtime", name) for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventQuery")],
        {"ph": "s", "cat": "ac2g", "name": "flow"},
    ]
    found = on_device.read_trace({"traceEvents": events}, steps=2)
    assert (found.kernels, found.copies, found.launches, found.waits) == (2.0, 0.5, 2.0, 0.5)
    assert found.busy == pytest.approx(0.4)
    assert found.top == [("gemm", pytest.approx(0.3)), ("topk", pytest.approx(0.05))]


def test_waits_of_the_host_are_counted_where_the_alarm_goes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    number = iter(range(1000))

    def step() -> None:
        warnings.warn("something else", stacklevel=1)
        if next(number) % 4 == 0:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)

    (place, times), *others = on_device.waits(step).items()
    assert (times, others) == (on_device.STEPS // 4, [])
    assert place.startswith(f"{__file__}:")
    assert modes == ["warn", "default"]


def test_a_wait_is_told_by_the_innermost_line_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)

    class Batch:
        def __iter__(self) -> Any:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return iter(())

    from saebench.stores.prefetch import prefetch  # anything of the package that calls back, in this thread

    monkeypatch.setattr("threading.Thread", lambda target, **_: SimpleNamespace(start=target))
    (place,) = on_device.waits(lambda: list(prefetch(Batch(), 2)))
    assert place.startswith("saebench/stores/prefetch.py:")
    assert "for item in items" in place


def test_extra_memory_is_the_peak_without_parameters_gradients_and_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 bytes of others, 10 parameters of 4 bytes, four times; the peak is 5000."""
    steps: list[None] = []

    def step() -> None:
        if not steps:
            warnings.warn("no CUDA graph of the training step, which is slower without: why", stacklevel=1)
        steps.append(None)

    training = SimpleNamespace(sae=SimpleNamespace(parameters=lambda: [torch.zeros(4), torch.zeros(2, 3)]))
    monkeypatch.setattr(on_device, "start", lambda *_: (training, step))
    monkeypatch.setattr(on_device, "trace", lambda *_: on_device.Trace(60, 2, 3, 0, 0.5, []))
    monkeypatch.setattr(on_device, "waits", lambda _: Counter({"here": 5}))
    for name, result in {"memory_allocated": 1000, "max_memory_allocated": 5000}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, result=result: result)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    facts = on_device.examine("topk", work.make_work(2, 3, 5, 1), {})
    assert facts.peak == 5000 - 1000 - 4 * 40
    assert len(steps) == timing.WARM_UP["cuda"]
    assert facts.remarks == ["no CUDA graph of the training step, which is slower without: why"]
    shown = on_device.row("topk", facts, 3 << 20)
    assert shown == "| topk | 60 | 2 | 3 | 0.25, 0.00 | 0.500 | 0 | 3 |"


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ms", "shown"), [(0.31234, "0.312"), (4.5678, "4.568"), (12.345, "12.35"), (512.34, "512")])
def test_times_have_the_digits_that_count(ms: float, shown: str) -> None:
    assert train_step._ms(ms) == shown


def test_the_lead_is_over_the_fastest_peer() -> None:
    times = {"encoder product": 0.1, "saebench": 0.5, "saebench, no CUDA graph": 0.9, "a": 2.0, "b": 1.5}
    assert train_step.lead(times) == "3.0x (b)"
    assert train_step.lead({"saebench": 0.5}) == "no peer"
    assert train_step.lead({"a": 2.0}) == ""


def test_shares_of_the_ceilings_are_floors_over_times() -> None:
    """120 operations at 60 per ms are 2 ms, at 240 half a millisecond; 1112 bytes at 1112 per ms are 1 ms."""
    limits = ceilings.Ceilings(copy=1112.0, product={"float32": 60.0, "bfloat16": 240.0})
    results = {"topk": {"encoder product": 1.0, "saebench": 4.0, "a": 10.0}, "vanilla": {"saebench": 8.0}}
    table = train_step.shares(
        results, {"saebench": "float32", "a": "bfloat16"}, limits, ceilings.Floor(operations=120, bytes=1112)
    )
    assert table[2:] == ["| saebench (float32) | 50.0, 25.0 | 25.0, 12.5 |", "| a (bfloat16) | 5.0, 10.0 |  |"]


def test_works_are_named_once_each() -> None:
    named = SimpleNamespace(quick=False, gpu_works=True, work=[[2048, 384, 6144, 32], [1, 2, 3, 1]])
    assert train_step.works(named) == [train_step.REFERENCE, train_step.LARGE, (1, 2, 3, 1)]
    assert train_step.works(SimpleNamespace(quick=False, gpu_works=False, work=None)) == [train_step.REFERENCE]


def test_a_run_writes_both_tables_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    monkeypatch.setattr(ceilings, "SAMPLES", 1)
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--quick", "--types", "topk", "jumprelu", "--out", str(out)])
    assert train_step.main() == 0
    written = out.read_text("utf-8")
    assert capsys.readouterr().out == written
    rows = {line.split(" | ")[0]: line for line in written.splitlines()}
    assert all(rows[name].count("|") == 4 for name in ("| saebench", "| encoder product", "| saebench (float32)"))
    assert "Missing: BatchTopK: no checkout given (--batchtopk)." in written


def test_a_run_in_which_ours_fails_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(contestants, "start", fails)
    monkeypatch.setattr(contestants, "PEERS", {})
    limits = ceilings.Ceilings(copy=1.0, product={"float32": 1.0})
    lines, whole = train_step.compare(work.make_work(4, 3, 8, 2), ["topk"], 1, time.perf_counter, None, limits)
    assert not whole
    assert "topk: saebench failed: RuntimeError: broken." in lines


# --- encoding and reading --------------------------------------------------------------------------------------------


def test_more_texts_than_glosses_are_pairs_that_never_repeat(tmp_path: Path) -> None:
    path, few = encode.corpus(10, tmp_path)
    assert (path, len(few)) == (encode.GLOSSES, 10)
    path, many = encode.corpus(60_000, tmp_path)
    assert path.parent == tmp_path
    assert len(set(many)) == 60_000


def test_builds_on_a_gpu_are_timed_with_several_processes_and_on_all() -> None:
    assert encode.places(["cpu"]) == [("float32", ["cpu"]), ("bfloat16", ["cpu"])]
    found = encode.places(["cuda:a", "cuda:b"])
    assert found[2:] == [
        ("bfloat16", ["cuda:a"] * 2),
        ("bfloat16", ["cuda:a"] * 4),
        ("bfloat16", ["cuda:a", "cuda:b"]),
    ]


def test_reading_serves_the_same_first_batch_each_time(tmp_path: Path) -> None:
    data = encode.config(4_000)
    reading.make_entry(data, tmp_path)
    lines = [reading.measured(data, tmp_path, "cpu", 2).split(" | ") for _ in range(2)]
    assert lines[0][-1] == lines[1][-1]
    assert all(float(rate) > 0 for line in lines for rate in line[2].split(", "))


# --- everything at once ----------------------------------------------------------------------------------------------


def test_a_part_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    code = "import os, time; print(os.fork(), flush=True); time.sleep(600)"
    assert gpu.run("slow", ["-c", code], tmp_path, limit=5.0).startswith("slow: stopped after 5 s")
    started = max(int(line) for line in (tmp_path / "slow.txt").read_text().split())
    wait_for(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE)


def test_parts_say_how_they_ended_and_find_this_checkout(tmp_path: Path) -> None:
    assert gpu.run("good", ["-c", "import saebench; print(saebench.__file__)"], tmp_path, 60).startswith("good: ok (")
    assert str(gpu.REPOSITORY) in (tmp_path / "good.txt").read_text()
    assert gpu.run("bad", ["-c", "raise SystemExit(3)"], tmp_path, 60).startswith("bad: 3 (")


def test_the_tests_for_a_gpu_are_found_by_their_mark() -> None:
    assert "tests/stores/test_sentence_encoder.py" in gpu.tests()
    assert "tests/test_spec.py" not in gpu.tests()


def test_the_scheduler_of_many_slots_is_timed_on_all_its_trials(tmp_path: Path) -> None:
    row = scale.loop(tmp_path, 4, 32, 5, 0.005, record=False).split(" | ")
    assert row[0] == "| 4, 5 s"
    assert row[1] == "32", "a trial per stratum at least"
    assert float(row[2]) > 1, "verdicts per virtual second: 20 a trial, four trials at a time"


def test_an_event_is_as_old_as_the_pause_before_the_poll_that_sends_it(tmp_path: Path, empty_database: Path) -> None:
    """Two slots, trials of 10 s: a poll takes milliseconds, and three seconds or more pass between two."""
    shutil.copy(empty_database, tmp_path / "mlflow2.db")
    row = scale.lag(tmp_path, 2, 10, 65).strip("| ").split(" | ")
    assert int(row[1]) >= 3
    oldest, (middle, worst) = int(row[4].split()[0]), map(int, row[5].removesuffix(" s").split(" / "))
    assert 3 <= middle <= worst <= oldest <= 35, "the longest pause is 30 s"
