"""Which sweep is meant, and where its record lies: names, directories and tracking servers."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from saebench import telemetry
from saebench.errors import PreflightError, UserError
from saebench.runs.paths import SweepPaths, TrialPaths, runs_dir

ANSWER_WITHIN = 5
"""Seconds a tracking server gets for its first answer."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Source:
    """One sweep: its parent run in MLflow, and its directory where there is one on this machine."""

    name: str
    uri: str
    experiment_id: str
    run_id: str
    paths: SweepPaths | None = None
    lock: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    """Of the parent run, where the sweep was found on a server."""

    def search(self, key: str, default: str) -> str:
        """A key of the spec's `search` section: as the lock records it, else as the parent run says."""
        spec = self.lock.get("spec")
        section = (spec if isinstance(spec, dict) else self.lock).get("search")
        locked = section.get(key) if isinstance(section, dict) else None
        return str(locked or self.tags.get(f"saebench.{key}") or default)


def find(sweeps: Sequence[str | Path], runs: str | Path | None = None, tracking_uri: str | None = None) -> list[Source]:
    """The sweeps named by directory or name; none named: the newest. Raises UserError that lists the ones there are."""
    folder = runs_dir(runs)
    if tracking_uri:
        return _on_server(sweeps, folder, tracking_uri)
    if not sweeps:
        return [_local(_newest(folder))]
    return [_named(str(sweep), folder) for sweep in sweeps]


def local_sweeps(folder: Path) -> list[Path]:
    """Directories in `folder` that a sweep has begun to fill, the one that changed last at the end."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _files(SweepPaths(p))), key=lambda p: _last_change(SweepPaths(p)))


def _files(paths: SweepPaths) -> list[Path]:
    return [p for p in (paths.tracking, paths.lock, paths.spec) if p.is_file()]


def _last_change(paths: SweepPaths) -> float:
    return max(p.stat().st_mtime for p in (*_files(paths), paths.journal, paths.log) if p.is_file())


def _newest(folder: Path) -> Path:
    found = local_sweeps(folder)
    if not found:
        raise UserError(f"{folder}: no sweeps here; name one, or say where with --runs-dir or --tracking-uri")
    return found[-1]


def _named(sweep: str, folder: Path) -> Source:
    for path in (Path(sweep), folder / sweep):
        if path.is_dir() and _files(SweepPaths(path.absolute())):
            return _local(path.absolute())
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return _on_server([sweep], folder, uri)[0]
    raise UserError(f"{sweep}: no such sweep in {folder}; {_those(p.name for p in local_sweeps(folder))}")


def _those(names: Iterator[str] | Sequence[str]) -> str:
    names = sorted(set(names))
    return f"there are: {', '.join(names)}" if names else "there are none"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _local(root: Path) -> Source:
    paths = SweepPaths(root)
    lock = _read_json(paths.lock)
    for record in (_read_json(paths.tracking), lock):
        found = record.get("tracking") if isinstance(record.get("tracking"), dict) else record
        if isinstance(found, dict) and {"uri", "experiment_id", "run_id"} <= found.keys():
            name = str(lock.get("name") or root.name)
            return Source(
                name, _with_password(str(found["uri"])), str(found["experiment_id"]), str(found["run_id"]), paths, lock
            )
    raise UserError(f"{root}: neither tracking.json nor lock.json names an MLflow run: the sweep has not started yet")


def directory_of(run_id: str, tags: Mapping[str, str], folder: Path) -> TrialPaths | None:
    """The directory of the trial whose run this is, if its sweep is in `folder`."""
    sweep, trial = tags.get("saebench.sweep"), tags.get("saebench.trial", "")
    if not sweep or not trial.isdigit():
        return None
    paths = SweepPaths((folder / sweep).absolute())
    known = _read_json(paths.tracking).get("trials", {}).get(trial, {})
    return paths.trial(int(trial)) if known.get("run_id") == run_id else None


def _with_password(uri: str) -> str:
    """Passwords are not stored: the environment must have the same URI with its password."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if ":***@" in uri and without_password(given) != uri:
        raise PreflightError(f"tracking {uri}: passwords are not stored; set MLFLOW_TRACKING_URI to the whole URI")
    return given if ":***@" in uri else uri


# --- servers ---------------------------------------------------------------------------------------------------------


