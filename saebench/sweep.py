"""`run_sweep`: from a spec to the last trial, and the same call again to resume.

First everything that can be wrong is checked (spec, tracking server, devices, texts and encoder, widths), then the
sweep's directory gets its lock.json, and only then trials start. A sweep that fails before leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench import telemetry
from saebench.errors import ExecutorLostError, PreflightError, SpecError, environment_error_message
from saebench.executors import TARGET
from saebench.executors.table import make_executor
from saebench.forecast import empty_board
from saebench.hub import embedding_width
from saebench.plan import Plan, make_plan
from saebench.runs import corpus
from saebench.runs import paths as places
from saebench.runs.board import Board
from saebench.runs.clock import duration
from saebench.runs.durable import write_text
from saebench.runs.holder import hold_sweep_dir, now
from saebench.runs.lock import Extension, Lock, Tracked, check_unchanged, provenance, read_lock, write_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.secrets import is_masked, mask
from saebench.scheduler import Halt, Scheduler
from saebench.scheduler.interrupts import Interrupts
from saebench.scheduler.ledger import Ledger, MovedError
from saebench.scheduler.recovery import recover
from saebench.spec import SweepSpec, parse_spec
from saebench.spec.load import folder_of, load_text
from saebench.spec.source import read_text
from saebench.sweep_config import RunConfig, TrackingConfig
from saebench.terminal.picture import counts_text, failure_lines
from saebench.terminal.views import LoggedView, View, choose_view
from saebench.trial import floor_process

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.executors import Executor
    from saebench.stores.child_process import Launch
    from saebench.stores.entry import CacheEntry
    from saebench.study import Search
    from saebench.tracking import Lag, Tracker

_RUN_STATUS = {0: "FINISHED", 3: "FINISHED", 4: "FAILED"}


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended, this time."""

    name: str
    root: Path
    """Its directory, runs/<name>."""
    exit_code: int
    """0 all well, 3 some trials failed, 4 given up, 75 stopped but resumable, 130 interrupted."""
    reason: str = ""
    """Why it ended before its end."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Trials by state."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Trial -> why it failed."""
    tracking_uri: str = ""
    run_id: str = ""
    """MLflow's id of the parent run."""

    @property
    def ok(self) -> bool:
        """Every trial ended, and none failed."""
        return self.exit_code == 0

    def trial(self, number: int) -> Path:
        """Directory of a trial; its SAE is in `sae` below."""
        return SweepPaths(self.root).trial(number).root

    def frame(self) -> DataFrame:
        """A row per trial: `saebench.report.trials` of this sweep."""
        from saebench import report

        return report.trials(self.root)


def run_sweep(
    spec: str | Path | SweepSpec | Mapping[str, Any],
    *,
    runs_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    extend: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    view: View | None = None,
    target: str = TARGET,
    executor: Executor | None = None,
    circular_anyway: bool = False,
) -> SweepResult:
    """Run a sweep, or resume it. Works from a script (no main guard), a notebook or a thread.

    spec: a file, a mapping as YAML would give it, or a `SweepSpec`. overrides: "key=value" as for `--set`. extend: take
    more seeds, points, devices or budget into a sweep that exists. retry_failed: give failed trials another chance.
    target: "module:function" that a worker runs for a trial, with the signature of `trial.run_trial`. executor: where
    trials run in place of what `run.executor` names: an object of the protocol `executors.Executor`; it is closed.
    circular_anyway: let the data's own encoder be `eval.second_encoder`.

    Raises SpecError, PreflightError or LockedError (all UserErrors, one clear line) before anything is started.
    """
    telemetry.disable()
    with _preflight():
        given = _given(spec, overrides)
        paths = SweepPaths(places.runs_dir(runs_dir) / given.spec.name)
    with (
        Interrupts() as signals,
        hold_sweep_dir(paths),
        LoggedView(view or choose_view(quiet=quiet), paths.log) as shown,
    ):
        work = _Sweep(given, paths, places.cache_dir(cache_dir), shown, signals, target, executor, circular_anyway)
        try:
            return work.run(extend, retry_failed)
        except KeyboardInterrupt:
            shown.say(f"{signals.why or 'interrupted'}: ended at once")
            return SweepResult(paths.name, paths.root, signals.exit_code, signals.why)
        except _StoppedError:
            shown.say("ended early: saebench stop; run the same command to resume")
            return SweepResult(paths.name, paths.root, 75, "saebench stop")
        except MovedError as error:
            shown.say(f"ended early: {error}; move it back, or resume it from where it is now")
            return SweepResult(paths.name, paths.root, 75, str(error))
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, FileNotFoundError) and work.begun and not paths.lock.exists():
                moved = f"{paths.root}: was moved or deleted while the sweep ran"
                shown.say(f"ended early: {moved}; move it back, or resume it from where it is now")
                return SweepResult(paths.name, paths.root, 75, moved)
            message = environment_error_message(error)
            if message is None:
                raise
            if getattr(error, "filename", None) is None:
                message = f"{paths.root}: {message}"
            if not paths.lock.exists():
                raise PreflightError(message) from error
            shown.say(f"ended early: {message}; fix that, then run the same command to resume")
            return SweepResult(paths.name, paths.root, 75, message)


