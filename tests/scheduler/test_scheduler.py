"""The loop against in-process twins of executor, search and tracker (tests/fakes.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Faults, Quiet, ToyExecutor, ToySearch, ToySignals, ToyTracker, trial_config

import saebench.runs.state
from saebench.runs import events
from saebench.runs.board import Board, read_board
from saebench.runs.events import EventLog, FailureKind, Verdict
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState, read_state
from saebench.scheduler import Halt, Scheduler
from saebench.scheduler.ledger import Ledger
from saebench.scheduler.loop import STARTS
from saebench.scheduler.recovery import recover
from saebench.sweep_config import BudgetConfig, FailuresConfig, RetriesConfig


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here; what is left is the order of the writes."""
    monkeypatch.setattr("os.fsync", lambda _: None)


class World:
    """One sweep directory with what outlives a scheduler, and a clock that moves by a second at every poll."""

    def __init__(self, root: Path, trials: int = 4, *, weak: dict[int, int] | None = None, **executor: Any) -> None:
        self.paths = SweepPaths(root / "toy")
        self.search = ToySearch(trials, weak or {})
        self.tracker = ToyTracker()
        self.make = lambda: ToyExecutor(**executor)
        self.executor = self.make()
        self.signals = ToySignals()
        self.view = Quiet()
        self.board = Board("toy")
        self.seconds = 0.0

    def run(
        self,
        failures: FailuresConfig | None = None,
        budget: BudgetConfig | None = None,
        *,
        retry_failed: bool = False,
        on_poll: Callable[[], None] = lambda: None,
    ) -> Halt | None:
        """One life of a scheduler, from recovery to its end."""
        self.board = Board("toy")
        self.tracker.start(self.paths)
        ledger = Ledger(self.paths, self.search, self.tracker, self.board)
        self.recovered = recover(ledger, self.search, retry_failed=retry_failed, note=self.view.note)

        def tick() -> None:
            self.seconds += 1
            on_poll()

        self.executor.on_poll = tick
        self.scheduler = Scheduler(
            ledger,
            self.search,
            self.executor,
            self.view,
            self.signals,
            failures=failures or FailuresConfig(),
            budget=budget or BudgetConfig(),
            waiting=self.recovered.waiting,
            clock=lambda: self.seconds,
        )
        return self.scheduler.run()

    def again(self, **executor: Any) -> None:
        """The same command again: a new process with a new executor."""
        self.executor = ToyExecutor(**executor) if executor else self.make()
        self.signals, self.view = ToySignals(), Quiet()

    def state(self, number: int) -> TrialState:
        found = read_state(self.paths.trial(number))
        assert found is not None
        return found

    def states(self) -> list[str]:
        return [self.state(n).state for n in range(len(self.search.asked))]

    def histories(self) -> dict[int, list[tuple[str, int, dict[str, float]]]]:
        """Every metric point of every trial, without times and attempts."""
        return {
            n: [
                (e.type, e.samples, e.values)
                for e, _ in events.read(self.paths.trial(n).events)
                if e.type in ("step", "eval", "done")
            ]
            for n in self.search.asked
        }


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    lives = iter(range(1000))
    return lambda *args, **kwargs: World(tmp_path / str(next(lives)), *args, **kwargs)


def test_runs_every_trial_once_and_tells_everybody(world: Callable[..., World]) -> None:
    w = world(5)
    assert w.run() is None
    assert w.states() == ["complete"] * 5
    assert w.search.told == dict.fromkeys(range(5), "complete")
    assert w.tracker.runs == dict.fromkeys(range(5), "complete")
    assert sorted(w.executor.starts) == [(n, 1, "cuda:0") for n in range(5)]
    assert w.search.values[3] == {"eval/fvu": 4 / 40, "eval/l0": 4.0}
    assert w.board.counts["complete"] == 5
    assert not w.board.running


