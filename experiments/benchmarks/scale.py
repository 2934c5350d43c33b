"""How the scheduler behaves with 64, 256 and 1,024 slots and 10,000 trials, and what reading such a sweep costs.

    python experiments/benchmarks/scale.py loop [--slots 64,256,1024] [--trials 10000] [--seconds 300] [--keep FOLDER]
    python experiments/benchmarks/scale.py lag [--slots 64,256,1024] [--seconds 300] [--span 150]
    python experiments/benchmarks/scale.py track FOLDER
    python experiments/benchmarks/scale.py read FOLDER

loop: the real Scheduler, Ledger and Search (random points, 32 strata, median) against simulated workers: 20 reports and
100 step events a trial. The clock is virtual, so that a busy machine says the same: it moves by the CPU time that the
loop takes, by `--fsync` seconds for every fsync (none is made), and by idle waiting. Trials of a stratum are equally
good, so that the pruner compares at every report and stops none: the rate of trials is that of the slots. `--keep`
leaves the sweep's directory, as a run of that many trials would (no SAEs), in FOLDER/scale<slots>.

lag: how old an event is when MLflow (SQLite) has it, from the moment in which all slots start their first trials. The
real Tracker's polls, on a virtual clock that moves by their CPU time and by the pauses between them, while simulated
workers write their events. So it is the lag of a tracker that has one core for itself.

track: the real Tracker sends that directory to MLflow (SQLite): CPU a trial, hence the share of a core at a rate of
trials, and how far it is behind after a burst. read: `status`, `ls`, `best`, `report`, each in a process of its own
(CPU of that process and its wall time), and one frame of the live view.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saebench.config import TrialConfig
from saebench.devices import Slot
from saebench.executors import Attempt, EventMessage, ExitMessage, Message
from saebench.plan import Plan, make_plan
from saebench.runs.board import Board
from saebench.runs.events import Event, EventLog, Verdict
from saebench.runs.lock import Lock, Tracked, provenance, write_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.state import write_config
from saebench.scheduler import Scheduler
from saebench.scheduler.interrupts import Interrupts
from saebench.scheduler.ledger import Ledger
from saebench.spec import parse_spec
from saebench.study import Search
from saebench.sweep_config import BudgetConfig, FailuresConfig, TrackingConfig
from saebench.terminal.views import QuietView
from saebench.tracking import Tracker
from saebench.tracking.tracker import _Spent

REPORTS, STEPS, BATCH = 20, 100, 1000
LEVELS, WIDTHS = (4, 8, 16, 32, 64, 128, 192, 256), (512, 1024, 2048, 4096)
METRICS = ("mse", "fvu", "explained_variance", "l0", "dead_features", "dead_fraction", "cosine", "knn_overlap_at_10")


def plan_of(name: str, trials: int) -> Plan:
    strata = len(LEVELS) * len(WIDTHS)
    spec = {
        "name": name,
        "data": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dataset": {"path": "none"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": list(LEVELS), "dict_size": list(WIDTHS)}],
        "train": {
            "samples": REPORTS * BATCH,
            "batch_size": 10,
            "eval_every": BATCH,
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "seeds": [0],
        "search": {"sampler": "random", "points": -(-trials // strata), "refine": 0},
        "prune": {"pruner": "median", "warmup": BATCH},
    }
    return make_plan(parse_spec(spec), 384)


def values(config: TrialConfig, report: int, prefix: str = "eval/") -> dict[str, float]:
    """All trials of a stratum measure the same at a mark; at their end they differ by up to a tenth."""
    luck = 1 + 0.1 * (config.number * 0.618 % 1) if prefix == "test/" else 1.0
    fvu = 0.4 * (1 + 1 / report) * luck / (1 + float(config.sae.model_dump()["k"])) ** 0.2
    numbers = (fvu / 384, fvu, 1 - fvu, float(config.sae.model_dump()["k"]), 12.0, 0.01, 1 - fvu / 2, 1 - fvu)
    return {prefix + name: value for name, value in zip(METRICS, numbers, strict=True)}


# --- the loop on a virtual clock -------------------------------------------------------------------------------------


class Clock:
    """Virtual seconds: the CPU time of the loop, modelled fsyncs, and idle waiting.

    Asking for the CPU time of a thread takes up to a quarter of a millisecond on a virtual machine, more than a turn
    mostly does. So turns that bring nothing but `step` events are timed only now and then, and else take what the last
    such turn took; and the cost of asking is taken off.
    """

    def __init__(self, fsync: float) -> None:
        self.now, self.cpu, self.synced = 0.0, 0.0, 0.0
        self._fsync, self._light, self._turns, self._timing = fsync, 0.0, 0, True
        before = time.thread_time()
        for _ in range(300):
            mark = time.thread_time()
        self._cost = (mark - before) / 300
        self._mark = time.thread_time()

    def begin(self, *, light: bool) -> None:
        """The loop handles what happened; `light`: it was steps alone."""
        self._turns += 1
        self._timing = not light or self._turns % 20 == 0
        self._is_light = light
        if self._timing:
            self._mark = time.thread_time()

    def end(self) -> None:
        """The loop waits."""
        spent = self.charge() if self._timing else self._light
        if not self._timing:
            self.now += spent
            self.cpu += spent
        elif self._is_light:
            self._light = spent

    def charge(self) -> float:
        """Count what the loop has computed since the last call of a turn that is timed."""
        if not self._timing:
            return 0.0
        mark = time.thread_time()
        spent = max(0.0, mark - self._mark - self._cost)
        self.now += spent
        self.cpu += spent
        self._mark = mark
        return spent

    def sync(self, _: int) -> None:
        self.now += self._fsync
        self.synced += self._fsync

    def __call__(self) -> float:
        """For the loop, which asks several times per turn."""
        return self.now


@dataclass
class Worker:
    attempt: Attempt
    slot: Slot
    seconds: float
    """Of training; its waiting for verdicts comes on top."""
    begun: float = 0.0
    step: int = 0
    asked: float = 0.0
    events: list[Event] = field(default_factory=list)


class Simulated:
    """Workers that train for `seconds`, wait for every verdict and write what they said when they end."""

    def __init__(self, slots: int, seconds: float, clock: Clock, *, record: bool) -> None:
        self._slots = tuple(
            Slot(n, f"node{n // 8}/cuda:{n % 8}", f"slot {n}", 1, node=f"node{n // 8}") for n in range(slots)
        )
        self._seconds, self._clock, self._record = seconds, clock, record
        self._due: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._workers: dict[int, Worker] = {}
        self._random = random.Random(0)
        self.started = 0
        self._charged = False
        self.full = 0.0
        """When every slot had been filled once."""
        self.latencies: list[tuple[float, float]] = []
        """(when, seconds) of verdicts."""
        self.ends: list[float] = []

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._slots

    def start(self, attempt: Attempt, slot: Slot) -> None:
        self._clock.charge()
        self.started += 1
        # first trials end one after the other, as after hours of running; later ones differ as trials do
        first = self.started <= len(self._slots)
        share = self._random.uniform(0.02, 1) if first else self._random.uniform(0.8, 1.2)
        self._workers[attempt.number] = Worker(attempt, slot, self._seconds * share, self._clock.now)
        self._later(attempt.number, 0.3)
        if self.started == len(self._slots):
            self.full = self._clock.now

    def poll(self, timeout: float) -> list[Message]:
        clock = self._clock
        clock.end()
        if not self._due or self._due[0][0] > clock.now:
            clock.now = min(clock.now + timeout, max(clock.now, self._due[0][0] if self._due else clock.now + timeout))
        found: list[Message] = []
        while self._due and self._due[0][0] <= clock.now:
            due, _, number = heapq.heappop(self._due)
            found += self._advance(self._workers[number], due)
        steps = all(isinstance(m, EventMessage) and m.event.type == "step" for m in found)
        clock.begin(light=steps and len(self._workers) == len(self._slots))
        self._charged = False
        return found

    def _advance(self, worker: Worker, due: float) -> Iterator[Message]:
        number, config, part = worker.attempt.number, worker.attempt.config, STEPS // REPORTS
        last = STEPS + REPORTS + 1
        if worker.step > last:
            self._end(worker)
            yield ExitMessage(number, None, "")
            return
        report, rest = divmod(worker.step, part + 1)
        samples = min(config.train.samples, BATCH * report + BATCH * rest // part)
        if worker.step == 0:
            event = Event("start", 0, attempt=1, info={"pid": 1, "device": worker.slot.device})
        elif worker.step == last:
            final = {**values(config, REPORTS), **values(config, REPORTS, "test/")}
            event = Event("done", config.train.samples, final, attempt=1)
        elif rest == 0:
            event = Event("eval", samples, values(config, report), attempt=1)
        else:
            event = Event("step", samples, {"train/fvu": 0.5, "train/loss": 0.5, "train/lr": 1e-3}, attempt=1)
        worker.step += 1
        worker.events.append(event)
        yield EventMessage(number, event)
        if event.type == "eval":
            worker.asked = due
        else:
            self._later(number, 0.01 if event.type == "done" else worker.seconds / last, due)

    def _later(self, number: int, seconds: float, since: float | None = None) -> None:
        since = self._clock.now if since is None else since
        heapq.heappush(self._due, (since + seconds, next(self._order), number))

    def _end(self, worker: Worker) -> None:
        del self._workers[worker.attempt.number]
        self.ends.append(self._clock.now)
        if self._record:
            begun = 1.7e12
            span = 1000 * self._seconds / len(worker.events)
            log = EventLog(worker.attempt.paths.events)
            for index, said in enumerate(worker.events):
                log.append(replace(said, ts=int(begun + span * index)))
            log.close()

    def answer(self, number: int, verdict: Verdict) -> None:
        if not self._charged:  # the answers of a turn follow each other at once
            self._clock.charge()
            self._charged = True
        worker = self._workers[number]
        assert verdict is Verdict.GO
        self.latencies.append((self._clock.now, self._clock.now - worker.asked))
        self._later(number, worker.seconds / (STEPS + REPORTS + 1))

    def stop(self, number: int, how: str) -> None:
        raise AssertionError(f"trial {number} was asked to {how}")

    def set_demand(self, trials: int) -> None:
        pass

    def quarantine(self, slot: Slot) -> None:
        raise AssertionError(slot)

    def encoders(self) -> list[str]:
        return []

    def recover(self, paths: SweepPaths, note: Any, cache_key: str | None = None) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class NoTracker:
    def open(self, config: TrialConfig, tags: dict[str, str]) -> None:
        pass

    def close_trial(self, number: int, state: Any, reason: str, tags: dict[str, str]) -> None:
        pass

    def lag(self) -> tuple[int, str | None]:
        return 0, None


def loop(folder: Path, slots: int, trials: int, seconds: float, fsync: float, *, record: bool) -> str:
    """One row of the table."""
    plan = plan_of(f"scale{slots}", trials)
    paths = SweepPaths(folder / f"scale{slots}")
    clock = Clock(fsync)
    real, os.fsync = os.fsync, clock.sync  # type: ignore[assignment]
    try:
        search, executor = Search(plan, paths.journal), Simulated(slots, seconds, clock, record=record)
        ledger = Ledger(paths, search, NoTracker(), Board(paths.name))
        scheduler = Scheduler(
            ledger, search, executor, QuietView(), Interrupts(),
            failures=FailuresConfig(), budget=BudgetConfig(), clock=clock,
        )  # fmt: skip
        clock.now = clock.cpu = clock.synced = 0.0
        clock.begin(light=False)
        assert scheduler.run() is None
    finally:
        os.fsync = real
    if record:
        spec = plan.spec.plain()
        lock = Lock(name=paths.name, spec=spec, d_in=384, tracking=Tracked(), **provenance(folder))
        write_lock(paths, lock)
        paths.spec.write_text(f"name: {paths.name}\n")
    # from the first second in which all slots are busy until there is nothing left to start
    begin, end = executor.full, executor.ends[-slots] if len(executor.ends) > 2 * slots else executor.ends[-1]
    steady = sorted(latency for when, latency in executor.latencies if begin <= when <= end)
    early = sorted(latency for when, latency in executor.latencies if when < begin) or [0.0]
    rate = len(steady) / (end - begin)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    middle, late = statistics.median(steady), steady[int(0.99 * len(steady))]
    return (
        f"| {slots:,}, {seconds:g} s | {len(executor.ends):,} | {rate:.1f} | {1000 * middle:.1f} / {1000 * late:.1f} / "
        f"{1000 * steady[-1]:.0f} | {100 * clock.cpu / clock.now:.1f}% | "
        f"{100 * clock.synced / clock.now:.1f}% | {executor.full:.1f} s, {1000 * early[-1]:.0f} ms | {memory:.0f} MB |"
    )


HEAD = (
    "| slots, trial | trials | verdicts/s | p50 / p99 / worst ms | CPU | fsync | start of all slots, worst verdict | "
    "memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


# --- MLflow's lag on a virtual clock --------------------------------------------------------------------------------


class Writers:
    """Workers on `slots` slots that write what theirs would, up to a virtual time."""

    def __init__(self, tracker: Tracker, plan: Plan, paths: SweepPaths, slots: int, seconds: float) -> None:
        self._tracker, self._plan, self._paths, self._seconds = tracker, plan, paths, seconds
        self._random, self._numbers = random.Random(0), itertools.count()
        self._due: list[tuple[float, int, Iterator[tuple[float, int]]]] = []
        self._logs: dict[int, EventLog] = {}
        self.unsent: dict[int, float] = {}
        """Trial -> when the oldest event was written that MLflow does not have."""
        self.ended = 0
        for _ in range(slots):
            self._begin(0.0, self._random.uniform(0.02, 1))

    def _begin(self, at: float, share: float) -> None:
        number = next(self._numbers)
        stratum = self._plan.strata[number % len(self._plan.strata)]
        config = self._plan.trial(stratum, {"lr": 10 ** self._random.uniform(-4, -2)}, 0, number)
        write_config(self._paths.trial(number), config)
        self._tracker.open(config, {})
        events = self._events(config, at, self._seconds * share)
        heapq.heappush(self._due, (next(events)[0], number, events))

    def _events(self, config: TrialConfig, begun: float, seconds: float) -> Iterator[tuple[float, int]]:
        """Write an event whenever it is asked for the time of the next."""
        log, part = EventLog(self._paths.trial(config.number).events), STEPS // REPORTS
        self._logs[config.number] = log
        for step in range(STEPS + REPORTS + 2):
            at = begun + seconds * step / (STEPS + REPORTS + 1)
            yield at, config.number
            report, rest = divmod(step, part + 1)
            samples = min(config.train.samples, BATCH * report + BATCH * rest // part)
            if step == STEPS + REPORTS + 1:
                final = {**values(config, REPORTS), **values(config, REPORTS, "test/")}
                event = Event("done", config.train.samples, final)
            elif rest == 0 and report:
                event = Event("eval", samples, values(config, report))
            else:
                event = Event("step", samples, {"train/fvu": 0.5, "train/loss": 0.5, "train/lr": 1e-3})
            log.append(replace(event, ts=int(1.7e12 + 1000 * at)))
            self.unsent.setdefault(config.number, at)
        self._logs.pop(config.number).close()
        self._tracker.close_trial(config.number, "complete")
        self.ended += 1
        self._begin(at, self._random.uniform(0.8, 1.2))

    def until(self, now: float) -> None:
        """Write what is due."""
        while self._due and self._due[0][0] <= now:
            _, number, events = heapq.heappop(self._due)
            if (following := next(events, None)) is not None:
                heapq.heappush(self._due, (following[0], number, events))

    def close(self) -> None:
        """Close the files of the trials that run."""
        for log in self._logs.values():
            log.close()


def lag(folder: Path, slots: int, seconds: float, span: float) -> str:
    """One row of the table."""
    plan, paths = plan_of(f"lag{slots}", 100_000), SweepPaths(folder / f"lag{slots}")
    paths.root.mkdir(parents=True)
    tracker = Tracker(paths, TrackingConfig(uri=f"sqlite:///{folder.absolute()}/mlflow{slots}.db"), paths.name)
    tracker._thread = threading.Thread()  # never started: its polls are made here
    tracker._thread.start = lambda: None  # type: ignore[method-assign]
    tracker.start({"d_in": 384})
    writers, advance = Writers(tracker, plan, paths, slots, seconds), tracker._sender.advance
    now, cpu, mark, ages = 0.0, 0.0, 0.0, list[tuple[float, float]]()

    def charge() -> None:
        nonlocal now, cpu, mark
        spent = time.thread_time() - mark
        now, cpu, mark = now + spent, cpu + spent, time.thread_time()

    def timed(stream: Any) -> str | None:
        nonlocal mark
        charge()
        writers.until(now)
        oldest, mark = writers.unsent.pop(stream.number, None), time.thread_time()
        end: str | None = advance(stream)
        charge()
        if oldest is not None:
            ages.append((now, now - oldest))
        return end

    tracker._sender.advance = timed  # type: ignore[method-assign]
    longest = 0.0
    while now < span:
        writers.until(now)
        begun, mark, spent = now, time.thread_time(), _Spent()
        tracker._cycle(closing=False, spent=spent)
        charge()
        longest = max(longest, now - begun)
        now += tracker._pause(_Spent(spent.cpu, spent.cpu), now - begun)
    writers.close()
    after_start = sorted(age for when, age in ages if when > span / 3) or [0.0]
    return (
        f"| {slots:,}, {seconds:g} s | {writers.ended:,} | {100 * cpu / now:.0f}% | {longest:.1f} s | "
        f"{max(age for _, age in ages):.0f} s | {statistics.median(after_start):.0f} / {after_start[-1]:.0f} s |"
    )


LAG_HEAD = (
    "| slots, trial | trials ended | share of a core | longest poll | oldest event when sent | later: p50 / worst |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


# --- MLflow and the readers ------------------------------------------------------------------------------------------


def track(root: Path) -> None:
    """Send a kept sweep to MLflow."""
    paths = SweepPaths(root)
    uri = f"sqlite:///{root.absolute()}/mlflow.db"
    from saebench.runs.lock import read_lock

    lock = read_lock(paths)
    assert lock is not None
    tracker = Tracker(paths, TrackingConfig(uri=uri, experiment="scale"), paths.name)
    before, begun = time.process_time(), time.monotonic()
    tracker.start(lock.info())
    tracked = Tracked(uri=uri, experiment_id=tracker.experiment_id, run_id=tracker.run_id)
    write_lock(paths, lock.model_copy(update={"tracking": tracked}))
    lag = tracker.close(patience=600)
    cpu, wall = time.process_time() - before, time.monotonic() - begun
    trials = len(paths.trials())
    each = f"{1000 * cpu / trials:.0f} ms CPU and {1000 * wall / trials:.0f} ms a trial"
    print(f"MLflow: {trials:,} trials, {each}; left {lag}")


def read(root: Path) -> None:
    """Time the commands that read a sweep."""
    print("| command | CPU s | wall s |\n| --- | --- | --- |")
    for command in (("status", root.name), ("ls",), ("best", root.name), ("report", root.name)):
        begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "saebench", *command, "--runs-dir", str(root.parent)], capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        failed = "" if done.returncode in (0, 3) else f" exit {done.returncode}: {done.stderr[-200:]}"
        print(f"| {' '.join(command)} | {cpu:.1f} | {time.monotonic() - begun:.1f} |{failed}", flush=True)
    print(f"| a frame of the live view, 1,024 running | {frame(root):.2f} | |")


def frame(root: Path) -> float:
    """CPU seconds of one frame with 1,024 trials running."""
    from rich.console import Console

    from saebench.runs.board import Running, read_board
    from saebench.terminal.picture import picture

    board = read_board(SweepPaths(root))
    for number in range(1024):
        board.running[number] = Running(number, "topk-k32-n1024", 0, f"slot {number}", 1, 20_000, samples=number)
    console = Console(width=200, height=60, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    before = time.process_time()
    console.print(picture(board, 60, 200))
    return time.process_time() - before


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loop", "lag", "track", "read"])
    parser.add_argument("folder", nargs="?", type=Path, help="a kept sweep's directory")
    parser.add_argument("--slots", default="64,256,1024")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--span", type=float, default=150, help="virtual seconds of `lag`")
    parser.add_argument("--fsync", type=float, default=0.005, help="modelled seconds of an fsync")
    parser.add_argument("--keep", type=Path, help="leave the sweeps' directories there")
    args = parser.parse_args()
    if args.what in ("track", "read"):
        {"track": track, "read": read}[args.what](args.folder)
        return
    print(HEAD if args.what == "loop" else LAG_HEAD, flush=True)
    for slots in map(int, args.slots.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = args.keep or Path(name)
            if args.what == "lag":
                print(lag(folder, slots, args.seconds, args.span), flush=True)
                continue
            print(loop(folder, slots, args.trials, args.seconds, args.fsync, record=bool(args.keep)), flush=True)


if __name__ == "__main__":
    main()
