"""The one writer of MLflow: a thread that tails the trials' events and brings the server up to date with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from saebench.config import TrialConfig
from saebench.runs.paths import SweepPaths
from saebench.runs.secrets import mask
from saebench.runs.state import read_config, read_state
from saebench.runs.tags import Tag
from saebench.sweep_config import TrackingConfig
from saebench.tracking import database, mlflow_errors, record, server, tail
from saebench.tracking.address import resolve_uri
from saebench.tracking.book import Book, Sent
from saebench.tracking.parent import Parent
from saebench.tracking.stream import Sender, Stream

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_PAUSE = 30.0
_SILENCE, _SILENT = 45.0, "no answer"
"""Seconds without an answer: MLflow's client retries for minutes before it raises. Above the longest pause."""
_UNSAID = 5.0
"""Seconds that the end may take before a message is shown."""


class Lag(NamedTuple):
    """How far MLflow is behind the trials."""

    unsent: int
    """Events on disk that the server has not acknowledged."""
    error: str | None
    """The error that stops them, on one line; None if there is no error."""


@dataclass
class _Spent:
    """Time that one poll of the trials has taken."""

    seconds: float = 0.0
    cpu: float = 0.0

    def add(self, begun: float, cpu: float) -> None:
        self.seconds += time.monotonic() - begun
        self.cpu += time.thread_time() - cpu