class _StoppedError(Exception):
    """`saebench stop` came before there was a scheduler to obey it."""


@contextlib.contextmanager
def _preflight() -> Iterator[None]:
    """Turn what the machine refuses before anything has begun into a PreflightError."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if (message := environment_error_message(error)) is None:
            raise
        raise PreflightError(message) from error


@dataclass(frozen=True)
class _Given:
    spec: SweepSpec
    text: str
    """The spec as the user wrote it."""
    folder: Path
    """Where it lies: its git commit is recorded."""


def _given(spec: str | Path | SweepSpec | Mapping[str, Any], overrides: Sequence[str]) -> _Given:
    if isinstance(spec, str | Path):
        text = read_text(Path(spec))
        return _Given(load_text(text, spec, overrides), text, folder_of(spec))
    if not isinstance(spec, SweepSpec):
        spec = parse_spec(spec, overrides)
    elif overrides:
        spec = parse_spec(spec.plain(), overrides)
    import yaml

    return _Given(spec, yaml.safe_dump(spec.plain(), sort_keys=False), Path.cwd())


END_PATIENCE = 120.0
"""Seconds a sweep at its end waits for a tracking server that takes nothing; a restart of the server fits in."""
HURRIED_PATIENCE = 20.0
"""The same where somebody or something told the sweep to stop."""


class _Sweep:
    """One life of a sweep's scheduler."""

    def __init__(
        self,
        given: _Given,
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
        self._circular_anyway = circular_anyway
        self._lost: list[str] = []
        self.begun = False
        """lock.json is written."""

    def run(self, extend: bool, retry_failed: bool) -> SweepResult:
        from saebench.study import Search
        from saebench.tracking import Tracker

        self._remove_stop()
        lock = self._known_lock()
        changes = check_unchanged(lock.spec, self._spec.plain(), self._paths, extend=extend) if lock else {}
        tracker = Tracker(self._paths, self._reachable_tracking(lock), self._spec.name)
        made = self._executor or make_executor(self._run_config(lock), self._cache, self._target)
        with contextlib.closing(made) as executor:
            self._view.say(f"sweep {self._spec.name}: {self._paths.root}")
            self._view.say(f"embedding cache: {self._cache}")
            lock = self._with_threads(self._resolved(lock, self._data(executor, lock), changes), executor)
            plan = make_plan(self._spec, lock.d_in, lock.cache_key, lock.second_key)
            if lock.num_train is not None:
                plan.check_corpus(lock.num_train)
            executor.settle(self._paths, self._view.note, [key for key in (lock.cache_key, lock.second_key) if key])
            self._paths.remove_left_overs()
            search = Search(plan, self._paths.journal)
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
            except MovedError:
                patience = 0.0
                raise
            finally:
                if floors is not None:
                    floor_process.finish(floors, self._view.say) if exit_code in (0, 3) else floor_process.stop(floors)
                waiting = partial(self._await, patience)
                lag = tracker.close(_RUN_STATUS.get(exit_code, "KILLED"), patience=patience, waiting=waiting)
        self._farewell(board, halt, lag)
        if exit_code in (0, 3) and self._target == TARGET and not (lag.unsent or lag.error):
            self._publish()
        return SweepResult(
            self._paths.name,
            self._paths.root,
            exit_code,
            halt.reason if halt else "",
            {state: count for state, count in board.counts.items() if count},
            dict(board.failures),
            mask(tracker.uri),
            tracker.run_id,
        )

    # --- before the first trial --------------------------------------------------------------------------------------

    def _remove_stop(self) -> None:
        with contextlib.suppress(OSError):  # a folder, or in a directory that cannot be written to, which is said later
            self._paths.stop.unlink(missing_ok=True)

    def _known_lock(self) -> Lock | None:
        """The sweep's lock.json. One that was lost is written again from the spec, with which every trial that there is
        is compared when it is recovered."""
        try:
            lock = read_lock(self._paths)
            if lock is None and self._paths.trials():
                raise SpecError(f"{self._paths.lock}: is missing")
        except SpecError as error:
            self._lost.append(f"{error}; written again from the spec, without when and with which versions it began")
            return None
        return lock

    def _reachable_tracking(self, lock: Lock | None) -> TrackingConfig:
        """The spec's tracking with the address that this start uses; PreflightError if nothing there answers."""
        from saebench.tracking.address import start_uri
        from saebench.tracking.server import check

        tracking, before = self._spec.tracking, lock.tracking if lock else Tracked()
        if tracking.uri and is_masked(tracking.uri):
            tracking = tracking.model_copy(update={"uri": _unmasked(tracking.uri)})
        uri = start_uri(tracking, before.uri or None, self._view.note, self._paths.root, before.run_id)
        check(uri)
        return tracking.model_copy(update={"uri": uri})

    def _data(self, executor: Executor, lock: Lock | None) -> dict[str, Any]:
        """Fields of the lock about the embeddings, once they are all there; PreflightError for others than at first."""
        data = self._spec.data
        if not data.cache:
            width = embedding_width(data.model, data.revision)
            if width is None:
                raise PreflightError(f"data.model: {data.model}: its width is not known without loading it; cache: on")
            return {"d_in": width}
        from saebench.stores import cache

        key = cache.entry_folder(data, self._cache).name
        if lock is not None and lock.cache_key not in (None, key):
            raise PreflightError(
                f"{self._paths.root}: began with other texts or another model: embeddings {lock.cache_key}, now they "
                f"are {key}; put back what has changed, or give the sweep another name"
            )
        entry = cache.build(data, self._cache, executor.encoders(), self._encoding)
        self._entry = entry  # kept: gc leaves it alone
        parts = {"num_train": entry.num_train, "num_validation": entry.num_validation, "num_test": entry.num_test}
        entry.check(data)
        self._view.note(
            f"embeddings: {entry.num_train:,} to train on, {entry.num_validation:,} for validation, "
            f"{entry.num_test:,} for test, d_in {entry.d_in}"
        )
        for sentence in corpus.sentences(entry.info):
            self._view.note(sentence)
        counts = {"d_in": entry.d_in, **parts}
        second = self._second_key(entry, lock, executor.encoders())
        return {**counts, "cache_key": entry.cache_key, "second_key": second, "data": entry.info}

    def _second_key(self, entry: CacheEntry, lock: Lock | None, devices: Sequence[str | Launch]) -> str | None:
        """Return the key of the embeddings by `eval.second_encoder`, once they are there. Raises CircularError at the
        first start if they are those of `data.model`, PreflightError if they are others than at the first start."""
        model = self._spec.eval.second_encoder
        if model is None:
            return None
        from saebench.latents.second import CircularError, check_second, second_data
        from saebench.stores import cache

        where, unchecked = f"eval.second_encoder: {model}", self._circular_anyway or lock is not None
        if model == self._spec.data.model and not unchecked:
            raise CircularError(where)
        self._second = second = cache.build(second_data(self._spec.data, model), self._cache, devices, self._encoding)
        if lock is not None and lock.second_key not in (None, second.cache_key):
            raise PreflightError(
                f"{self._paths.root}: {where}: began with embeddings {lock.second_key}, now they are "
                f"{second.cache_key}; put back what has changed, or give the sweep another name"
            )
        if not unchecked:
            check_second(entry, second, where)
        return second.cache_key

    def _run_config(self, lock: Lock | None) -> RunConfig:
        """The spec's `run`, with the number of threads that the first start has fixed."""
        run = self._spec.run
        return run if lock is None or lock.threads is None else run.model_copy(update={"threads": lock.threads})

    def _with_threads(self, lock: Lock, executor: Executor) -> Lock:
        if lock.threads is not None or not executor.slots:
            return lock
        return lock.model_copy(update={"threads": executor.slots[0].threads})

    def _encoding(self, progress: Any) -> None:
        if self._paths.stop.exists():
            raise _StoppedError
        if progress.warning:
            self._view.note(progress.message)
        else:
            self._view.encoding(progress)

    def _resolved(self, lock: Lock | None, data: dict[str, Any], changes: dict[str, tuple[Any, Any]]) -> Lock:
        """What lock.json is to hold: as before, but for what was extended."""
        spec = self._spec
        if lock is None:
            head = {"name": spec.name, "description": spec.description, "spec": spec.plain()}
            return Lock(**head, **data, **provenance(self._given.folder))
        if lock.d_in != data["d_in"]:
            raise PreflightError(
                f"{self._paths.root}: began with embeddings of width {lock.d_in}, now it is {data['d_in']}"
            )
        if not changes:
            return lock
        extended = (*lock.extended, Extension(at=now(), changes=changes))
        return lock.model_copy(update={"spec": spec.plain(), "extended": extended})

    def _write_lock(self, lock: Lock, tracker: Tracker) -> None:
        where = Tracked(uri=mask(tracker.uri), experiment_id=tracker.experiment_id, run_id=tracker.run_id)
        lock = lock.model_copy(update={"tracking": where})
        if lock.info() != _info_on_disk(self._paths) or not self._paths.spec.is_file():
            write_text(self._paths.spec, mask(self._given.text, tracker.uri))
            write_lock(self._paths, lock)

    def _floors(self, plan: Plan) -> subprocess.Popen[str] | None:
        """A process that measures the floors beside the trials; None where they are known or there is nothing to
        measure them on."""
        sizes = set(floor_sizes(plan))
        if self._target != TARGET or plan.cache_key is None or sizes <= floor_process.measured(self._paths.floors):
            return None
        with contextlib.suppress(OSError):  # no room for another process: the trials matter more
            return floor_process.start(self._spec.data, self._cache, plan.cache_key, sizes, self._paths.floors)
        return None

    # --- the trials --------------------------------------------------------------------------------------------------

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
            return board, scheduler.run()
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
        self._view.say(f"{what}{why}; given up after {patience:.0f} s without progress")

    def _farewell(self, board: Board, halt: Halt | None, lag: Lag) -> None:
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
            say(f"ended early: {halt.reason}{again}")
        elif board.failures:
            say(f"retry the failed ones: saebench retry {self._spec.name}")
        if self._lost:
            say(f"{len(self._lost)} files of this sweep are lost or damaged (above, and in {self._paths.log})")

    def _publish(self) -> None:
        """Write the verdict to the sweep's run in MLflow."""
        from saebench.report import load
        from saebench.report.publish import publish

        try:
            publish(load(self._paths.root))
        except Exception as error:  # any class: the sweep has ended well, whatever MLflow or a report says
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self._view.say(f"the verdict is not in MLflow ({why}); saebench report {self._paths.name} --log writes it")


def floor_sizes(plan: Plan) -> Iterator[tuple[int, int]]:
    """(k, dict_size) of the strata that say how many latents fire."""
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


def _unmasked(uri: str) -> str:
    """The address with its secrets, which are not stored: MLFLOW_TRACKING_URI has them, if it is the same otherwise."""
    known = os.environ.get("MLFLOW_TRACKING_URI", "")
    if mask(known) != uri:
        raise PreflightError(f"tracking.uri: {uri}: its secret is not stored; set MLFLOW_TRACKING_URI")
    return known


def spec_of(paths: SweepPaths) -> SweepSpec:
    """Return the resolved spec of a sweep that exists; raise SpecError if there is none."""
    lock = read_lock(paths)
    if lock is None:
        raise SpecError(f"{paths.root}: there is no such sweep")
    return parse_spec(lock.spec, label=str(paths.lock))
