"""A sweep's trials from its directory, for a sweep whose record in MLflow was deleted. Rows are those that MLflow would
give: the same functions make its params, tags and points."""

from __future__ import annotations

import json
from typing import Any

from saebench.report.rows import row_of
from saebench.report.sources import Source, known_runs
from saebench.runs import events
from saebench.runs.files import DamagedError
from saebench.runs.paths import TrialPaths
from saebench.runs.state import TrialState, load_config, load_state
from saebench.runs.tags import Tag
from saebench.tracking import record as mlflow_record


def local_rows(source: Source) -> list[dict[str, Any]] | None:
    """Return a row per trial; None if there is no directory on this machine, or if it lacks files that a row needs."""
    if source.paths is None:
        return None
    ids = known_runs(source)
    trials = source.paths.trials()
    if not trials or not {trial.number for trial in trials} >= ids.keys():
        return None
    try:
        rows = [_row(trial, source, ids) for trial in trials]
    except DamagedError:
        return None
    return None if None in rows else [row for row in rows if row is not None]


def local_points(source: Source, runs: list[str], key: str) -> dict[str, list[tuple[int, float]]]:
    """Return run id -> (samples, value) of one metric, for runs that `local_rows` named."""
    assert source.paths is not None
    by_run = {run: number for number, run in known_runs(source).items()}
    found = {}
    for run in runs:
        number = by_run[run] if run in by_run else int(run.removeprefix(_UNRECORDED))
        read = events.read(source.paths.trial(number).events)
        found[run] = [(e.samples, value) for e, _ in read if (value := mlflow_record.points(e).get(key)) is not None]
    return found


_UNRECORDED = "local-"
"""Prefix of the id of a trial without a run."""


def _row(trial: TrialPaths, source: Source, ids: dict[int, str]) -> dict[str, Any] | None:
    config, state = load_config(trial), load_state(trial)
    recorded = [event for event, _ in events.read(trial.events)]
    if config is None or state is None or (state.state == "complete" and not any(e.type == "done" for e in recorded)):
        return None
    metrics: dict[str, float] = {}
    tags = {**mlflow_record.trial_tags(config), **_tags(state)}
    for event in sorted(recorded, key=lambda event: event.samples):  # a run's metric is the one of its last step
        metrics |= mlflow_record.points(event)
        tags |= mlflow_record.event_tags(event)
    tags |= mlflow_record.state_tags(state)
    if nonfinite := mlflow_record.not_finite(recorded):
        tags[Tag.NONFINITE] = json.dumps(nonfinite)
    return row_of(
        ids.get(trial.number, f"{_UNRECORDED}{trial.number}"),
        tags,
        mlflow_record.params(config, source.lock),
        metrics,
        recorded[0].ts if recorded else None,
        recorded[-1].ts if recorded else None,
        mlflow_record.STATUS[state.state],
    )


def _tags(state: TrialState) -> dict[str, str]:
    seconds = f"{state.seconds:.1f}" if state.ended and state.attempts else ""
    return mlflow_record.clean({**state.search, Tag.STATE: state.state, Tag.REASON: state.reason, Tag.SECONDS: seconds})
