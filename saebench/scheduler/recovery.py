"""Recover the state of an earlier scheduler before this one starts trials.

Four places record how a trial ended: the events that its worker wrote, config.json and state.json beside them, Optuna's
journal, and MLflow. Each is rebuilt from the others: a trial that the journal lost is added to it again, a lost config
or state is written again. Lost files that cannot be rebuilt (a trained SAE, a history) are reported in a line each, and
the sweep ends with exit code 3. A trial ends here as pruned or complete if its events say so, and is resumed from its
checkpoint otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from saebench.config import TrialConfig
from saebench.runs import events
from saebench.runs.events import Event, Verdict
from saebench.runs.files import DamagedError, file_sum
from saebench.runs.paths import TrialPaths
from saebench.runs.state import AttemptRecord, TrialState, load_config, load_state, same_trial, write_config
from saebench.scheduler.ledger import Ledger, event_file
from saebench.scheduler.protocols import Ended, RecoverableSearch

COMPARED = 1 << 30
"""Most bytes of finished trials whose checksums a start compares; beyond that, only sizes."""


@dataclass
class Recovered:
    """What recovery found."""

    waiting: list[int] = field(default_factory=list)
    """Trials to resume, in order."""
    lost: list[str] = field(default_factory=list)
    """Lost files that cannot be rebuilt, a line each."""


def recover(
    ledger: Ledger,
    search: RecoverableSearch,
    *,
    retry_failed: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Recovered:
    """Fill the ledger from disk and bring every trial to one state in all places; report to `note` what was rebuilt."""
    found = Recovered()
    unread = _restore_lost(ledger, search, note)
    unfinished = {config.number for config in search.running()}
    for number in search.numbers():
        _adopt(ledger, search, number, found, note)
    for number in sorted(ledger.states):
        if not _reconcile(ledger, number, known=number not in unfinished):
            found.waiting.append(number)
    found.lost += unread + _lost_files(ledger)
    found.waiting += _retried(ledger, retry_failed)
    return found


def _restore_lost(ledger: Ledger, search: RecoverableSearch, note: Callable[[str], None]) -> list[str]:
    """Add to the search the trials that its journal lost; return lines on directories that cannot be read."""
    known, restored, lost = set(search.numbers()), [], []
    for trial in ledger.paths.trials():
        if trial.number in known:
            continue
        config, state, why = _read(trial)
        evals = {e.samples: e.values for e, _ in events.read(trial.events) if e.type == "eval"}
        if config is not None and search.restore(config, state.search if state else {}, evals):
            restored.append(trial.number)
        elif any(trial.root.iterdir()):
            ledger.set_aside(trial.number)
            reason = why or "it is not a trial of this sweep"
            lost.append(f"{trial.root}: the search does not know this trial ({reason}); renamed to .lost-...")
        else:
            trial.root.rmdir()
    if restored:
        note(f"{ledger.paths.journal}: {len(restored)} trials were missing and are read from their directories again")
    return lost


def _read(trial: TrialPaths) -> tuple[TrialConfig | None, TrialState | None, str]:
    """Return config and state of a trial, and why one of them cannot be read."""
    config, state, why = None, None, ""
    try:
        config = load_config(trial)
    except DamagedError as error:
        why = str(error)
    try:
        state = load_state(trial)
    except DamagedError as error:
        why = why or str(error)
    if config is None and not why:
        why = f"{trial.config}: is missing"
    return config, state, why


def _adopt(
    ledger: Ledger, search: RecoverableSearch, number: int, found: Recovered, note: Callable[[str], None]
) -> None:
    """Recover one trial that the search knows."""
    config, trial = search.config(number), ledger.paths.trial(number)
    assert config is not None
    ended = search.ended(number)
    if not trial.root.is_dir() or not any(trial.root.iterdir()):
        if ended is None:
            ledger.open(config)
            return
        found.lost.append(f"{trial.root}: is missing, with its SAE and its history; its final numbers are kept")
        write_config(trial, config)
        ledger.adopt(config, _rebuilt(config, search, trial, ended))
        ledger.rewrite(number)
        return
    on_disk, state, why = _read(trial)
    if on_disk is not None and not same_trial(on_disk, config):
        ledger.set_aside(number)
        found.lost.append(f"{trial.root}: held another trial of that number; renamed to .lost-...")
        _adopt(ledger, search, number, found, note)
        return
    if on_disk is None:
        write_config(trial, config)
        note(f"{why}; written again")
    fresh = state is None
    state = state or _rebuilt(config, search, trial, ended)
    state.search = search.tags(number)
    ledger.adopt(config, state)
    if fresh and trial.events.exists():
        ledger.rewrite(number)
        note(f"{trial.state}: was missing or damaged; written again from {trial.events.name}")


def _rebuilt(config: TrialConfig, search: RecoverableSearch, trial: TrialPaths, ended: Ended | None) -> TrialState:
    """Return the state of a trial from its events and from the journal."""
    state = TrialState.of(config)
    state.search = search.tags(config.number)
    last = 0.0
    for event, _ in events.read(trial.events):
        last = event.ts / 1000
        if event.type == "start":
            state.close_attempt(at=last)
            device = str(event.info.get("device", ""))
            state.attempts.append(AttemptRecord(event.attempt, device, device, last))
        state.samples = max(state.samples, event.samples)
        if event.type in ("eval", "done"):
            state.values = dict(event.values)
        if event.type == "done":
            state.files = event.files() | event_file(trial)
    if ended is not None:
        state.close_attempt(ended.kind, at=last)
        state.state, state.kind, state.verdict = ended.state, ended.kind, dict(ended.verdict)
        state.values = dict(ended.values) or state.values
        state.judged = int(state.verdict.get("samples", 0))
        state.reason = ended.kind or (f"weak at {state.judged:,} samples" if ended.state == "pruned" else "")
        state.samples = state.total if ended.state == "complete" else state.samples
    return state


def _reconcile(ledger: Ledger, number: int, *, known: bool) -> bool:
    """Bring one trial to the same state in all places; return False if it has to be resumed. `known`: Optuna has its
    end. (The tracker compares its own book with state.json at its start.)"""
    state, trial = ledger.states[number], ledger.paths.trial(number)
    if state.ended:
        if not known:
            ledger.tell(number)
        return True
    done = _replay(ledger, number, trial)
    ledger.commit()
    if done is not None:
        ledger.finish(number, "complete")
    elif state.verdict.get("verdict") == Verdict.PRUNE:
        ledger.finish(number, "pruned", f"weak at {state.judged:,} samples")
    else:
        ledger.interrupt(number, state.reason or "its scheduler ended")
    return state.ended


def _replay(ledger: Ledger, number: int, trial: TrialPaths) -> Event | None:
    """Process the events that the worker recorded after the scheduler died; return its `done` event, if there is
    one."""
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


def _lost_files(ledger: Ledger) -> list[str]:
    """Return lines on files of complete trials that are missing or changed."""
    lost, compared = [], 0
    for number in ledger.numbers("complete"):
        state, root = ledger.states[number], ledger.paths.trial(number).root
        for name, (size, crc) in state.files.items():
            path = root / name
            if not path.is_file():
                lost.append(f"{path}: is missing; the trial's numbers are kept")
                continue
            compared += size
            if path.stat().st_size != size or (compared <= COMPARED and file_sum(path) != (size, crc)):
                lost.append(f"{path}: was changed or cut after the trial ended; the trial's numbers are kept")
    return lost


def _retried(ledger: Ledger, every: bool) -> list[int]:
    """Return the failed trials to retry: all with `--retry-failed`; otherwise those that could not run at all, if no
    trial of this sweep ever could (the cause lies outside the trials, and may be fixed)."""
    failed = ledger.numbers("failed")
    if not every:
        alone = not ledger.numbers("complete", "pruned")
        failed = [n for n in failed if alone and ledger.states[n].kind == "user_error"]
    for number in failed:
        ledger.reopen(number)
    return failed
