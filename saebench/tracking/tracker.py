"""The one writer of MLflow: a thread that tails the trials' events and brings the server up to date with them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saebench import events
from saebench.config import TrackingConfig, TrialConfig
from saebench.paths import SweepPaths, TrialPaths
from saebench.state import read_config, read_state
from saebench.tracking import database, record, server, tail
from saebench.tracking.book import Book, Sent
from saebench.tracking.model import log_model

if TYPE_CHECKING:
    from mlflow.entities import Metric

_UPLOADS = 5
"""Attempts at a trial's artifacts while the server itself answers; after them the run is closed without."""
_LONGEST_PAUSE = 30.0


class Lag(NamedTuple):
    """How far MLflow is behind the trials."""

    unsent: int
    """Events on disk that the server has not acknowledged."""
    error: str | None
    """What stops them, on one line; None when nothing does."""


@dataclass
class _Stream:
    """A trial whose run is not up to date. `tags`, `end` and `reopen` say what is wanted; the thread gets it done."""

    number: int
    paths: TrialPaths
    config: TrialConfig
    sent: Sent
    tags: dict[str, str] = field(default_factory=dict)
    end: str | None = None
    """State to close the run in, once its events are sent; None while the trial may write more."""
    reopen: bool = False
    uploads: int = 0
    unsure: bool = False
    """The run may exist although its id never came back."""
    artifacts: str = ""
    """Where the run's artifacts belong, if this scheduler made the run."""
    unread: tail.Unread = field(default_factory=tail.Unread)


@dataclass
class _Spent:
    """What a look at the trials has taken."""

    seconds: float = 0.0
    cpu: float = 0.0

    def add(self, begun: float, cpu: float) -> None:
        self.seconds += time.monotonic() - begun
        self.cpu += time.thread_time() - cpu


