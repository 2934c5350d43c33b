"""The sweep's parent run; the trials' runs are its children."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saebench.config import DataConfig
from saebench.runs.paths import SweepPaths
from saebench.runs.tags import Tag
from saebench.sweep_config import TrackingConfig
from saebench.tracking import lookup, record, views
from saebench.tracking.best import best_trials
from saebench.tracking.book import Book
from saebench.tracking.stream import UPLOADS, Sender
from saebench.tracking.uploads import log_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SWEEP_STATES = {"FINISHED": "complete", "KILLED": "interrupted", "FAILED": "failed"}


class Parent:
    """The parent run: found or created once, given the spec once that is resolved, closed at the end."""

    def __init__(
        self,
        client: MlflowClient,
        book: Book,
        paths: SweepPaths,
        tracking: TrackingConfig,
        name: str,
        info: Mapping[str, Any],
    ) -> None:
        self._client, self._book, self._paths = client, book, paths
        self._tracking, self._name, self._info = tracking, name, info
        self.attached = False
        self._attempts = 0

    def open(self, uri: str, save: Callable[[], None]) -> bool:
        """Find the run or create it; return True if it is new. `save` makes the book durable first, so that the run can
        be found again if the answer with its id is lost."""
        book, client = self._book, self._client
        if book.lost:
            self._adopt()
        tags = {**record.origin_tags(self._info), **self._tags()}
        if book.run_id and not lookup.alive(client, book.run_id):
            book.run_id, book.trials = "", {}  # a user deleted it: send everything on disk again
        if not book.run_id:
            name = self._tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._name
            book.experiment_id = lookup.experiment(client, uri, name)
            book.run_id = lookup.find_run(client, book.experiment_id, {Tag.ID: book.id}) or ""
        new = not book.run_id
        if new:
            save()
            book.run_id = client.create_run(book.experiment_id, tags=tags, run_name=self._name).info.run_id
        else:
            client.update_run(book.run_id, status="RUNNING")
            client.log_batch(book.run_id, tags=record.as_tags(tags))
        self._save_views()
        if data := self._section("data"):
            inputs = record.dataset_inputs(DataConfig.model_validate(data), self._info)
            client.log_inputs(book.run_id, inputs)
        return new

    def _adopt(self) -> None:
        """If `tracking.json` is lost, continue the run that lock.json names, provided it is this sweep's and not
        deleted. Its trials' runs are then found by their tags, and MLflow drops a point that is sent again."""
        run_id = str((self._info.get("tracking") or {}).get("run_id") or "")
        if run_id and lookup.alive(self._client, run_id):
            run = self._client.get_run(run_id)
            if run.data.tags.get(Tag.KIND) == "sweep" and run.data.tags.get(Tag.SWEEP) == self._name:
                self._book.run_id, self._book.experiment_id = run_id, str(run.info.experiment_id)
                self._book.id = run.data.tags.get(Tag.ID, self._book.id)
        self._book.lost = False

    def _save_views(self) -> None:
        """Write the views at every start: the spec may have more arms or seeds than before."""
        from mlflow.exceptions import MlflowException

        for key, value in views.tags(self._name, self._info.get("spec") or {}, time.time()).items():
            with suppress(MlflowException):  # a server that rejects the tag shows its plain page
                self._client.set_experiment_tag(self._book.experiment_id, key, value)

    def _tags(self) -> dict[str, str]:
        search = self._section("search")
        return record.clean(
            {
                "mlflow.runName": self._name,
                "mlflow.note.content": self._info.get("description") or None,
                Tag.DESCRIPTION: self._info.get("description") or None,
                Tag.KIND: "sweep",
                Tag.SWEEP: self._name,
                Tag.ID: self._book.id,
                Tag.STATE: "running",
                # what a report needs if the sweep's directory is missing
                Tag.OBJECTIVE: search.get("objective"),
                Tag.DIRECTION: search.get("direction"),
                Tag.PRIMARY: _json(self._section("eval").get("primary")),
                Tag.MARGIN: _json(self._section("eval").get("margin")),
            }
        )

    def _section(self, key: str) -> Mapping[str, Any]:
        """Return a section of the resolved spec."""
        return (self._info.get("spec") or {}).get(key) or {}

    def attach_spec(self, *, last: bool = False) -> None:
        """Upload the spec and its resolved form: as soon as they exist, so that a running sweep has them too, and once
        more at the end."""
        files = (self._paths.spec, self._paths.lock)
        if (last or not self.attached) and self._attempts < UPLOADS and all(file.exists() for file in files):
            self._attempts += 1
            log_files(lookup.artifacts(self._client, self._book.run_id), *files, self._paths.floors)
            self.attached, self._attempts = True, 0

    def copy_best(self, sender: Sender) -> None:
        """Copy the best SAEs at the end of a sweep with `tracking.log_sae: best`, except those copied before."""
        if self._tracking.log_sae != "best":
            return
        search = self._section("search")
        objective, direction = search.get("objective", "eval/fvu"), search.get("direction", "minimize")
        complete = [number for number, sent in self._book.trials.items() if sent.closed == "complete"]
        for best in best_trials(self._paths, complete, objective, maximize=direction == "maximize"):
            if not self._book.trials[best.number].sae:
                sender.upload_sae(best.number, best.config, self._paths.trial(best.number))

    def close(self, status: str) -> None:
        """Close the run with `status`, a run status of MLflow."""
        self.attach_spec(last=True)
        counts = Counter(sent.closed or "open" for sent in self._book.trials.values())
        tags = {Tag.COUNTS: json.dumps(counts), Tag.STATE: _SWEEP_STATES.get(status, status)}
        self._client.log_batch(self._book.run_id, tags=record.as_tags(tags))
        self._client.set_terminated(self._book.run_id, status)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
