"""One MLflow run as a row, and rows as a tidy DataFrame."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saebench.config import SAE_CONFIGS
from saebench.runs.tags import Tag

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST = ("sweep", "trial", "state", "reason", "type", "stratum", "point", "seed")
"""Columns with which every frame begins."""
_STATUS = {"FINISHED": "complete", "FAILED": "failed", "KILLED": "pruned", "RUNNING": "running", "SCHEDULED": "planned"}
_BIGGEST = 1.797e308
"""MLflow stores infinity as the largest float."""


def row_of(
    run_id: str,
    tags: dict[str, str],
    params: dict[str, str],
    metrics: dict[str, float],
    start: int | None = None,
    end: int | None = None,
    status: str = "FINISHED",
) -> dict[str, Any]:
    """Return one MLflow run as a row; tags win over params, and a parameter that parses as a number becomes one."""
    row: dict[str, Any] = {key: _number(value) for key, value in params.items()}
    number, seed = tags.get(Tag.TRIAL, ""), tags.get(Tag.SEED, params.get("seed", ""))
    row |= {
        "sweep": tags.get(Tag.SWEEP, ""),
        "trial": int(number) if number.isdigit() else None,
        "state": tags.get(Tag.STATE) or _STATUS.get(status, status.lower()),
        "reason": tags.get(Tag.REASON, ""),
        "type": tags.get(Tag.TYPE) or params.get("type", ""),
        "stratum": tags.get(Tag.STRATUM, ""),
        "point": tags.get(Tag.POINT, ""),
        "seed": int(seed) if seed.isdigit() else None,
        "attempt": _number(tags.get(Tag.ATTEMPT, "1")),
        "duration_s": _duration(tags.get(Tag.SECONDS, ""), start, end),
        "run_id": run_id,
        "verdict": _json(tags.get(Tag.VERDICT, "")),
        "role": tags.get(Tag.ROLE, ""),
        "choice": _number(tags.get(Tag.CHOICE, "0")),
        "search_error": _json(tags.get(Tag.SEARCH_ERROR, "")),
        "failure": tags.get(Tag.FAILURE, ""),
        "_start": start,
    }
    not_finite = _json(tags.get(Tag.NONFINITE, ""))  # MLflow's value of these is from an earlier mark
    return row | {key: finite(value) for key, value in metrics.items()} | dict.fromkeys(not_finite, math.nan)


def _duration(trained: str, start: int | None, end: int | None) -> float | None:
    """Return the seconds that the trial's attempts ran; for a run recorded without them, those from its start to its
    end, which count the hours between two attempts."""
    with suppress(ValueError):
        return float(trained)
    return (end - start) / 1000 if start and end else None


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def finite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _BIGGEST else value


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def to_frame(rows: Sequence[dict[str, Any]]) -> DataFrame:
    """Return rows as a frame: identity first, then parameters, metrics and the rest; sorted by sweep and trial."""
    import pandas as pd

    last = ("failure", "attempt", "duration_s", "run_id", "verdict", "role", "choice", "search_error")
    keys = dict.fromkeys(key for row in rows for key in row if not key.startswith("_"))
    sparsity = [name for config in SAE_CONFIGS.values() for name in config.sparsity]
    first = [*FIRST, *dict.fromkeys([name for name in sparsity if name in keys]), "dict_size", "lr"]
    middle = [key for key in keys if key not in first and key not in last]
    columns = list(dict.fromkeys([*first, *sorted(middle, key=lambda key: "/" in key), *last]))
    frame = pd.DataFrame([{key: row.get(key) for key in columns} for row in rows], columns=columns)
    for key in ("trial", "seed"):
        frame[key] = frame[key].astype("Int64")
    for key in ("dict_size", "lr", *(key for key in columns if "/" in key)):
        frame[key] = pd.to_numeric(frame[key], errors="coerce")
    return frame.sort_values(["sweep", "trial"], kind="stable", ignore_index=True)
