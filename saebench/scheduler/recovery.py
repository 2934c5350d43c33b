"""What a scheduler that is gone has left behind, put in order before the next one starts trials.

Read in this order of trust: the events a worker recorded, `state.json`, Optuna's journal, MLflow. A trial ends here as
pruned or complete when its events say so, is announced again when only Optuna or MLflow missed its end, and goes on
from its checkpoint otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

import psutil

from saebench.runs import events
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths
from saebench.runs.state import TrialState, read_config, read_state
from saebench.scheduler.ledger import Ledger, Search

ORPHAN_GRACE = 60.0
"""Seconds that workers of a dead scheduler have for their checkpoint before they are killed."""


def recover(ledger: Ledger, search: Search, *, retry_failed: bool = False) -> list[int]:
    """Fill the ledger from disk and settle every trial; numbers of those that shall go on, in order."""
    unfinished = {config.number: config for config in search.running()}
    for trial in ledger.paths.trials():
        config, state = read_config(trial), read_state(trial)
        if config is None:
            continue
        if (state is not None and state.ended) or unfinished.get(config.number) == config:
            ledger.adopt(config, state or TrialState.of(config))
        else:  # Optuna's journal lost the end of itself, and with it this trial
            ledger.set_aside(config.number)
    for config in unfinished.values():
        ledger.open(config)
    waiting = [n for n in sorted(ledger.states) if not _settle(ledger, n, told=n not in unfinished)]
    return waiting + _tried_again(ledger, retry_failed)


def _settle(ledger: Ledger, number: int, *, told: bool) -> bool:
    """Bring one trial to a state that everybody agrees on; False when it has to go on. `told`: Optuna knows its end.
    (The tracker compares its own book with state.json when it starts.)"""
    state, trial = ledger.states[number], ledger.paths.trial(number)
    if state.ended:
        if not told:
            ledger.tell(number)
        return True
    done = _replay(ledger, number, trial)
    if done is not None:
        ledger.finish(number, "complete")
    elif state.verdict.get("verdict") == Verdict.PRUNE:
        ledger.finish(number, "pruned", f"weak at {state.judged:,} samples")
    else:
        ledger.interrupt(number, state.reason or "its scheduler ended")
    return state.ended


def _replay(ledger: Ledger, number: int, trial: TrialPaths) -> Event | None:
    """Hear what the worker recorded while nobody listened; its `done`, if it got as far."""
    state, done = ledger.states[number], None
    heard = state.attempts[-1].started if state.attempts else 0.0
    for event, _ in events.read(trial.events):
        ledger.see(number, event)
        heard = max(heard, event.ts / 1000)
        if event.type == "eval" and state.verdict.get("verdict") != Verdict.PRUNE:
            ledger.judge(number, event)
        elif event.type == "done":
            done = event
    state.close_attempt(at=heard)
    return done


def _tried_again(ledger: Ledger, every: bool) -> list[int]:
    """Failed trials that get another chance: all where that was asked for; and those that could not run at all, as
    long as nothing in this sweep ever could (the cause lies outside the trials, and is mended by now)."""
    failed = ledger.numbers("failed")
    if not every:
        alone = not ledger.numbers("complete", "pruned")
        failed = [n for n in failed if alone and ledger.states[n].kind == "user_error"]
    for number in failed:
        ledger.reopen(number)
    return failed


def await_orphans(trials: Iterable[TrialPaths], note: Callable[[str], None], grace: float = ORPHAN_GRACE) -> None:
    """Wait for workers of a dead scheduler to write their checkpoints and leave; kill those that do not."""
    orphans = [p for trial in trials if (p := _worker_of(trial)) is not None]
    if not orphans:
        return
    note(f"waiting for {len(orphans)} workers of the last scheduler to leave")
    _, alive = psutil.wait_procs(orphans, timeout=grace)
    for process in alive:
        note(f"process {process.pid} does not leave and is killed")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5.0)


def _worker_of(trial: TrialPaths) -> psutil.Process | None:
    """The process that runs the trial's newest attempt, if it still lives: the pid of the last `start` event, on this
    machine, leader of its group, and with the trial's log open (pids are used again, and clocks are set)."""
    start: Event | None = None
    for event, _ in events.read(trial.events):
        if event.type == "start":
            start = event
        elif event.type in ("done", "left", "failed"):
            start = None
    if start is None or "pid" not in start.info:
        return None
    try:
        process = psutil.Process(int(start.info["pid"]))
        leads = os.getpgid(process.pid) == process.pid and process.status() != psutil.STATUS_ZOMBIE
        return process if leads and str(trial.log.resolve()) in {file.path for file in process.open_files()} else None
    except (psutil.Error, ProcessLookupError, ValueError):
        return None