def test_never_more_trials_than_slots(world: Callable[..., World]) -> None:
    w = world(9, devices=2, per_device=2)
    w.run()
    assert max(len(t) for t in w.executor.together) == 4


def test_a_weak_trial_is_pruned_with_the_numbers_of_the_verdict(world: Callable[..., World]) -> None:
    w = world(3, weak={1: 20})
    assert w.run() is None
    assert w.states() == ["complete", "pruned", "complete"]
    state = w.state(1)
    assert (state.samples, state.judged, state.reason) == (20, 20, "weak at 20 samples")
    assert state.verdict == {"verdict": "prune", "samples": 20, "value": 0.1, "threshold": 0.5, "peers": 3}
    assert json.loads(w.tracker.tags[1]["saebench.verdict"])["threshold"] == 0.5
    assert any("stopped 0001: FVU 0.1 at 50% of the budget, limit 0.5" in note for note in w.view.notes)


def test_the_last_mark_prunes_nobody(world: Callable[..., World]) -> None:
    w = world(1, weak={0: 40})
    assert w.run() is None
    assert w.states() == ["complete"]


@pytest.mark.parametrize(
    ("kind", "retries"), [("crash", 2), ("host_oom", 1), ("diverged", 0), ("user_error", 0)], ids=lambda v: str(v)
)
def test_each_class_of_failure_has_its_retries(world: Callable[..., World], kind: Any, retries: int) -> None:
    faults: Faults = {(1, attempt, 30): kind for attempt in range(1, 9)}
    w = world(3, per_device=1, faults=faults)
    assert w.run() is None
    assert w.states() == ["complete", "failed", "complete"]
    state = w.state(1)
    assert [a.kind for a in state.attempts] == [kind] * (retries + 1)
    assert state.kind == kind
    assert state.reason.endswith(": toy")
    assert w.search.told[1] == "failed"
    assert w.tracker.runs[1] == "failed"


def test_a_retry_goes_on_from_the_checkpoint_inside_the_same_trial(world: Callable[..., World]) -> None:
    undisturbed = world(2)
    undisturbed.run()
    w = world(2, faults={(0, 1, 30): "crash"})
    assert w.run() is None
    assert w.histories() == undisturbed.histories()
    assert [(a.attempt, a.kind) for a in w.state(0).attempts] == [(1, "crash"), (2, None)]
    assert w.tracker.tags[0]["saebench.attempt"] == "2"
    assert len(w.search.asked) == 2


def test_a_crashed_trial_is_tried_again_on_another_device(world: Callable[..., World]) -> None:
    w = world(1, devices=2, per_device=1, faults={(0, 1, 10): "crash"})
    w.run()
    assert [device for _, _, device in w.executor.starts] == ["cuda:0", "cuda:1"]


def test_out_of_memory_on_a_shared_device_is_tried_once_alone(world: Callable[..., World]) -> None:
    w = world(6, devices=1, per_device=3, faults={(1, 1, 20): "cuda_oom"})
    assert w.run() is None
    assert w.states() == ["complete"] * 6
    assert (1, 2, "cuda:0") in w.executor.starts
    lease = w.executor.leases[w.executor.starts.index((1, 2, "cuda:0"))]
    assert lease.memory_fraction is None
    second = [t for t in w.executor.together if 1 in t and len(t) == 1]
    assert second, "its second attempt had the device to itself"
    assert w.state(1).attempts[1].kind is None


def test_out_of_memory_alone_on_the_device_is_final(world: Callable[..., World]) -> None:
    w = world(2, per_device=1, faults={(0, a, 10): "cuda_oom" for a in range(1, 5)})
    w.run()
    assert w.states() == ["failed", "complete"]
    assert len(w.state(0).attempts) == 1


def test_out_of_memory_again_although_alone_is_final(world: Callable[..., World]) -> None:
    w = world(2, per_device=2, faults={(0, a, 10): "cuda_oom" for a in range(1, 5)})
    w.run()
    assert w.states() == ["failed", "complete"]
    assert len(w.state(0).attempts) == 2


