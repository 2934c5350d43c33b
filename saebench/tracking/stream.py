"""A trial's run: create it, send the trial's events and files, close it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saebench.config import TrialConfig
from saebench.runs import events
from saebench.runs.paths import TrialPaths
from saebench.runs.tags import Tag
from saebench.sweep_config import TrackingConfig
from saebench.tracking import lookup, mlflow_errors, record, tail
from saebench.tracking.book import Book, Sent
from saebench.tracking.model import log_model
from saebench.tracking.uploads import log_files, log_sae, sae_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

UPLOADS = 5
"""Attempts to upload a run's artifacts while the server answers; after these the run is closed without them."""


@dataclass
class Stream:
    """A trial whose run is not up to date. Callers set `tags`, `end` and `reopen`; the tracker's thread sends them."""

    number: int
    paths: TrialPaths
    config: TrialConfig
    sent: Sent
    tags: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """Tags that this scheduler has set on the run, so as not to set them again: each costs MLflow a query."""
    end: str | None = None
    """State to close the run with, once its events are sent; None while the trial may write more."""
    reopen: bool = False
    unsure: bool = False
    """True if the run may exist although the answer with its id was lost."""
    artifacts: str = ""
    """Artifact URI of the run, if this scheduler created the run."""
    unread: tail.Unread = field(default_factory=tail.Unread)


class Sender:
    """Brings runs up to date, from one thread; other threads change a stream's requests under `lock`."""

    def __init__(
        self,
        client: MlflowClient,
        book: Book,
        tracking: TrackingConfig,
        info: Mapping[str, Any],
        lock: threading.Lock,
        moved: Callable[[], None],
    ) -> None:
        """`moved`: called after each request that the server has accepted."""
        self._client, self._book, self._tracking, self._info = client, book, tracking, info
        self._lock, self._moved = lock, moved
        self._failed: Counter[int] = Counter()
        """Trial -> number of failed attempts to upload its artifacts."""

    def advance(self, stream: Stream) -> str | None:
        """Send everything that is on disk and requested now; return the state with which the run was closed, None if it
        stays open."""
        if not stream.sent.run_id:
            self._create(stream)
        with self._lock:
            reopen, end = stream.reopen, stream.end
        if reopen:
            self._client.update_run(stream.sent.run_id, status="RUNNING")
            stream.sent.closed, stream.sent.sae, stream.reopen = None, False, False
            del self._failed[stream.number]
        self._send(stream)
        if end is not None:
            self._finish(stream, end)
        return end

    def owes_sae(self, sent: Sent, paths: TrialPaths) -> bool:
        """Return whether the trial's SAE is still to be copied; False for `log_sae: best`, which is decided at the
        end."""
        return self._tracking.log_sae == "all" and not sent.sae and bool(sae_files(paths.sae))

    def upload_sae(self, number: int, config: TrialConfig, paths: TrialPaths) -> None:
        """Copy the SAE of a closed trial."""
        sent = self._book.trials[number]
        with self._persistence(number, sent.run_id):
            self._log_sae(sent, config, paths)
            self._moved()

    def _create(self, stream: Stream) -> None:
        client, config = self._client, stream.config
        tags = {**record.origin_tags(self._info), **record.trial_tags(config), "mlflow.parentRunId": self._book.run_id}
        found = None
        if stream.unsure:
            wanted = {key: tags[key] for key in ("mlflow.parentRunId", Tag.TRIAL)}
            found = lookup.find_run(client, self._book.experiment_id, wanted)
        stream.unsure = True
        if found is None:
            first = next((event.ts for event, _ in events.read(stream.paths.events)), None)
            with self._lock:
                tags = {Tag.STATE: "running", **tags, **stream.tags}
            name = tags["mlflow.runName"]
            made = client.create_run(self._book.experiment_id, start_time=first, tags=tags, run_name=name).info
            found, stream.artifacts = made.run_id, made.artifact_uri
            stream.said = tags
        stream.sent.run_id = found

    def _send(self, stream: Stream) -> None:
        """Send the points and tags that the server does not have yet."""
        sent = stream.sent
        if tail.size(stream.paths.events) < sent.offset:
            sent.offset = 0  # the trial was restarted from the beginning
        for batch in tail.batches(stream.paths.events, sent.offset):
            if batch.nonfinite:
                sent.nonfinite = batch.nonfinite | sent.nonfinite
                batch.tags[Tag.NONFINITE] = json.dumps(sent.nonfinite)
            self._log(stream, batch.metrics, batch.tags)
            sent.offset = batch.offset
            self._moved()
        self._log(stream, [], {})

    def _log(self, stream: Stream, metrics: list[Metric], said: dict[str, str]) -> None:
        sent, params = stream.sent, []
        if not sent.described:
            params = record.as_params(record.params(stream.config, self._info))
            self._client.log_inputs(sent.run_id, record.dataset_inputs(stream.config.data, self._info))
        with self._lock:
            wanted, stream.tags = stream.tags, {}
        tags = {key: value for key, value in {**said, **wanted}.items() if stream.said.get(key) != value}
        if not metrics and not tags and not params:
            return
        try:
            self._client.log_batch(sent.run_id, metrics=metrics, params=params, tags=record.as_tags(tags))
        except Exception:
            with self._lock:
                stream.tags = wanted | stream.tags
            raise
        stream.said |= tags
        sent.described = True

    def _finish(self, stream: Stream, end: str) -> None:
        closed = stream.sent.closed == end
        if not closed or self.owes_sae(stream.sent, stream.paths):
            self._upload(stream, end)
        if not closed:
            ended = int(stream.paths.events.stat().st_mtime * 1000) if stream.paths.events.exists() else None
            self._client.set_terminated(stream.sent.run_id, record.STATUS[end], ended)
            stream.sent.closed = end

    def _upload(self, stream: Stream, end: str) -> None:
        paths, sent = stream.paths, stream.sent
        with self._persistence(stream.number, sent.run_id):
            if sent.closed != end:
                to = lookup.artifacts(self._client, sent.run_id, stream.artifacts)
                log_files(to, paths.log, paths.config, paths.evaluation)
            if self.owes_sae(sent, paths):
                self._log_sae(sent, stream.config, paths, stream.artifacts, end)

    @contextmanager
    def _persistence(self, number: int, run_id: str) -> Iterator[None]:
        """Raise errors of a trial's uploads a few times, to be retried; after that, record the error in a tag."""
        try:
            yield
        except Exception as error:
            self._client.get_run(run_id)  # raises if the server is down: no attempt is counted then
            self._failed[number] += 1
            if self._failed[number] < UPLOADS:
                raise
            self._client.set_tag(run_id, Tag.ARTIFACTS, f"not uploaded: {mlflow_errors.one_line(error)}")

    def _log_sae(
        self, sent: Sent, config: TrialConfig, paths: TrialPaths, place: str = "", end: str = "complete"
    ) -> None:
        if not log_sae(lookup.artifacts(self._client, sent.run_id, place), paths.sae):
            return
        if self._tracking.log_model and end == "complete":
            log_model(self._client, self._book.experiment_id, sent.run_id, config, paths)
        sent.sae = True