class Tracker:
    """Parent run, child runs, metrics and artifacts of one sweep.

    Once `start` has returned, no method blocks the caller: each one queues its request, and the thread retries as long
    as the server is down. Metrics come only from events.jsonl, with the worker's timestamps; an offset is stored only
    once the server has acknowledged everything before it, and MLflow drops a point that arrives twice with equal key,
    timestamp, step and value. So neither a killed scheduler nor a lost answer loses or duplicates a point.
    """

    def __init__(
        self,
        paths: SweepPaths,
        tracking: TrackingConfig,
        name: str,
        *,
        interval: float = 3.0,
        share: float = 0.005,
    ) -> None:
        """`interval`: seconds between two polls of the trials' files; up to ten times as many if sending the new events
        of running trials takes more than `share` of one core. MLflow takes 0.1 ms for a point and 5 ms for a request
        (into sqlite), so that few large requests cost a fraction of many small ones."""
        self._paths, self._tracking, self._name = paths, tracking, name
        self._interval, self._share = interval, share
        self.uri = ""
        self._client: MlflowClient
        self._book: Book
        self._parent: Parent
        self._sender: Sender
        self._streams: dict[int, Stream] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._error: str | None = None
        self._progress = 0.0
        self._turn = 0
        self._fresh = False
        self._thread = threading.Thread(target=self._run, name="saebench-tracking", daemon=True)

    @property
    def experiment_id(self) -> str:
        return self._book.experiment_id

    @property
    def run_id(self) -> str:
        """Id of the parent run."""
        return self._book.run_id

    # --- the caller's side ---

    def start(self, info: Mapping[str, Any]) -> None:
        """Find or create the experiment and the parent run; then reconcile the runs that a dead scheduler left.

        `info` is the content of lock.json; this reads d_in, num_train, num_validation, num_test, cache_key, git,
        versions, python, host, description, and the spec's `data` and `search`. Raises PreflightError if the server
        does not answer.
        """
        self.uri = resolve_uri(self._tracking)
        database.relocate(self.uri, (info.get("tracking") or {}).get("uri") or "")
        self._client = server.connect(self.uri)
        with mlflow_errors.preflight(self.uri):
            self._book = Book.open(self._paths.tracking, mask(self.uri))
            self._parent = Parent(self._client, self._book, self._paths, self._tracking, self._name, info)
            self._fresh = self._parent.open(self.uri, partial(self._save, now=True))
            self._sender = Sender(self._client, self._book, self._tracking, info, self._lock, self._moved)
        self._save(now=True)
        self._reconcile()
        self._progress = time.monotonic()
        self._thread.start()

    def open(self, config: TrialConfig, tags: Mapping[str, str] | None = None) -> None:
        """Request that the trial's run exists and is RUNNING: the trial has started or restarted."""
        with self._lock:
            stream = self._stream(config.number, config)
            stream.reopen = stream.reopen or stream.end is not None or stream.sent.closed is not None
            stream.end = None
            stream.tags |= record.clean({Tag.STATE: "running", Tag.REASON: "", **(tags or {})})

    def tag(self, number: int, tags: Mapping[str, Any]) -> None:
        """Set tags on a trial's run, open or closed."""
        with self._lock:
            stream = self._stream(number)
            stream.tags |= record.clean(tags)
            if stream.sent.closed is not None and not stream.reopen:
                stream.end = stream.end or stream.sent.closed

    def close_trial(self, number: int, state: str, reason: str = "", tags: Mapping[str, Any] | None = None) -> None:
        """Call once the trial's process has exited: send the rest of its events and its files, then close its run as
        `state`."""
        with self._lock:
            stream = self._stream(number)
            stream.end = state
            stream.tags |= record.clean({**(tags or {}), Tag.STATE: state, Tag.REASON: reason})

    def lag(self) -> Lag:
        """Return how far MLflow is behind; cheap enough for every refresh of a screen."""
        with self._lock:
            streams = list(self._streams.values())
            refused = next((sent.refused for sent in self._book.trials.values() if sent.refused), None)
        unsent = sum(stream.unread.count(stream.paths.events, stream.sent.offset) for stream in streams)
        silent = time.monotonic() - self._progress > _SILENCE and self._thread.is_alive()
        return Lag(unsent, self._error or refused or (_SILENT if unsent and silent else None))

    def close(
        self, status: str = "FINISHED", *, patience: float = 20.0, waiting: Callable[[Lag], None] | None = None
    ) -> Lag:
        """Send the rest and close the parent run as `status` (a run status of MLflow, or a trial state).

        Gives up if the server accepts nothing for `patience` seconds; unsent events stay on disk, and the next
        scheduler of this sweep sends them. Returns the remaining lag. `waiting` is called once, if this takes seconds.
        """
        self._status = record.STATUS.get(status, status)
        begun = self._progress = time.monotonic()
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() - self._progress < patience:
            self._thread.join(0.05)
            if waiting is not None and time.monotonic() - begun > _UNSAID:
                waiting(self.lag())
                waiting = None
        lag = self.lag()
        return lag._replace(error=lag.error or _SILENT) if self._thread.is_alive() else lag

    def _stream(self, number: int, config: TrialConfig | None = None) -> Stream:
        if number not in self._streams:
            paths = self._paths.trial(number)
            config = config or read_config(paths)
            if config is None:
                raise ValueError(f"trial {number}: unknown to tracking, and {paths.config} is not there")
            sent = self._book.trials.setdefault(number, Sent())
            self._streams[number] = Stream(number, paths, config, sent, unsure=not self._fresh)
        return self._streams[number]

    def _save(self, *, now: bool = False) -> None:
        if self._paths.root.is_dir():  # if the sweep's directory was moved, do not create a second one
            self._book.save(self._paths.tracking, partial(database.sync_log, self.uri), now=now)

    def _moved(self) -> None:
        self._progress = time.monotonic()

    def _reconcile(self) -> None:
        """Set the state that the trial has on disk on each run that a dead scheduler left open or never created."""
        for sent in self._book.trials.values():
            sent.refused = None
        for paths in self._paths.trials():
            number, config, state = int(paths.root.name), read_config(paths), read_state(paths)
            if config is None or state is None:
                continue
            known = self._book.trials.get(number)
            wanted = state.state if state.ended else "interrupted"
            begun = state.ended or known is not None or paths.events.exists()
            is_sent = known and known.closed == wanted and known.offset >= tail.size(paths.events)
            if begun and (not is_sent or (known and self._sender.owes_sae(known, paths))):
                self._stream(number, config)
                self.close_trial(number, wanted, state.reason, record.state_tags(state))

    # --- the thread ---

    def _run(self) -> None:
        failures = 0
        while True:
            spent, begun = _Spent(), time.monotonic()
            closing = self._closing.is_set()
            try:
                self._cycle(closing, spent)
                self._parent.attach_spec()
                failures, self._error = 0, None
                if closing and not self._streams:
                    self._close_parent()
                    return
            except Exception as error:  # any class: keep the thread alive and retry
                failures += 1
                self._error = mlflow_errors.one_line(error)
            if closing:
                time.sleep(min(0.5 * failures, 1.0))
            elif failures:
                self._closing.wait(min(0.5 * 2.0**failures, _LONGEST_PAUSE))
            else:
                self._closing.wait(self._pause(spent, time.monotonic() - begun))

    def _pause(self, spent: _Spent, took: float) -> float:
        """Return the seconds to wait after a poll that took `took`. What a trial wrote is sent at the next poll, hence
        after the pause and the poll together, which ten intervals bound if one poll does not take longer."""
        wanted = max(spent.seconds, spent.cpu / self._share)
        return max(self._interval, min(wanted, 10 * self._interval - took))

    def _cycle(self, closing: bool, spent: _Spent) -> None:
        """Advance every stream once, starting after the one that failed last, so that none holds up the others. `spent`
        adds up the time for running trials, which every later poll takes again."""
        with self._lock:
            streams = list(self._streams.values())
            for stream in streams:
                if closing and stream.end is None:
                    stream.end = "interrupted"
                    stream.tags[Tag.STATE] = "interrupted"
        start = self._turn % len(streams) if streams else 0
        for index, stream in enumerate(streams[start:] + streams[:start]):
            self._turn = start + index + 1
            begun = time.monotonic(), time.thread_time()
            try:
                self._forget(stream, self._sender.advance(stream))
            except Exception as error:
                if not mlflow_errors.is_lasting(error):
                    raise
                self._set_aside(stream, error)
            if stream.end is None:
                spent.add(*begun)
            self._moved()
            self._save()

    def _forget(self, stream: Stream, end: str | None) -> None:
        """Drop the stream of a run that was closed as `end`, unless a new request came meanwhile."""
        with self._lock:
            if end is not None and stream.end == end and not stream.tags and not stream.reopen:
                self._streams.pop(stream.number, None)

    def _set_aside(self, stream: Stream, error: Exception) -> None:
        """Stop sending a trial that the server rejects for good; the others continue. The next scheduler retries it."""
        stream.sent.refused = mlflow_errors.one_line(error)
        with self._lock:
            self._streams.pop(stream.number, None)

    def _close_parent(self) -> None:
        if self._status == "FINISHED":
            self._parent.copy_best(self._sender)
        self._parent.close(self._status)
        self._save(now=True)
        database.checkpoint_log(self.uri)
        database.restore_journal(self.uri)