def _on_server(sweeps: Sequence[str | Path], folder: Path, uri: str) -> list[Source]:
    parents = _parents(uri, [Path(s).name for s in sweeps])
    if not parents:
        there = _those([parent.name for parent in _parents(uri, [])])
        named = f"{', '.join(map(str, sweeps))}: no such sweep" if sweeps else "no sweeps"
        raise UserError(f"{named} on {without_password(uri)}; {there}")
    wanted = [Path(s).name for s in sweeps] or [parents[0].name]
    newest = {parent.name: parent for parent in reversed(parents)}
    if missing := [name for name in wanted if name not in newest]:
        there = _those([parent.name for parent in _parents(uri, [])])
        raise UserError(f"{', '.join(missing)}: no such sweep on {without_password(uri)}; {there}")
    return [_with_directory(newest[name], folder) for name in wanted]


def _with_directory(source: Source, folder: Path) -> Source:
    """The same with its directory, if the one of that name in `folder` is of the same run."""
    try:
        local = _local(folder / source.name)
    except UserError:
        return source
    return (
        Source(**{**vars(source), "paths": local.paths, "lock": local.lock})
        if local.run_id == source.run_id
        else source
    )


def _parents(uri: str, names: Sequence[str]) -> list[Source]:
    """The sweeps of these names, or all, that have a parent run; newest first."""
    client = connect(uri)
    with speaking_to(uri):
        experiments = [e.experiment_id for e in pages(client.search_experiments)]
        found: list[Any] = []
        for name in names or [""]:
            wanted = "tags.`saebench.kind` = 'sweep'"
            wanted += f" and tags.`saebench.sweep` = '{_quoted(name)}'" if name else ""
            for start in range(0, len(experiments), 100):
                ids = experiments[start : start + 100]
                found += pages(client.search_runs, experiment_ids=ids, filter_string=wanted)
    found.sort(key=lambda run: run.info.start_time or 0, reverse=True)
    return [
        Source(r.data.tags.get("saebench.sweep", ""), uri, r.info.experiment_id, r.info.run_id, tags=r.data.tags)
        for r in found
    ]


def _quoted(name: str) -> str:
    if "'" in name:
        raise UserError(f"{name}: a sweep's name has no quotes")
    return name


def pages(search: Any, **query: Any) -> Iterator[Any]:
    """Every entity of a paged MLflow search."""
    token = None
    while True:
        page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return


def connect(uri: str) -> Any:
    """An `MlflowClient`, once something answers at `uri`; PreflightError with one line, within seconds, where nothing
    does. Never creates a database."""
    telemetry.disable()
    _answers(uri)
    for kind in (DeprecationWarning, FutureWarning):  # of MLflow's own affairs: under `python -W error` they would be
        warnings.filterwarnings("ignore", category=kind, module=r"(mlflow|sqlalchemy|alembic)(\.|$)")  # errors of ours
    from mlflow import MlflowClient

    with speaking_to(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """Few retries, short waits, no progress bars (the user's environment may say otherwise); errors in one line."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    ours = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise PreflightError(f"tracking {without_password(uri)}: {without_password(said)}") from error
    finally:
        for key in ours:
            os.environ.pop(key, None)


def without_password(text: str) -> str:
    """`text` with the password of every URL in it masked."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)


def sqlite_path(uri: str) -> Path | None:
    """File of a sqlite tracking URI, None for other URIs."""
    if not uri.startswith("sqlite"):
        return None
    return Path(unquote(uri.split("://", 1)[1].removeprefix("/")).split("?")[0])


def _answers(uri: str) -> None:
    place, parts = without_password(uri), urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if (file := sqlite_path(uri)) is not None:
        if not file.is_file():
            raise PreflightError(f"tracking {place}: the database is not there")
    elif scheme in ("http", "https"):
        _http_answers(uri, place)
    elif scheme in _PORTS and parts.hostname:
        try:
            socket.create_connection((parts.hostname, parts.port or _PORTS[scheme]), timeout=ANSWER_WITHIN).close()
        except OSError as error:
            raise PreflightError(f"tracking {place}: the server does not answer ({error})") from error
    elif scheme in ("", "file") and not Path(unquote(parts.path)).is_dir():
        raise PreflightError(f"tracking {place}: the folder is not there")


def _http_answers(uri: str, place: str) -> None:
    """Any answer will do, also "who are you" or "not found": what it means, MLflow's client says."""
    begin = time.monotonic()
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        if "CERTIFICATE" in str(error):
            return
        waited = f"{time.monotonic() - begin:.0f} s"
        reason = getattr(error, "reason", None) or error
        raise PreflightError(f"tracking {place}: the server does not answer ({reason}; {waited})") from error
