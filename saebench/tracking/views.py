"""A sweep as MLflow's page of runs shows it: the columns, the grouping and the charts of a sweep, ready to open.

MLflow keeps a saved view in a tag of the experiment, as JSON of the page's own state; its page lists them under Views.
Without a view the page shows only a sweep's parent run, and no parameter or metric until the user has picked them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from saebench.metrics import METRICS
from saebench.runs.tags import Tag

_TAG = "mlflow.sharedViewState."
_RUNS = "workflowType=machine_learning"
_MOST = 20
"""Params in a view: servers of older MLflow take tags of an experiment up to 5000 characters."""
VIEWS = ("trials", "strata")
"""`trials`: one row per trial, the best first. `strata`: means over complete trials, the trials below them."""


def page(experiment_id: str, sweep: str, view: str = "trials", saved: Iterable[str] | None = None) -> str:
    """Return the path of a sweep's `view` on a server. `saved`: names of the experiment's tags, if known; if the view's
    tag is not among them (the sweep is older than views, or a user deleted it), MLflow would show an error, so this
    returns the path of the plain page."""
    plain = f"/#/experiments/{experiment_id}/runs?"
    there = saved is None or _TAG + _key(sweep, view) in set(saved)
    return f"{plain}viewStateShareKey={_key(sweep, view)}&{_RUNS}" if there else plain + _RUNS


def tags(sweep: str, spec: Mapping[str, Any], now: float) -> dict[str, str]:
    """Return the experiment's tags that hold the views of a sweep with this resolved spec; `now` in seconds."""
    made = int(now * 1000)
    found = {}
    for view in VIEWS:
        state = json.dumps(_state(sweep, spec, grouped=view == "strata"))
        saved = {"name": f"{sweep}: {view}", "createdAt": made, "updatedAt": made, "state": state}
        found[_TAG + _key(sweep, view)] = json.dumps(saved)
    return found


def _key(sweep: str, view: str) -> str:
    return f"saebench-{sweep}-{view}"


def _state(sweep: str, spec: Mapping[str, Any], *, grouped: bool) -> dict[str, Any]:
    search = spec.get("search") or {}
    objective = search.get("objective", "eval/fvu")
    params = varied(spec)[:_MOST]
    widths = _columns(params, objective)
    wanted = f"tags.`{Tag.KIND}` = 'trial' AND tags.`{Tag.SWEEP}` = '{sweep}'"
    return {
        # a pruned trial's last value comes from a smaller budget: keep it out of a stratum's mean
        "searchFilter": wanted + (f" AND tags.`{Tag.STATE}` = 'complete'" if grouped else ""),
        "orderByKey": f"metrics.`{objective}`",  # by time, the page would fold the trials below their parent
        "orderByAsc": search.get("direction", "minimize") == "minimize",
        "selectedColumns": [column for column in widths if column not in _FIXED],
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "FIRST_20_RUNS",  # in charts
        "groupBy": _by(Tag.STRATUM) if grouped else None,
        "isAccordionReordered": True,  # else the sections are sorted by name, ours behind "eval"
        "compareRunSections": [
            {"uuid": "sweep", "name": "sweep", "display": True, "isReordered": True, "columns": 1, "cardHeight": 420}
        ],
        "compareRunCharts": _charts([] if grouped else params, objective),
    }


_FIXED = {"attributes.`Run Name`": 290, "runDateAndNestInfo": 150, "duration": 90}
"""Columns that are always there, by the page's own names; wide enough for a stratum's name."""


def _columns(params: list[str], objective: str) -> dict[str, int]:
    """Return the columns in their order, with their width in pixels."""
    name, *rest = _FIXED.items()
    metrics = dict.fromkeys((objective, "eval/fvu", "eval/l0", "eval/dead_fraction"))
    return {
        **dict([name]),
        **{f"metrics.`{key}`": 150 if len(key) > 8 else 110 for key in metrics},
        **{f"params.`{key}`": 110 if key in ("type", "lr") else 80 for key in params},
        f"tags.`{Tag.STATE}`": 150,
        "attributes.`Dataset`": 260,
        **dict(rest),
        f"tags.`{Tag.REASON}`": 300,
    }


def _by(tag: str) -> dict[str, Any]:
    return {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag}]}


def _charts(params: list[str], objective: str) -> list[dict[str, Any]]:
    """Return the charts that users of a sweep look at first; MLflow adds a curve for every other metric in its own
    sections. Parallel coordinates of groups would lack the params that have no mean, such as the type."""
    l0, value = {"key": "eval/l0", "type": "METRIC"}, {"key": objective, "type": "METRIC"}
    metric = METRICS.get(objective.removeprefix("eval/"))
    # on a linear axis one trial with too high a learning rate hides the curves of all others
    scale = "log" if metric is not None and metric.comparison == "ratio" else "linear"
    charts = [
        _chart("LINE", "curve", metricKey=objective, xAxisKey="step", useGlobalXaxisKey=True, scaleType=scale),
        _chart("SCATTER", "front", xaxis=l0, yaxis=value),
    ]
    if params:
        settings = {"selectedParams": params, "selectedMetrics": [objective], "showAllRuns": True}
        charts.append(_chart("PARALLEL", "parallel", **settings))
    return charts


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    base = {"uuid": name, "type": kind, "metricSectionId": "sweep", "deleted": False, "isGenerated": False}
    return {**base, "runsCountToCompare": 100, **settings}


def varied(spec: Mapping[str, Any]) -> list[str]:
    """Return the names of the params in which trials of a sweep can differ: of its arms, ranges and lists, and seed."""
    arms = [{"type": "", **arm} for arm in spec.get("sae") or ()]
    names = dict.fromkeys(name for arm in arms for name in arm)
    found = [name for name in names if _differ(arm.get(name) for arm in arms)]
    found += [name for name, value in (spec.get("train") or {}).items() if _differ([value])]
    found += ["seed"] if len(spec.get("seeds") or ()) > 1 else []
    return list(dict.fromkeys("dict_size" if name == "expansion_factor" else name for name in found))


def _differ(values: Iterable[Any]) -> bool:
    """Return whether one of them is a range or a list of choices, or they are not all equal."""
    known = list(values)
    return any(isinstance(value, (dict, list)) for value in known) or len({json.dumps(v) for v in known}) > 1
