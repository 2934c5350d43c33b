"""One start of a sweep: the checks before the first trial, the trials, and the end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import ExecutorLostError, LockedError, PreflightError, SpecError, StorageLostError
from saebench.executors import TARGET
from saebench.executors.table import make_executor
from saebench.forecast import empty_board, without_kernels
from saebench.plan import Plan, make_plan
from saebench.runs.board import Board
from saebench.runs.clock import duration
from saebench.runs.durable import write_text
from saebench.runs.holder import now
from saebench.runs.lock import Extension, Lock, Tracked, check_unchanged, provenance, read_lock, write_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.secrets import is_masked, mask
from saebench.scheduler import Halt, Scheduler
from saebench.scheduler.interrupts import Interrupts
from saebench.scheduler.ledger import Ledger, MovedError
from saebench.scheduler.recovery import recover
from saebench.sweep.embeddings import Embeddings
from saebench.sweep.given import GivenSpec, unmasked_uri
from saebench.sweep.result import SweepResult
from saebench.sweep.storage import Storage
from saebench.sweep_config import RunConfig, TrackingConfig
from saebench.terminal.picture import counts_text, failure_lines
from saebench.terminal.views import View
from saebench.trial import floor_process

if TYPE_CHECKING:
    from saebench.executors import Executor
    from saebench.study import Search
    from saebench.tracking import Lag, Tracker

_RUN_STATUS = {0: "FINISHED", 3: "FINISHED", 4: "FAILED"}


END_PATIENCE = 120.0
"""Seconds that a sweep at its end waits for a tracking server without progress: enough for a restart of the server."""
HURRIED_PATIENCE = 20.0
"""The same if the sweep was asked to stop."""


class SweepRun:
    """One run of a sweep's scheduler."""

    def __init__(
        self,
        given: GivenSpec,
        paths: SweepPaths,
        cache: Path,
        view: View,
        signals: Interrupts,
        target: str,
        executor: Executor | None,
        circular_anyway: bool,
    ) -> None:
        self._given, self._spec, self._target, self._executor = given, given.spec, target, executor
        self._paths, self._cache, self._view, self._signals = paths, cache, view, signals
        self._embeddings = Embeddings(given.spec, paths, cache, view, circular_anyway)
        self._storage = Storage(given.spec, paths)
        self._lost: list[str] = []
        self.begun = False
        """lock.json is written."""

    def close(self) -> None:
        """Release everything but the sweep's directory. Idempotent."""
        self._storage.close()

    def run(self, extend: bool, retry_failed: bool) -> SweepResult:
        from saebench.study import Search
        from saebench.tracking import Tracker

        self._remove_stop()
        lock = self._known_lock()
        changes = check_unchanged(lock.spec, self._spec.plain(), self._paths, extend=extend) if lock else {}
        storage = self._storage.open(self._view.note, lambda: self._signals.level > 0)
        tracker = Tracker(self._paths, self._reachable_tracking(lock), self._spec.name)
        made = self._executor or make_executor(self._run_config(lock), self._cache, self._target)
        with contextlib.closing(made) as executor:
            self._view.say(f"sweep {self._spec.name}: {self._paths.root}")
            self._view.say(f"embedding cache: {self._cache}")
            lock = self._with_threads(self._resolved(lock, self._embeddings.prepare(executor, lock), changes), executor)
            plan = make_plan(self._spec, lock.d_in, lock.cache_key, lock.second_key)
            if lock.num_train is not None:
                plan.check_corpus(lock.num_train)
            for line in without_kernels(plan):
                self._view.note(line)
            executor.recover(self._paths, self._view.note, [key for key in (lock.cache_key, lock.second_key) if key])
            self._paths.remove_left_overs()
            search = Search(plan, storage)
            self._storage.refuse_foreign(search)
            tracker.start(lock.info())
            self._view.say(f"tracking: {mask(tracker.uri)}")
            exit_code, patience = 75, HURRIED_PATIENCE
            floors = self._floors(plan)
            try:
                self._write_lock(lock, tracker)
                self.begun = True
                board, halt = self._trials(empty_board(plan), search, executor, tracker, retry_failed)
                exit_code = halt.exit_code if halt else 3 if board.failures or self._lost else 0
                patience = HURRIED_PATIENCE if halt else END_PATIENCE
            except (MovedError, LockedError):
                patience = 0.0
                raise
            finally:
                if floors is not None:
                    floor_process.finish(floors, self._view.say) if exit_code in (0, 3) else floor_process.stop(floors)
                waiting = partial(self._await, patience)
                lag = tracker.close(_RUN_STATUS.get(exit_code, "KILLED"), patience=patience, waiting=waiting)
        self._report_end(board, halt, lag)
        result = SweepResult(
            self._paths.name,
            self._paths.root,
            exit_code,
            halt.reason if halt else "",
            {state: count for state, count in board.counts.items() if count},
            dict(board.failures),
            mask(tracker.uri),
            tracker.run_id,
        )
        if exit_code in (0, 3) and self._target == TARGET and not (lag.unsent or lag.error):
            self._publish(result)
        return result

    def _remove_stop(self) -> None:
        with contextlib.suppress(OSError):  # a folder, or in a directory that cannot be written to, which is said later
            self._paths.stop.unlink(missing_ok=True)

    def _known_lock(self) -> Lock | None:
        """Return the sweep's lock.json. A lost one is written again from the spec; recovery compares every existing
        trial with it."""
        try:
            lock = read_lock(self._paths)
            if lock is None and self._paths.trials():
                raise SpecError(f"{self._paths.lock}: is missing")
        except SpecError as error:
            self._lost.append(f"{error}; written again from the spec; start time and versions are lost")
            return None
        return lock

    def _reachable_tracking(self, lock: Lock | None) -> TrackingConfig:
        """Return the spec's tracking with the address that this start uses. Raises PreflightError if it does not
        answer."""
        from saebench.tracking.address import start_uri
        from saebench.tracking.server import check

        tracking, before = self._spec.tracking, lock.tracking if lock else Tracked()
        if tracking.uri and is_masked(tracking.uri):
            tracking = tracking.model_copy(update={"uri": unmasked_uri(tracking.uri)})
        uri = start_uri(tracking, before.uri or None, self._view.note, self._paths.root, before.run_id)
        check(uri)
        return tracking.model_copy(update={"uri": uri})

    def _run_config(self, lock: Lock | None) -> RunConfig:
        """Return the spec's `run` with the number of threads that the first start has fixed."""
        run = self._spec.run
        return run if lock is None or lock.threads is None else run.model_copy(update={"threads": lock.threads})

    def _with_threads(self, lock: Lock, executor: Executor) -> Lock:
        if lock.threads is not None or not executor.slots:
            return lock
        return lock.model_copy(update={"threads": executor.slots[0].threads})

    def _resolved(self, lock: Lock | None, data: dict[str, Any], changes: dict[str, tuple[Any, Any]]) -> Lock:
        """Return the new content of lock.json: as before, plus the extension."""
        spec = self._spec
        if lock is None:
            head = {"name": spec.name, "description": spec.description, "spec": spec.plain()}
            return Lock(**head, **data, **provenance(self._given.folder))
        if lock.d_in != data["d_in"]:
            raise PreflightError(
                f"{self._paths.root}: started with embeddings of width {lock.d_in}, now it is {data['d_in']}; put back "
                "what has changed, or give the sweep another name"
            )
        if not changes:
            return lock
        extended = (*lock.extended, Extension(at=now(), changes=changes))
        return lock.model_copy(update={"spec": spec.plain(), "extended": extended})

    def _write_lock(self, lock: Lock, tracker: Tracker) -> None:
        where = Tracked(uri=mask(tracker.uri), experiment_id=tracker.experiment_id, run_id=tracker.run_id)
        lock = lock.model_copy(update={"tracking": where})
        if lock.info() != _info_on_disk(self._paths) or not self._paths.spec.is_file():
            write_text(self._paths.spec, mask(self._given.text, tracker.uri, self._spec.search.storage or ""))
            write_lock(self._paths, lock)

    def _floors(self, plan: Plan) -> subprocess.Popen[str] | None:
        """Start a process that measures the floors beside the trials; None if they are known or cannot be measured."""
        sizes = set(floor_sizes(plan))
        if self._target != TARGET or plan.cache_key is None or sizes <= floor_process.measured(self._paths.floors):
            return None
        with contextlib.suppress(OSError):  # no room for another process: the trials matter more
            return floor_process.start(self._spec.data, self._cache, plan.cache_key, sizes, self._paths.floors)
        return None

    def _trials(
        self, board: Board, search: Search, executor: Executor, tracker: Tracker, retry_failed: bool
    ) -> tuple[Board, Halt | None]:
        self._signals.patient = True
        ledger = Ledger(self._paths, search, tracker, board)
        recovered = recover(ledger, search, retry_failed=retry_failed, note=self._view.note)
        self._lost += recovered.lost
        for line in self._lost:
            self._view.say(f"damaged: {line}")
        board.ended_before, board.started = board.ended, time.time()
        scheduler = Scheduler(
            ledger,
            search,
            executor,
            self._view,
            self._signals,
            failures=self._spec.run.failures,
            budget=self._spec.budget,
            grace=self._spec.run.grace,
            waiting=recovered.waiting,
        )
        try:
            halt = scheduler.run()
            self._storage.copy(search)
            return board, halt
        except StorageLostError as error:  # nothing is written of the trials that ran: the next start replays them
            return board, Halt(str(error), error.exit_code)
        except ExecutorLostError as error:
            for number in ledger.numbers("running"):
                ledger.interrupt(number, str(error))
            return board, Halt(str(error), error.exit_code)
        finally:
            self._remove_stop()

    def _await(self, patience: float, lag: Lag) -> None:
        why = f" ({lag.error})" if lag.error else ""
        waiting = f"{lag.unsent} event{'s' * (lag.unsent != 1)} wait for MLflow"
        what = waiting if lag.unsent else "closing the runs in MLflow takes long"
        self._view.say(f"{what}{why}; stops waiting after {patience:.0f} s without progress")

    def _report_end(self, board: Board, halt: Halt | None, lag: Lag) -> None:
        say = self._view.say
        if lag.unsent:
            say(f"{lag.unsent} events wait for MLflow ({lag.error}); run the same command to send them")
        elif lag.error:
            say(f"the runs in MLflow are not closed ({lag.error}); run the same command to close them")
        if halt is None:
            board.left = 0
        say(f"{counts_text(board).plain} in {duration(time.time() - board.started)}")
        for line in failure_lines(board):
            say(f"failed {line}")
        if halt is not None:
            again = "" if halt.exit_code == 4 else "; run the same command to resume"
            say(f"ended early: {halt}{again}")
        elif board.failures:
            say(f"retry the failed ones: saebench retry {self._spec.name}")
        if self._lost:
            say(f"{len(self._lost)} files of this sweep are lost or damaged (above, and in {self._paths.log})")

    def _publish(self, result: SweepResult) -> None:
        """Write the verdict to the sweep's run in MLflow."""
        from saebench.report.publish import publish

        try:
            publish(result.report)
        except Exception as error:  # any class: the sweep has ended well, whatever MLflow or a report says
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self._view.say(f"the verdict is not in MLflow ({why}); saebench report {self._paths.name} --log writes it")


def floor_sizes(plan: Plan) -> Iterator[tuple[int, int]]:
    """Return (k, dict_size) of the strata with a known number of active latents."""
    for stratum in plan.strata:
        k, width = stratum.axes.get("k") or stratum.axes.get("target_l0"), stratum.axes.get("dict_size")
        if isinstance(k, int | float) and isinstance(width, int):
            yield max(1, round(k)), width


def _info_on_disk(paths: SweepPaths) -> dict[str, Any] | None:
    try:
        lock = read_lock(paths)
    except SpecError:
        return None
    return lock.info() if lock else None
