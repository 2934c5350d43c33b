"""The two large questions a report asks a tracking server, in as few and as cheap requests as MLflow's REST API has.

MLflow's own client turns every param, tag and metric into a protobuf message, then into an object of its own, and asks
for one metric's history of one run at a time. Here an answer is read as JSON, several pages are under way at a time,
and a hundred histories come in one request. What a request carries besides (credentials, certificates, headers of
plugins, proxies, retries) is MLflow's `http_request`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

Points = list[tuple[int, float]]
"""(examples, value)."""

_SEARCH, _BULK = "/api/2.0/mlflow/runs/search", "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_PAGE = 250
"""Runs per request: enough that the requests themselves cost little."""
_SPANS = 8
"""Into how many spans of time the runs after the first page are divided."""
_GROUP, _MOST = 100, 25_000
"""Runs a server takes in one question for histories, and the points after which it cuts its answer."""


class Run(NamedTuple):
    """A run, whoever was asked for it."""

    id: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start: int | None
    end: int | None
    """ms"""
    status: str
    artifacts: str
    """Where its files are."""


def is_server(uri: str) -> bool:
    """Does this tracking URI speak MLflow's REST API as such?"""
    return uri.startswith(("http://", "https://"))


def runs(uri: str, experiment_id: str, wanted: str, at_once: int) -> list[Run]:
    """Every live run of an experiment that the filter `wanted` keeps, the newest first. Raises MlflowException and
    requests' errors.

    Pages follow one another, each made by one of the server's workers while the others and this process wait. So only
    the first is asked for alone; what began later is divided into spans of time, which are asked for side by side."""
    query: dict[str, Any] = {"experiment_ids": [experiment_id], "filter": wanted, "max_results": _PAGE}
    query["order_by"] = ["attributes.start_time ASC"]
    first, token = _page(uri, query)
    found = {run.id: run for run in first}
    if token:
        newest, _ = _page(uri, {**query, "order_by": ["attributes.start_time DESC"], "max_results": 1})
        spans = _spans(first[-1].start or 0, newest[0].start or 0)
        queries = [{**query, "filter": f"{wanted} and {span}"} for span in spans] or [{**query, "page_token": token}]
        with ThreadPoolExecutor(at_once) as pool:
            for part in pool.map(lambda query: _all_pages(uri, query), queries):
                found |= {run.id: run for run in part}
    return sorted(found.values(), key=lambda run: (-(run.start or 0), run.id))


def _spans(begin: int, end: int) -> list[str]:
    """Filters that part all times from `begin` on, in ms; none where there is nothing to part. The last has no end: a
    sweep that runs begins more trials while it is read."""
    if end <= begin:
        return []
    times = [begin + (end - begin) * i // _SPANS for i in range(_SPANS)]
    parts = [f"attributes.start_time >= {start}" for start in times]
    return [f"{part} and attributes.start_time < {stop}" for part, stop in zip(parts, times[1:], strict=False)] + [
        parts[-1]
    ]


def _all_pages(uri: str, query: dict[str, Any]) -> list[Run]:
    found, token = _page(uri, query)
    while token:
        more, token = _page(uri, {**query, "page_token": token})
        found += more
    return found


def _page(uri: str, query: dict[str, Any]) -> tuple[list[Run], str]:
    """(runs, token of the next page; empty where there is none)."""
    answer = _ask(uri, _SEARCH, "POST", json=query)
    return [_run(found) for found in answer.get("runs", [])], answer.get("next_page_token", "")


def _run(found: dict[str, Any]) -> Run:
    info, data = found["info"], found.get("data", {})
    return Run(
        info["run_id"],
        _pairs(data, "tags"),
        _pairs(data, "params"),
        {key: float(value) for key, value in _pairs(data, "metrics").items()},  # NaN comes as a word
        int(info["start_time"]) if info.get("start_time") else None,
        int(info["end_time"]) if info.get("end_time") else None,
        info.get("status", "RUNNING"),
        info.get("artifact_uri", ""),
    )


def _pairs(data: dict[str, Any], kind: str) -> dict[str, Any]:
    return {item["key"]: item.get("value", "") for item in data.get(kind, ())}


def histories(uri: str, run_ids: Sequence[str], key: str, at_once: int) -> dict[str, Points]:
    """Every point of one metric, in order of time, of those runs for which the server tells: it is the question that
    MLflow's own pages ask, no part of the documented API, and a run may have more points than fit into an answer."""
    from mlflow.exceptions import MlflowException

    groups = [run_ids[start : start + _GROUP] for start in range(0, len(run_ids), _GROUP)]
    found: dict[str, Points] = {}
    try:
        with ThreadPoolExecutor(at_once) as pool:
            for part in pool.map(lambda group: _group(uri, group, key), groups):
                found |= part
    except MlflowException:
        return {}
    return found


def _group(uri: str, run_ids: Sequence[str], key: str) -> dict[str, Points]:
    """The histories of a group; an answer that may have been cut is asked for again in halves."""
    answer = _ask(uri, _BULK, "GET", params={"run_id": list(run_ids), "metric_key": key, "max_results": _MOST})
    points = answer["metrics"]
    if len(points) < _MOST:
        found: dict[str, Points] = {run: [] for run in run_ids}
        for point in points:
            found[point["run_id"]].append((int(point["step"]), float(point["value"])))
        return found
    if len(run_ids) == 1:
        return {}  # longer than the server's longest answer: to be asked for page by page
    middle = len(run_ids) // 2
    return _group(uri, run_ids[:middle], key) | _group(uri, run_ids[middle:], key)


def _ask(uri: str, endpoint: str, method: str, **what: Any) -> dict[str, Any]:
    """The answer's JSON; MlflowException for anything else."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    request, credentials = cast(Any, http_request), cast(Any, get_default_host_creds)  # MLflow's are untyped
    response = request(credentials(uri), endpoint, method, **what)
    if response.status_code == 200:
        try:
            found = json.loads(response.content)  # `.text` would guess the encoding of megabytes first
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
    verify_rest_response(response, endpoint)
    raise MlflowException(f"{endpoint}: the answer is not JSON; is this an MLflow server?")
