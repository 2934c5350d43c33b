"""In-process twins of what the scheduler talks to: an executor whose workers are generators, a search that hands out
a list of trials, a tracker that remembers. All of them survive a scheduler that 'dies'."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.executors import Attempt, EventMessage, ExitMessage, Message, Slot
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog, FailureKind, Verdict
from saebench.runs.paths import SweepPaths
from saebench.runs.state import read_state
from saebench.terminal.views import QuietView

TOTAL = 40
STEP = 10


def trial_config(number: int, seed: int = 0, total: int = TOTAL) -> TrialConfig:
    return TrialConfig(
        sweep="toy",
        number=number,
        stratum="topk-k4-n32",
        point=f"p{number}",
        seed=seed,
        data=DataConfig(model="toy", dataset=DatasetConfig(path="toy"), num_examples=100),
        sae=TopKConfig(k=4, dict_size=32),
        train=TrainConfig(samples=total, batch_size=STEP, eval_every=2 * STEP),
    )


class Fault(Exception):  # noqa: N818 - what it stands for is not an error
    """A toy worker ends with this kind of failure."""

    def __init__(self, kind: FailureKind, detail: str = "toy") -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


Faults = dict[tuple[int, int, int], FailureKind]
"""(trial, attempt, samples) -> how it fails there; 'stall' hangs."""


def toy_worker(attempt: Attempt, faults: Mapping[tuple[int, int, int], FailureKind]) -> Iterator[Event | None]:
    """Trains by counting: a step every 10 samples, an evaluation and a checkpoint every 20. Its metrics are a function
    of (trial, samples), so that histories can be compared. Receives verdicts; None means nothing to say yet."""
    number, total = attempt.number, attempt.config.train.samples
    file = attempt.paths.checkpoint / "samples.json"
    samples = json.loads(file.read_text()) if file.exists() else 0

    def make(kind: Any, **more: Any) -> Event:
        return Event(kind, samples, attempt=attempt.attempt, **more)

    leave = (yield make("start", info={"device": "toy"})) == Verdict.LEAVE
    while samples < total:
        fault = faults.get((number, attempt.attempt, samples))
        while fault == "stall":
            yield None
        if fault == "killed":  # by somebody's SIGTERM
            write_json(file, samples)
            yield make("left", info={"why": "leave"})
            return
        if fault:
            raise Fault(fault)
        samples += STEP
        leave = (yield make("step", values={"train/fvu": 1 / (number + samples)})) == Verdict.LEAVE or leave
        if samples % (2 * STEP) == 0:
            values = {"eval/fvu": (number + 1) / samples, "eval/l0": 4.0}
            verdict = yield make("eval", values=values)
            write_json(file, samples)
            leave = (yield make("checkpoint")) == Verdict.LEAVE or leave
            if verdict == Verdict.PRUNE:
                yield make("left", info={"why": "prune"})
                return
            leave = leave or verdict == Verdict.LEAVE
        if leave and samples < total:
            write_json(file, samples)
            yield make("left", info={"why": "leave"})
            return
    yield make("done", values={"eval/fvu": (number + 1) / total, "eval/l0": 4.0})


@dataclass
class Work:
    attempt: Attempt
    slot: Slot
    steps: Iterator[Event | None]
    log: EventLog
    send: Verdict | None = None
    asking: bool = False
    killed: bool = False


class ToyExecutor:
    """Runs every active toy worker one event further at each poll."""

    def __init__(self, devices: int = 1, per_device: int = 2, faults: Faults | None = None) -> None:
        self._slots = [
            Slot(d * per_device + i, f"cuda:{d}", f"gpu {d}.{i}", 1, 1 / per_device if per_device > 1 else None)
            for d in range(devices)
            for i in range(per_device)
        ]
        self.faults: Faults = faults if faults is not None else {}
        self.active: dict[int, Work] = {}
        self.starts: list[tuple[int, int, str]] = []
        self.leases: list[Slot] = []
        self.demands: list[int] = []
        self.together: list[tuple[int, ...]] = []
        self.on_poll: Callable[[], None] = lambda: None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots)

    def start(self, attempt: Attempt, slot: Slot) -> None:
        if any(work.slot.id == slot.id for work in self.active.values()) or attempt.number in self.active:
            raise RuntimeError("busy")
        self.starts.append((attempt.number, attempt.attempt, slot.device))
        self.leases.append(slot)
        log = EventLog(attempt.paths.events)
        self.active[attempt.number] = Work(attempt, slot, toy_worker(attempt, self.faults), log)

    def poll(self, timeout: float) -> list[Message]:  # noqa: ARG002 - the protocol's signature
        self.on_poll()
        self.together.append(tuple(sorted(self.active)))
        return [message for number in list(self.active) for message in self._advance(number)]

    def wake(self) -> None:
        """Never waits."""

    def encoders(self) -> list[str]:
        return ["cpu"]

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:
        """Its workers end with their scheduler."""

    def _advance(self, number: int) -> list[Message]:
        work = self.active[number]
        if work.killed:
            return [self._over(number, "killed", "killed on request")]
        if work.asking:
            return []
        try:
            send, work.send = work.send, None
            event = work.steps.send(send) if send is not None else next(work.steps)
        except StopIteration:
            return [self._over(number, None, "")]
        except Fault as fault:
            return [self._over(number, fault.kind, fault.detail)]
        if event is None:
            return []
        work.log.append(event)
        work.asking = event.type == "eval"
        return [EventMessage(number, event)]

    def _over(self, number: int, kind: FailureKind | None, detail: str) -> ExitMessage:
        self.active.pop(number).log.close()
        return ExitMessage(number, kind, detail)

    def answer(self, number: int, verdict: Verdict) -> None:
        if number in self.active:
            self.active[number].send, self.active[number].asking = verdict, False

    def stop(self, number: int, how: str) -> None:
        work = self.active.get(number)
        if work is None:
            return
        if how == "kill":
            work.killed = True
        elif work.send is None and not work.asking:
            work.send = Verdict.LEAVE

    def set_demand(self, trials: int) -> None:
        self.demands.append(trials)

    def quarantine(self, slot: Slot) -> None:
        self._slots = [s for s in self._slots if s.device != slot.device]

    def lose_scheduler(self) -> None:
        """The lifeline is cut: workers checkpoint and leave, with nobody listening."""
        for work in self.active.values():
            send = None if inspect.getgeneratorstate(work.steps) == inspect.GEN_CREATED else Verdict.LEAVE
            with contextlib.suppress(StopIteration, Fault):
                while (event := work.steps.send(send)) is not None:
                    work.log.append(event)
                    send = Verdict.LEAVE
        self.close()

    def close(self) -> None:
        for work in self.active.values():
            work.log.close()
        self.active.clear()


@dataclass
class ToyDecision:
    verdict: Verdict
    numbers: dict[str, Any]


@dataclass
class ToyEnded:
    state: Any
    values: dict[str, float]
    kind: FailureKind | None = None
    verdict: dict[str, Any] = field(default_factory=dict)


@dataclass
class ToySearch:
    """Hands out `trials` trials; stops those in `weak` at the mark given there."""

    trials: int
    weak: dict[int, int] = field(default_factory=dict)
    total: int = TOTAL
    asked: list[int] = field(default_factory=list)
    told: dict[int, str] = field(default_factory=dict)
    tells: list[tuple[int, str]] = field(default_factory=list)
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    reports: dict[tuple[int, int], float] = field(default_factory=dict)
    uncommitted: list[Callable[[], Any]] = field(default_factory=list)
    """Takes back each record that no commit has followed yet."""

    @property
    def done(self) -> bool:
        return len(self.asked) == self.trials and len(self.told) == self.trials

    def ask(self) -> TrialConfig | None:
        if len(self.asked) == self.trials:
            return None
        self.asked.append(len(self.asked))
        self.uncommitted.append(self.asked.pop)
        return trial_config(self.asked[-1], total=self.total)

    def commit(self) -> None:
        self.uncommitted.clear()

    def lose_power(self) -> None:
        """Forget what was not committed."""
        for undo in reversed(self.uncommitted):
            undo()
        self.uncommitted.clear()

    def running(self) -> list[TrialConfig]:
        return [trial_config(n, total=self.total) for n in self.asked if n not in self.told]

    def report(self, number: int, samples: int, values: Mapping[str, float]) -> ToyDecision:
        assert number not in self.told, "a trial that has ended is not reported on"
        if (number, samples) not in self.reports:
            self.reports[number, samples] = values["eval/fvu"]
            self.uncommitted.append(lambda: self.reports.pop((number, samples)))
        verdict = Verdict.PRUNE if self.weak.get(number) == samples else Verdict.GO
        return ToyDecision(verdict, {"value": values["eval/fvu"], "threshold": 0.5, "peers": 3})

    def tell(
        self,
        number: int,
        state: str,
        values: Mapping[str, float],
        kind: FailureKind | None,  # noqa: ARG002 - the protocol's signature
        numbers: Mapping[str, Any],  # noqa: ARG002 - the protocol's signature
    ) -> None:
        self.tells.append((number, state))
        if number not in self.told:
            self.told[number] = state
            self.uncommitted.append(lambda: self.told.pop(number))
        self.values[number] = dict(values)

    def tags(self, number: int) -> dict[str, str]:  # noqa: ARG002 - the protocol's signature
        return {"saebench.role": "search"}

    def left(self) -> int:
        return self.trials - len(self.asked)

    def numbers(self) -> list[int]:
        return list(self.asked)

    def config(self, number: int) -> TrialConfig | None:
        return trial_config(number, total=self.total) if number in self.asked else None

    def ended(self, number: int) -> ToyEnded | None:
        return ToyEnded(self.told[number], self.values[number]) if number in self.told else None

    def restore(self, config: TrialConfig, tags: Mapping[str, str], evals: Mapping[int, Mapping[str, float]]) -> bool:  # noqa: ARG002
        if config != trial_config(config.number, total=self.total):
            return False
        self.asked = sorted({*self.asked, config.number})
        return True

    def reopen(self, number: int) -> TrialConfig:
        assert self.told.pop(number) == "failed"
        return trial_config(number, total=self.total)


@dataclass
class ToyTracker:
    """State of the run of every trial, as a server would have it."""

    runs: dict[int, str] = field(default_factory=dict)
    tags: dict[int, dict[str, str]] = field(default_factory=dict)

    def start(self, paths: SweepPaths) -> None:
        """Compare with what the directory says, as the real one does."""
        for trial in paths.trials():
            if (state := read_state(trial)) is not None:
                self.runs[state.number] = state.state if state.ended else "interrupted"

    def open(self, config: TrialConfig, tags: dict[str, str]) -> None:
        self.runs[config.number] = "running"
        self.tags.setdefault(config.number, {}).update(tags)

    def close_trial(self, number: int, state: str, reason: str, tags: dict[str, str]) -> None:
        self.runs[number] = state
        self.tags.setdefault(number, {}).update(tags, reason=reason)

    def lag(self) -> tuple[int, str | None]:
        return 0, None


@dataclass
class ToySignals:
    level: int = 0
    exit_code: int = 130
    why: str = "Ctrl-C"


class Quiet(QuietView):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