def test_silence_is_a_stall(world: Callable[..., World]) -> None:
    w = world(2, faults={(0, 1, 20): "stall"})
    assert w.run(FailuresConfig(stall_after=30)) is None
    assert w.states() == ["complete", "complete"]
    assert [a.kind for a in w.state(0).attempts] == ["stall", None]
    assert 30 < w.seconds < 60


def test_a_worker_that_leaves_unasked_goes_on(world: Callable[..., World]) -> None:
    w = world(3, faults={(1, 1, 30): "killed"})
    assert w.run() is None
    assert w.states() == ["complete"] * 3
    assert [a.kind for a in w.state(1).attempts] == ["killed", None]


def test_a_worker_that_ends_without_a_result_has_crashed(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fakes

    def silent(*_: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(fakes, "toy_worker", silent)
    w = world(1)
    w.run()
    assert w.state(0).reason == "crashed: it ended without a result"


def test_a_device_that_crashes_different_trials_in_a_row_leaves_the_pool(world: Callable[..., World]) -> None:
    w = world(8, devices=2, per_device=1)
    w.executor.faults = BadDevice(w.executor, "cuda:1")
    w.run(FailuresConfig(quarantine_after=3, abort_min=100))
    assert [d for _, _, d in w.executor.starts].count("cuda:1") == 3
    assert w.states() == ["complete"] * 8
    assert any("3 crashes in a row; taken out of the pool" in note for note in w.view.notes)


def test_one_bad_trial_does_not_condemn_a_device(world: Callable[..., World]) -> None:
    w = world(1, devices=2, per_device=1, faults={(0, a, 10): "crash" for a in range(1, 9)})
    w.run(FailuresConfig(quarantine_after=1, retries=RetriesConfig(crash=5)))
    assert w.states() == ["failed"]
    w = world(2, devices=2, per_device=1, faults={(0, a, 10): "crash" for a in range(1, 9)})
    w.run(FailuresConfig(quarantine_after=3, retries=RetriesConfig(crash=7)))
    assert len(w.executor.slots) == 2


@pytest.mark.parametrize("kind", ["lost", "preempted"])
def test_a_lost_machine_is_nobodys_fault(world: Callable[..., World], kind: FailureKind) -> None:
    """Twenty times it is tried again, wherever there is room; more is a failure, but no reason to give up."""
    w = world(2, devices=2, per_device=1, faults={(0, a, 10): kind for a in range(1, 21)})
    assert w.run(FailuresConfig(quarantine_after=1, abort_min=1)) is None
    assert w.states() == ["complete"] * 2
    assert len(w.executor.slots) == 2
    w = world(2, devices=2, per_device=1, faults={(n, a, 10): kind for n in (0, 1) for a in range(1, 22)})
    assert w.run(FailuresConfig(quarantine_after=1, abort_min=1)) is None
    assert w.states() == ["failed"] * 2
    assert len(w.executor.slots) == 2


def test_without_a_slot_the_search_is_not_over(world: Callable[..., World]) -> None:
    """A cluster whose machines are all gone may get some again."""
    w = world(2, devices=1, per_device=1)
    slots, w.executor._slots = w.executor._slots, []
    turns = iter(range(100))
    halt = w.run(on_poll=lambda: w.executor._slots.extend(slots) if next(turns) == 5 else None)
    assert halt is None
    assert w.states() == ["complete"] * 2


class BadDevice(dict[tuple[int, int, int], Any]):
    """Faults of a device on which everything crashes after 10 samples."""

    def __init__(self, executor: ToyExecutor, device: str) -> None:
        super().__init__()
        self._executor, self._device = executor, device

    def get(self, key: tuple[int, int, int], default: Any = None) -> Any:
        here = self._executor.active[key[0]].slot.device == self._device
        return "crash" if here and key[2] >= 10 else default


def test_the_failure_budget_gives_up_with_a_reason(world: Callable[..., World]) -> None:
    faults: Faults = {(n, 1, 10): "diverged" for n in range(0, 40, 2)}
    w = world(40, per_device=1, faults=faults)
    halt = w.run(FailuresConfig(abort_min=10, abort_fraction=0.5))
    assert halt is not None
    assert halt.exit_code == 4
    assert halt.reason.startswith("5 of 10 ended trials failed")
    assert len(w.search.asked) == 10


def test_a_user_error_in_the_first_trial_stops_the_sweep(world: Callable[..., World]) -> None:
    w = world(50, faults={(n, a, 0): "user_error" for n in range(50) for a in range(3)})
    halt = w.run()
    assert halt is not None
    assert (halt.exit_code, halt.reason) == (4, "trial 0000: toy")
    assert str(halt) == "trial 0000 cannot run as the spec asks", "the reason stands beside the trial"
    assert len(w.search.asked) == 2
    w.again(per_device=2)
    assert w.run() is None, "the cause is mended: the same command goes on"
    assert w.states() == ["complete"] * 50


def test_a_user_error_later_fails_its_trial_only(world: Callable[..., World]) -> None:
    w = world(4, per_device=1, faults={(2, 1, 0): "user_error"})
    assert w.run() is None
    assert w.states() == ["complete", "complete", "failed", "complete"]


# --- being told to stop ----------------------------------------------------------------------------------------------


def at(turn: int, do: Callable[[], None]) -> Callable[[], None]:
    turns = iter(range(1, 10_000))
    return lambda: do() if next(turns) == turn else None


def test_ctrl_c_once_lets_trials_checkpoint_and_leave(world: Callable[..., World]) -> None:
    undisturbed = world(6)
    undisturbed.run()
    w = world(6)
    halt = w.run(on_poll=at(3, lambda: setattr(w.signals, "level", 1)))
    assert halt is not None
    assert (halt.exit_code, halt.reason, halt.now) == (130, "Ctrl-C", False)
    assert w.states() == ["interrupted"] * 2
    assert w.search.told == {}
    assert w.tracker.runs == {0: "interrupted", 1: "interrupted"}
    w.again()
    assert w.run() is None
    assert w.states() == ["complete"] * 6
    assert w.histories() == undisturbed.histories()


def test_ctrl_c_twice_kills(world: Callable[..., World]) -> None:
    w = world(2, faults={(n, 1, 20): "stall" for n in range(2)})
    turns = iter(range(10_000))

    def press() -> None:
        turn = next(turns)
        w.signals.level = 2 if turn > 20 else 1 if turn > 10 else 0

    halt = w.run(on_poll=press)
    assert halt is not None
    assert halt.now
    assert halt.exit_code == 130
    assert w.states() == ["interrupted"] * 2
    assert w.seconds < 30


def test_a_worker_that_does_not_leave_is_killed_in_the_end(world: Callable[..., World]) -> None:
    w = world(1, faults={(0, 1, 20): "stall"})
    halt = w.run(on_poll=at(10, lambda: setattr(w.signals, "level", 1)))
    assert halt is not None
    assert 90 < w.seconds < 120
    assert w.states() == ["interrupted"]


def test_sigterm_is_resumable(world: Callable[..., World]) -> None:
    w = world(2)
    w.signals = ToySignals(1, 75, "SIGTERM")
    halt = w.run()
    assert halt == Halt("SIGTERM", 75)
    assert w.search.asked == []


@pytest.mark.parametrize("how", ["", "now"])
def test_the_stop_file_of_another_terminal(world: Callable[..., World], how: str) -> None:
    w = world(6)
    halt = w.run(on_poll=at(2, lambda: w.paths.stop.write_text(how)))
    assert halt == Halt("saebench stop", 75, now=how == "now")
    assert w.states() == ["interrupted"] * 2


def test_a_failure_while_stopping_is_left_for_the_next_time(world: Callable[..., World]) -> None:
    w = world(1, faults={(0, 1, 10): "crash"})
    w.run(on_poll=at(3, lambda: setattr(w.signals, "level", 1)))
    assert w.states() == ["interrupted"]
    assert w.tracker.runs == {0: "interrupted"}
    w.again()
    assert w.run() is None
    assert w.states() == ["complete"]


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_budget_of_wall_hours_ends_cleanly(world: Callable[..., World]) -> None:
    w = world(20)
    halt = w.run(budget=BudgetConfig(wall_hours=5 / 3600))
    assert halt is not None
    assert halt.exit_code == 75
    assert "wall_hours" in halt.reason
    assert set(w.states()) <= {"complete", "interrupted"}
    w.again()
    w.run()
    assert w.states() == ["complete"] * 20


def test_budget_of_samples_counts_what_earlier_runs_trained(world: Callable[..., World]) -> None:
    w = world(20)
    halt = w.run(budget=BudgetConfig(samples=100))
    assert halt is not None
    assert "budget.samples = 100" in halt.reason
    trained = sum(w.state(n).samples for n in w.search.asked)
    assert 100 <= trained <= 140
    w.again()
    halt = w.run(budget=BudgetConfig(samples=100))
    assert halt is not None
    assert w.executor.starts == []


def test_budget_of_samples_that_is_just_enough_is_no_halt(world: Callable[..., World]) -> None:
    w = world(3)
    assert w.run(budget=BudgetConfig(samples=3 * 40)) is None


def test_budget_of_trial_minutes_stops_that_trial(world: Callable[..., World]) -> None:
    w = world(3, faults={(1, 1, 20): "stall"})
    halt = w.run(FailuresConfig(stall_after=1000), BudgetConfig(trial_minutes=0.5))
    assert halt is not None
    assert halt.exit_code == 75
    assert w.states() == ["complete", "interrupted", "complete"]
    assert "trial_minutes" in w.state(1).reason


# --- resuming --------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """The scheduler is gone in the middle of something."""


class Deaths:
    """Counts every durable or outward act of the scheduler, and dies before or after the n-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, w: World) -> None:
        self.acts = 0
        self.when = -1
        self.after = False
        targets: list[tuple[Any, str]] = [(saebench.runs.state, "write_json")]
        targets += [(w.search, name) for name in ("ask", "report", "tell", "commit")]
        targets += [(w.tracker, name) for name in ("open", "close_trial")]
        for owner, name in targets:
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name)))
        self._start = self._mortal

    def _mortal(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(*args: Any, **kwargs: Any) -> Any:
            self.acts += 1
            dies = self.acts == self.when
            if dies and not self.after:
                raise Died
            result = act(*args, **kwargs)
            if dies:
                raise Died
            return result

        return mortal


def disturbed(world: Callable[..., World], when: int, *, after: bool, lifeline: bool) -> World | None:
    """A sweep whose scheduler dies at its `when`-th act; None when it has fewer."""
    with pytest.MonkeyPatch.context() as patch:
        w = world(4, weak={2: 20}, faults={(1, 1, 20): "crash", (3, 1, 10): "diverged"})
        deaths = Deaths(patch, w)
        deaths.when, deaths.after = when, after
        try:
            w.run()
        except Died:
            w.executor.lose_scheduler() if lifeline else w.executor.close()
            w.search.lose_power()
            deaths.when = -1
            faults = w.executor.faults
            w.again(faults={key: kind for key, kind in faults.items() if kind == "diverged"} | again_diverges())
            assert w.run() is None
            return w
    return None


def again_diverges() -> Faults:
    """Divergence is a property of the trial: it happens in every attempt."""
    return {(3, attempt, 10): "diverged" for attempt in range(1, 6)}


@pytest.mark.parametrize("lifeline", [True, False], ids=["workers leave", "workers die too"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_scheduler_that_dies_at_any_act_costs_nothing(
    world: Callable[..., World], after: bool, lifeline: bool
) -> None:
    undisturbed = world(4, weak={2: 20}, faults={(1, 1, 20): "crash", (3, 1, 10): "diverged"})
    undisturbed.run()
    assert undisturbed.states() == ["complete", "complete", "pruned", "failed"]
    when = 0
    while (w := disturbed(world, when := when + 1, after=after, lifeline=lifeline)) is not None:
        assert w.states() == undisturbed.states(), when
        assert w.search.told == undisturbed.search.told, when
        assert w.tracker.runs == undisturbed.tracker.runs, when
        assert w.histories() == undisturbed.histories(), when
        assert w.search.reports == undisturbed.search.reports, when
        assert w.search.values[0] == undisturbed.search.values[0]
    assert when > 40


def test_nothing_is_acknowledged_before_it_is_committed(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(12, weak={2: 20, 5: 20}, devices=2, per_device=3)
    commits = 0
    commit, answer, start, pruned = w.search.commit, w.executor.answer, w.executor.start, list[int]()

    def committed() -> None:
        nonlocal commits
        commits += bool(w.search.uncommitted)
        commit()

    def told(number: int, verdict: Verdict) -> None:
        assert not w.search.uncommitted, "a verdict before its record"
        if verdict == Verdict.PRUNE:
            assert w.state(number).verdict["verdict"] == "prune"
            pruned.append(number)
        answer(number, verdict)

    def begun(attempt: Any, slot: Any) -> None:
        assert not w.search.uncommitted, "a start before the record of its trial"
        start(attempt, slot)

    for owner, name, new in (
        (w.search, "commit", committed),
        (w.executor, "answer", told),
        (w.executor, "start", begun),
    ):
        monkeypatch.setattr(owner, name, new)
    assert w.run() is None
    assert pruned == [2, 5]
    assert commits < len(w.search.reports), "those of one turn are committed together"


def test_a_turn_starts_a_few_trials_and_waits_for_nothing_until_all_have_started(world: Callable[..., World]) -> None:
    w = world(3 * STARTS, devices=1, per_device=3 * STARTS)
    waits: list[float] = []
    poll = w.executor.poll
    w.executor.poll = lambda timeout: (waits.append(timeout), poll(timeout))[1]  # type: ignore[method-assign]
    assert w.run() is None
    assert [len(t) for t in w.executor.together[:3]] == [STARTS, 2 * STARTS, 3 * STARTS]
    assert waits[:2] == [0, 0]
    assert waits[3] > 0


def test_state_is_written_when_it_changes_and_not_at_every_mark(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = saebench.runs.state.write_json

    def write(path: Path, value: Any, **more: Any) -> None:
        written.append(path.parent.name)
        real(path, value, **more)

    monkeypatch.setattr(saebench.runs.state, "write_json", write)
    w = world(2, weak={1: 20})
    w.run()
    assert written.count("0000") == 3, "config.json, running, complete"
    assert written.count("0001") == 4, "config.json, running, to be pruned, pruned"


def test_a_finished_sweep_starts_nothing(world: Callable[..., World]) -> None:
    w = world(3, weak={1: 20})
    w.run()
    before = w.histories()
    w.again()
    assert w.run() is None
    assert w.executor.starts == []
    assert w.histories() == before


def test_failed_trials_are_tried_again_only_when_asked(world: Callable[..., World]) -> None:
    w = world(3, faults={(1, a, 20): "crash" for a in range(1, 4)})
    w.run()
    w.again(per_device=2)
    w.run()
    assert w.states() == ["complete", "failed", "complete"]
    assert w.executor.starts == []
    w.again(per_device=2)
    assert w.run(retry_failed=True) is None
    assert w.states() == ["complete"] * 3
    assert w.executor.starts == [(1, 4, "cuda:0")]
    assert w.search.told[1] == "complete"
    assert w.tracker.runs[1] == "complete"
    assert not w.board.failures


def test_a_retry_asked_for_while_the_sweep_runs(world: Callable[..., World]) -> None:
    w = world(8, per_device=1, faults={(0, 1, 10): "diverged"})
    halt = w.run(on_poll=at(15, lambda: w.paths.retry.write_text("[0, 3, 99]")))
    assert halt is None
    assert w.states() == ["complete"] * 8
    assert not w.paths.retry.exists()


def test_a_retried_trial_gets_all_its_retries_again(world: Callable[..., World]) -> None:
    w = world(1, faults={(0, a, 20): "crash" for a in range(1, 6)})
    w.run()
    assert len(w.state(0).attempts) == 3
    w.again(faults={(0, a, 20): "crash" for a in range(1, 6)})
    w.run(retry_failed=True)
    assert w.states() == ["complete"], "attempts 4 and 5 crash, attempt 6 is the second retry"


def test_a_trial_that_finished_unheard_is_not_run_again(world: Callable[..., World]) -> None:
    w = world(1)
    w.search.ask()
    log = EventLog(w.paths.trial(0).events)
    for kind, samples in (("eval", 20), ("eval", 40), ("done", 40)):
        log.append(events.Event(kind, samples, {"eval/fvu": 1 / samples}))  # type: ignore[arg-type]
    log.close()
    Ledger(w.paths, w.search, w.tracker, Board("toy")).open(trial_config(0))
    assert w.run() is None
    assert w.executor.starts == []
    assert w.search.told == {0: "complete"}
    assert w.search.values[0] == {"eval/fvu": 1 / 40}
    assert sorted(w.search.reports) == [(0, 20), (0, 40)]


def test_a_directory_of_a_trial_that_optuna_lost_is_put_aside(world: Callable[..., World]) -> None:
    w = world(2)
    Ledger(w.paths, ToySearch(1), ToyTracker(), Board("toy")).open(trial_config(0, seed=7))
    assert w.run() is None
    assert w.states() == ["complete"] * 2
    assert json.loads(w.paths.trial(0).config.read_text())["seed"] == 0
    assert len(list((w.paths.root / "trials").glob("0000.lost-*"))) == 1


def test_a_state_file_that_is_torn_costs_the_record_but_not_the_trial(world: Callable[..., World]) -> None:
    w = world(2)
    w.run(on_poll=at(5, lambda: setattr(w.signals, "level", 1)))
    w.paths.trial(0).state.write_text('{"number": 0, "att')
    w.again()
    assert w.run() is None
    assert w.states() == ["complete"] * 2


def test_the_board_from_files_is_the_board_of_the_scheduler(world: Callable[..., World]) -> None:
    w = world(5, weak={2: 20}, faults={(3, 1, 10): "diverged"}, per_device=1)
    w.run()
    seen = read_board(w.paths)
    assert +seen.counts == +w.board.counts
    assert seen.failures == w.board.failures == {3: "diverged: toy"}
    assert list(seen.verdicts) == list(w.board.verdicts)


def test_a_cluster_is_told_how_many_trials_may_still_run(tmp_path: Path) -> None:
    """All that are left, then those that run; a failed attempt counts until its trial has ended."""
    world = World(tmp_path, trials=4, devices=2, per_device=1, faults={(3, 1, 20): "lost"})
    assert world.run() is None
    demands = world.executor.demands
    assert demands[0] == 4
    assert demands == sorted(demands, reverse=True)
    assert demands[-1] == 1
    assert 0 not in demands, "at the end everything is given back anyway"


def test_what_waits_does_not_count_when_the_sweep_stops(tmp_path: Path) -> None:
    world = World(tmp_path, trials=6, devices=2, per_device=1)

    def stop() -> None:
        if world.seconds == 2:
            world.signals.level = 1

    assert world.run(on_poll=stop) is not None
    demands = world.executor.demands
    assert demands[0] == 6
    assert demands[-1] <= 2
