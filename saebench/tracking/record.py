"""What is written about a trial: params, tags, points and its dataset, in MLflow's terms and limits."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.config import SAE_CONFIGS, DataConfig, TrialConfig
from saebench.runs.events import Event
from saebench.runs.secrets import mask
from saebench.runs.state import TrialState
from saebench.runs.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Param, RunTag

STATUS = {
    "planned": "SCHEDULED",
    "running": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""Trial state -> status of its run."""
_TAG_LENGTH, _PARAM_LENGTH = 8000, 6000
_DATA_PARAMS = ("model", "num_examples", "holdout", "revision", "prompt", "normalize", "max_seq_length", "dtype")


def params(config: TrialConfig, info: Mapping[str, Any]) -> dict[str, str]:
    """Return flat params, only those with a value in this arm; for a null field the docs name the default."""
    data = {f"data.{key}": getattr(config.data, key) for key in _DATA_PARAMS}
    found = {
        **config.sae.model_dump(exclude={"expansion_factor"}),
        **config.train.model_dump(),
        "seed": config.seed,
        "d_in": info.get("d_in"),
        **data,
        "data.dataset": _dataset_name(config.data),
        "data.split": config.data.dataset.split,
    }
    return {key: mask(_text(value)) for key, value in found.items() if value is not None}


def trial_tags(config: TrialConfig) -> dict[str, str]:
    """Return the tags by which a trial's run is grouped, filtered and found."""
    return {
        "mlflow.runName": f"{config.number:04d} {config.stratum}",
        Tag.KIND: "trial",
        Tag.SWEEP: config.sweep,
        Tag.TRIAL: f"{config.number:04d}",
        Tag.STRATUM: config.stratum,
        Tag.POINT: config.point,
        Tag.SEED: str(config.seed),
        Tag.TYPE: config.sae.type,
        "mlflow.runColor": _COLOURS[list(SAE_CONFIGS).index(config.sae.type) % len(_COLOURS)],
    }


_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#8c564b",
    "#9467bd",
    "#bcbd22",
)
"""Colours of types in MLflow's charts, which colour a run by this tag."""


def origin_tags(info: Mapping[str, Any]) -> dict[str, str]:
    """Return user, command, commit and versions as tags: MLflow's client, unlike its fluent API, does not add them."""
    git = info.get("git") or {}
    versions: Mapping[str, str] = info.get("versions") or {}
    found = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name or "saebench",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        Tag.VERSION: versions.get("saebench"),
        Tag.VERSIONS: json.dumps({**versions, "python": info.get("python")}) if versions else None,
        Tag.HOST: info.get("host"),
    }
    return clean(found)


def _user() -> str:
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container's user without an entry in passwd


def clean(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags that MLflow and its database accept: text, not None, no NUL, not too long."""
    return {key: mask(_text(v)).replace("\0", "")[:_TAG_LENGTH] for key, v in tags.items() if v is not None}


def _text(value: Any) -> str:
    """Write 16.0 as 16, so that grouping and filters see the same k for all types."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, default=str).strip('"')


def event_tags(event: Event) -> dict[str, str]:
    """Return the tags that an event sets on its trial."""
    if event.type == "start":
        device = event.info.get("device_name") or event.info.get("device")
        return clean({Tag.DEVICE: device, Tag.ATTEMPT: event.attempt})
    if event.type == "failed":
        return clean({Tag.FAILURE: event.info.get("kind")})
    if event.type in ("done", "left"):
        return clean({Tag.KEPT: event.info.get("kept")})
    return {}


def state_tags(state: TrialState) -> dict[str, str]:
    """Return the tags from state.json, for a trial whose scheduler died before setting them."""
    found = {Tag.ATTEMPT: len(state.attempts) or None, Tag.FAILURE: state.kind}
    return clean({**found, Tag.VERDICT: json.dumps(state.verdict) if state.verdict else None})


def points(event: Event) -> dict[str, float]:
    """Return the metrics of an event that are finite."""
    return {key: float(value) for key, value in event.values.items() if math.isfinite(value)}


def not_finite(events: Iterable[Event]) -> dict[str, int]:
    """Return metric -> number of samples at its first NaN or infinity. They become a tag: MLflow would store an
    infinity as 1.8e308, which spoils every chart and mean."""
    found: dict[str, int] = {}
    for event in events:
        for key, value in event.values.items():
            if not math.isfinite(value):
                found.setdefault(key, event.samples)
    return found


def fresh(done: Event, earlier: Iterable[Event]) -> Event:
    """Return a `done` event without the values that the evaluation at the same mark has logged, so that MLflow has the
    last mark's points once."""
    logged = {k: v for e in earlier if e.type == "eval" and e.samples == done.samples for k, v in e.values.items()}
    values = {key: value for key, value in done.values.items() if logged.get(key) != value}
    return Event(done.type, done.samples, values, done.info, done.attempt, done.ts)


def dataset_inputs(data: DataConfig, info: Mapping[str, Any]) -> list[DatasetInput]:
    """Return the texts as an MLflow dataset, so that runs can be grouped and filtered by it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = data.dataset.model_dump(exclude_none=True)
    text = json.dumps(data.model_dump(mode="json"), sort_keys=True)
    dataset = Dataset(
        name=f"{_dataset_name(data)}:{data.dataset.split}"[:500],
        digest=str(info.get("cache_key") or hashlib.sha256(text.encode()).hexdigest())[:16],
        source_type="hf" if data.dataset.data_files is None else "local",
        source=mask(json.dumps(source))[:60_000],
        profile=json.dumps(
            {k: info[k] for k in ("num_train", "num_validation", "num_test", "d_in") if info.get(k) is not None}
        ),
    )
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", "train, validation and test")])]


def _dataset_name(data: DataConfig) -> str:
    """Return the dataset's name on the hub, or the file's name for the builders that read files."""
    files = data.dataset.data_files
    if files is None:
        return "/".join(filter(None, (data.dataset.path, data.dataset.name)))
    first = files if isinstance(files, str) else files[0]
    return Path(mask(first)).name


def as_tags(tags: Mapping[str, str]) -> list[RunTag]:
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def as_params(params: Mapping[str, str]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, value[:_PARAM_LENGTH]) for key, value in params.items()]
