"""Fetch all runs, and metric histories, from a tracking server in as few and as cheap REST requests as possible.

MLflow's own client turns every param, tag and metric into a protobuf message, then into an object of its own, and
requests one metric's history of one run at a time. Here a response is parsed as JSON, several pages are requested at a
time, and one request fetches a hundred histories. MLflow's `http_request` adds the rest (credentials, certificates,
headers of plugins, proxies, retries).
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
"""Runs per request: enough that the overhead of a request does not matter."""
_SPANS = 8
"""Number of time spans into which the runs after the first page are divided."""
_GROUP, _MOST = 100, 25_000
"""Runs that a server accepts in one request for histories, and points after which it truncates the response."""


class Run(NamedTuple):
    """A run, read over REST or by MLflow's client."""

    id: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start: int | None
    end: int | None
    """ms"""
    status: str
    artifacts: str
    """Artifact URI."""


def is_server(uri: str) -> bool:
    """Return whether this tracking URI speaks MLflow's plain REST API."""
    return uri.startswith(("http://", "https://"))


def runs(uri: str, experiment_id: str, wanted: str, at_once: int) -> list[Run]:
    """Return every run of an experiment that matches the filter `wanted` and is not deleted, the newest first. Raises
    MlflowException and requests' errors.

    A page's token comes with the page before it, so that pages of one query use only one of the server's workers. So
    only the first page is fetched alone; the runs that began later are divided into time spans, fetched in parallel."""
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
    """Return filters that divide the time from `begin` on, in ms; none if `begin` and `end` leave nothing to divide.
    The last span is open: a running sweep begins more trials while it is read."""
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
    """Return (runs, token of the next page; "" after the last page)."""
    answer = _ask(uri, _SEARCH, "POST", json=query)
    return [_run(found) for found in answer.get("runs", [])], answer.get("next_page_token", "")


def _run(found: dict[str, Any]) -> Run:
    info, data = found["info"], found.get("data", {})
    return Run(
        info["run_id"],
        _pairs(data, "tags"),
        _pairs(data, "params"),
        {key: float(value) for key, value in _pairs(data, "metrics").items()},  # NaN comes as a string
        int(info["start_time"]) if info.get("start_time") else None,
        int(info["end_time"]) if info.get("end_time") else None,
        info.get("status", "RUNNING"),
        info.get("artifact_uri", ""),
    )


def _pairs(data: dict[str, Any], kind: str) -> dict[str, Any]:
    return {item["key"]: item.get("value", "") for item in data.get(kind, ())}


def histories(uri: str, run_ids: Sequence[str], key: str, at_once: int) -> dict[str, Points]:
    """Return every point of one metric in order of time, for the runs whose history the server returned whole: the
    endpoint serves MLflow's own pages, is not documented, and truncates a run with too many points."""
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
    """Return the histories of a group; if the response may be truncated, request each half of the group."""
    answer = _ask(uri, _BULK, "GET", params={"run_id": list(run_ids), "metric_key": key, "max_results": _MOST})
    points = answer["metrics"]
    if len(points) < _MOST:
        found: dict[str, Points] = {run: [] for run in run_ids}
        for point in points:
            found[point["run_id"]].append((int(point["step"]), float(point["value"])))
        return found
    if len(run_ids) == 1:
        return {}  # does not fit one response: the caller fetches it page by page
    middle = len(run_ids) // 2
    return _group(uri, run_ids[:middle], key) | _group(uri, run_ids[middle:], key)


def _ask(uri: str, endpoint: str, method: str, **what: Any) -> dict[str, Any]:
    """Return the response's JSON; raise MlflowException for any other response."""
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
