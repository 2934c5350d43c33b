"""The spec that a sweep is given, and the spec of a sweep that exists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.errors import PreflightError, SpecError
from saebench.runs.lock import read_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.secrets import mask
from saebench.spec import SweepSpec, parse_spec
from saebench.spec.load import folder_of, load_text
from saebench.spec.source import read_text


@dataclass(frozen=True)
class GivenSpec:
    spec: SweepSpec
    text: str
    """The spec as the user wrote it."""
    folder: Path
    """Its folder, whose git commit is recorded."""


def given_spec(spec: str | Path | SweepSpec | Mapping[str, Any], overrides: Sequence[str]) -> GivenSpec:
    if isinstance(spec, str | Path):
        text = read_text(Path(spec))
        return GivenSpec(load_text(text, spec, overrides), text, folder_of(spec))
    if not isinstance(spec, SweepSpec):
        spec = parse_spec(spec, overrides)
    elif overrides:
        spec = parse_spec(spec.plain(), overrides)
    import yaml

    return GivenSpec(spec, yaml.safe_dump(spec.plain(), sort_keys=False), Path.cwd())


def unmasked_uri(uri: str) -> str:
    """Return the address with its secrets, which are not stored but taken from MLFLOW_TRACKING_URI if that is otherwise
    equal."""
    known = os.environ.get("MLFLOW_TRACKING_URI", "")
    if mask(known) != uri:
        raise PreflightError(f"tracking.uri: {uri}: its secret is not stored; set MLFLOW_TRACKING_URI")
    return known


def spec_of(paths: SweepPaths) -> SweepSpec:
    """Return the resolved spec of a sweep that exists; raise SpecError if it does not."""
    lock = read_lock(paths)
    if lock is None:
        raise SpecError(f"{paths.root}: no such sweep; saebench ls lists those that exist")
    return parse_spec(lock.spec, label=str(paths.lock))