class Tracker:
    """Parent run, child runs, metrics and artifacts of one sweep.

    Nothing here blocks or stops the caller once `start` has returned: calls note what is wanted, the thread retries
    for as long as the server is away. Metrics come from events.jsonl alone, with the worker's timestamps; an offset is
    kept only once the server has acknowledged what lies before it, and MLflow drops a point that arrives twice with
    equal key, timestamp, step and value. So neither a killed scheduler nor a lost answer loses or doubles a point.
    """

    def __init__(
        self,
        paths: SweepPaths,
        tracking: TrackingConfig,
        name: str,
        *,
        interval: float = 3.0,
        share: float = 0.02,
    ) -> None:
        """`interval`: seconds between two looks at the trials' files; up to ten times as many where sending what is new
        of running trials takes more than `share` of one core (fewer, larger requests cost less per point)."""
        self._paths, self._tracking, self._name = paths, tracking, name
        self._interval, self._share = interval, share
        self.uri = ""
        self._info: Mapping[str, Any] = {}
        self._streams: dict[int, _Stream] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._error: str | None = None
        self._progress = 0.0
        self._turn = 0
        self._fresh = False
        self._attached = False
        self._attempts = 0
        self._thread = threading.Thread(target=self._run, name="saebench-tracking", daemon=True)

    @property
    def experiment_id(self) -> str:
        return self._book.experiment_id

    @property
    def run_id(self) -> str:
        """Of the parent run."""
        return self._book.run_id

    # --- the caller's side ---

    def start(self, info: Mapping[str, Any]) -> None:
        """Find the server, the experiment and the parent run, or make them; then put right what a dead scheduler left.

        `info` is what lock.json holds; used are d_in, num_train, num_holdout, digest, git, versions, python, host,
        description, and spec (its `data`). Raises PreflightError when the server does not answer or refuses.
        """
        self._info = info
        self.uri = server.resolve_uri(self._tracking)
        self._client = server.connect(self.uri)
        with server.preflight(self.uri):
            self._book = Book.open(self._paths.tracking, server.without_password(self.uri))
            self._open_parent()
        self._save(now=True)
        self._reconcile()
        self._progress = time.monotonic()
        self._thread.start()

    def open(self, config: TrialConfig, tags: Mapping[str, str] | None = None) -> None:
        """The trial runs (again): its run exists and is RUNNING."""
        with self._lock:
            stream = self._stream(config.number, config)
            stream.reopen = stream.reopen or stream.end is not None or stream.sent.closed is not None
            stream.end, stream.uploads = None, 0
            stream.tags |= record.clean({"saebench.state": "running", "saebench.reason": "", **(tags or {})})

    def tag(self, number: int, tags: Mapping[str, Any]) -> None:
        """Set tags on a trial's run, open or closed."""
        with self._lock:
            stream = self._stream(number)
            stream.tags |= record.clean(tags)
            if stream.sent.closed is not None and not stream.reopen:
                stream.end = stream.end or stream.sent.closed

    def close_trial(self, number: int, state: str, reason: str = "", tags: Mapping[str, Any] | None = None) -> None:
        """The trial's process is gone: send the rest of its events and its files, then close its run as `state`."""
        with self._lock:
            stream = self._stream(number)
            stream.end = state
            stream.tags |= record.clean({**(tags or {}), "saebench.state": state, "saebench.reason": reason})

    def lag(self) -> Lag:
        """Cheap enough for every refresh of a screen."""
        with self._lock:
            streams = list(self._streams.values())
            refused = next((sent.refused for sent in self._book.trials.values() if sent.refused), None)
        unsent = sum(stream.unread.count(stream.paths.events, stream.sent.offset) for stream in streams)
        return Lag(unsent, self._error or refused)

    def close(self, status: str = "FINISHED", *, patience: float = 20.0) -> Lag:
        """Send what is left and close the parent run as `status` (a run status of MLflow, or a trial state).

        Gives up once nothing has moved for `patience` seconds; what is then unsent stays on disk and is sent by the
        next scheduler of this sweep. Returns what is left.
        """
        self._status = record.STATUS.get(status, status)
        self._progress = time.monotonic()
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() - self._progress < patience:
            self._thread.join(0.05)
        return self.lag()

    def _stream(self, number: int, config: TrialConfig | None = None) -> _Stream:
        if number not in self._streams:
            paths = self._paths.trial(number)
            config = config or read_config(paths)
            if config is None:
                raise ValueError(f"trial {number}: unknown to tracking, and {paths.config} is not there")
            sent = self._book.trials.setdefault(number, Sent())
            self._streams[number] = _Stream(number, paths, config, sent, unsure=not self._fresh)
        return self._streams[number]

    def _save(self, *, now: bool = False) -> None:
        self._book.save(self._paths.tracking, partial(database.settle, self.uri), now=now)

    # --- runs ---

    def _open_parent(self) -> None:
        book, client = self._book, self._client
        tags = {**record.origin_tags(self._info), **self._parent_tags()}
        if book.run_id and not server.alive(client, book.run_id):
            book.run_id, book.trials = "", {}  # somebody deleted it: start again, with everything that is on disk
        if not book.run_id:
            name = self._tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._name
            book.experiment_id = server.experiment(client, self.uri, name)
            book.run_id = server.find_run(client, book.experiment_id, {"saebench.id": book.id}) or ""
        if book.run_id:
            client.update_run(book.run_id, status="RUNNING")
            client.log_batch(book.run_id, tags=record.as_tags(tags))
        else:
            self._fresh = True
            self._save(now=True)
            book.run_id = client.create_run(book.experiment_id, tags=tags, run_name=self._name).info.run_id
        if data := self._data():
            client.log_inputs(book.run_id, record.dataset_inputs(data, self._info))

    def _parent_tags(self) -> dict[str, str]:
        return record.clean(
            {
                "mlflow.runName": self._name,
                "mlflow.note.content": self._info.get("description") or None,
                "saebench.kind": "sweep",
                "saebench.sweep": self._name,
                "saebench.id": self._book.id,
                "saebench.state": "running",
            }
        )

    def _data(self) -> Any:
        from saebench.config import DataConfig

        found = (self._info.get("spec") or {}).get("data")
        return DataConfig.model_validate(found) if found else None

    def _reconcile(self) -> None:
        """Runs that a dead scheduler left open, or never made, get the state that the trial has on disk."""
        for sent in self._book.trials.values():
            sent.refused = None
        for paths in self._paths.trials():
            number, config, state = int(paths.root.name), read_config(paths), read_state(paths)
            if config is None or state is None:
                continue
            known = self._book.trials.get(number)
            wanted = state.state if state.ended else "interrupted"
            begun = state.ended or known is not None or paths.events.exists()
            if begun and not (known and known.closed == wanted and known.offset >= tail.size(paths.events)):
                self._stream(number, config)
                self.close_trial(number, wanted, state.reason, record.state_tags(state))

    def _create(self, stream: _Stream) -> None:
        client, config = self._client, stream.config
        tags = {**record.origin_tags(self._info), **record.trial_tags(config), "mlflow.parentRunId": self.run_id}
        found = None
        if stream.unsure:
            wanted = {key: tags[key] for key in ("mlflow.parentRunId", "saebench.trial")}
            found = server.find_run(client, self.experiment_id, wanted)
        stream.unsure = True
        if found is None:
            first = next((event.ts for event, _ in events.read(stream.paths.events)), None)
            with self._lock:
                tags = {"saebench.state": "running", **tags, **stream.tags}
            name = tags["mlflow.runName"]
            made = client.create_run(self.experiment_id, start_time=first, tags=tags, run_name=name).info
            found, stream.artifacts = made.run_id, made.artifact_uri
            with self._lock:
                stream.tags = {key: value for key, value in stream.tags.items() if tags.get(key) != value}
        stream.sent.run_id = found

    # --- the thread ---

    def _run(self) -> None:
        failures = 0
        while True:
            spent = _Spent()
            closing = self._closing.is_set()
            try:
                self._cycle(closing, spent)
                self._attach_spec()
                failures, self._error = 0, None
                if closing and not self._streams:
                    self._close_parent()
                    return
            except Exception as error:  # whatever a driver raises, the trials' metrics wait for the server
                failures += 1
                self._error = server.one_line(error)
            if closing:
                time.sleep(min(0.5 * failures, 1.0))
            elif failures:
                self._closing.wait(min(0.5 * 2.0**failures, _LONGEST_PAUSE))
            else:
                wanted = max(spent.seconds, spent.cpu / self._share)
                self._closing.wait(max(self._interval, min(wanted, 10 * self._interval)))

    def _cycle(self, closing: bool, spent: _Spent) -> None:
        """Every stream once, starting after the one that failed last, so that none keeps the others waiting. `spent`
        counts what later looks would repeat: that of trials that run."""
        with self._lock:
            streams = list(self._streams.values())
            for stream in streams:
                if closing and stream.end is None:
                    stream.end = "interrupted"
                    stream.tags["saebench.state"] = "interrupted"
        start = self._turn % len(streams) if streams else 0
        for index, stream in enumerate(streams[start:] + streams[:start]):
            self._turn = start + index + 1
            begun = time.monotonic(), time.thread_time()
            try:
                self._advance(stream)
            except Exception as error:
                if not server.is_lasting(error):
                    raise
                self._set_aside(stream, error)
            if stream.end is None:
                spent.add(*begun)
            self._progress = time.monotonic()
            self._save()

    def _advance(self, stream: _Stream) -> None:
        if not stream.sent.run_id:
            self._create(stream)
        with self._lock:
            reopen, end = stream.reopen, stream.end
        if reopen:
            self._client.update_run(stream.sent.run_id, status="RUNNING")
            stream.sent.closed, stream.reopen = None, False
        self._send(stream)
        if end is not None:
            self._finish(stream, end)

    def _send(self, stream: _Stream) -> None:
        """Points and tags that the server does not have yet."""
        sent = stream.sent
        if tail.size(stream.paths.events) < sent.offset:
            sent.offset = 0  # the trial was begun again from nothing
        for batch in tail.batches(stream.paths.events, sent.offset):
            if batch.nonfinite:
                sent.nonfinite = batch.nonfinite | sent.nonfinite
                batch.tags["saebench.nonfinite"] = json.dumps(sent.nonfinite)
            self._log(stream, batch.metrics, batch.tags)
            sent.offset = batch.offset
            self._progress = time.monotonic()
        self._log(stream, [], {})

    def _log(self, stream: _Stream, metrics: list[Metric], said: dict[str, str]) -> None:
        sent, params = stream.sent, []
        if not sent.described:
            params = record.as_params(record.params(stream.config, self._info))
            self._client.log_inputs(sent.run_id, record.dataset_inputs(stream.config.data, self._info))
        with self._lock:
            wanted, stream.tags = stream.tags, {}
        tags = record.as_tags({**said, **wanted})
        if not metrics and not tags and not params:
            return
        try:
            self._client.log_batch(sent.run_id, metrics=metrics, params=params, tags=tags)
        except Exception:
            with self._lock:
                stream.tags = wanted | stream.tags
            raise
        sent.described = True

    def _finish(self, stream: _Stream, end: str) -> None:
        if stream.sent.closed != end:
            self._upload(stream)
            ended = int(stream.paths.events.stat().st_mtime * 1000) if stream.paths.events.exists() else None
            self._client.set_terminated(stream.sent.run_id, record.STATUS[end], ended)
            stream.sent.closed = end
        with self._lock:
            if stream.end == end and not stream.tags and not stream.reopen:
                self._streams.pop(stream.number, None)
        self._save()

    def _upload(self, stream: _Stream) -> None:
        paths, run_id = stream.paths, stream.sent.run_id
        try:
            files = (paths.log, paths.config, paths.evaluation, paths.sae)
            self._log_files(server.artifacts(self._client, run_id, stream.artifacts), *files)
            if self._tracking.log_model and stream.end == "complete" and paths.sae.is_dir():
                log_model(self._client, self.experiment_id, run_id, stream.config, paths)
        except Exception as error:
            self._client.get_run(run_id)  # raises when it is the server that is away: then no attempt is counted
            stream.uploads += 1
            if stream.uploads < _UPLOADS:
                raise
            self._client.set_tag(run_id, "saebench.artifacts", f"not uploaded: {server.one_line(error)}")

    def _log_files(self, to: server.Artifacts, *paths: Path) -> None:
        for path in paths:
            if path.is_dir():
                to.log_artifacts(str(path), path.name)
            elif path.is_file():
                to.log_artifact(str(path))

    def _set_aside(self, stream: _Stream, error: Exception) -> None:
        """The server refuses this trial for good; the others go on. The next scheduler tries once more."""
        stream.sent.refused = server.one_line(error)
        with self._lock:
            self._streams.pop(stream.number, None)

    def _attach_spec(self, *, last: bool = False) -> None:
        """The spec and what it was resolved to: as soon as they are there, so that a running sweep has them too, and
        once more at the end."""
        files = (self._paths.spec, self._paths.lock)
        if (last or not self._attached) and self._attempts < _UPLOADS and all(file.exists() for file in files):
            self._attempts += 1
            self._log_files(server.artifacts(self._client, self.run_id), *files)
            self._attached, self._attempts = True, 0

    def _close_parent(self) -> None:
        self._attach_spec(last=True)
        counts = Counter(sent.closed or "open" for sent in self._book.trials.values())
        tags = {"saebench.counts": json.dumps(counts), "saebench.state": _SWEEP_STATES.get(self._status, self._status)}
        self._client.log_batch(self.run_id, tags=record.as_tags(tags))
        self._client.set_terminated(self.run_id, self._status)
        self._save(now=True)
        database.gather(self.uri)


_SWEEP_STATES = {"FINISHED": "complete", "KILLED": "interrupted", "FAILED": "failed"}
