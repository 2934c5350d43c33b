"""Talk to MLflow: whether an address answers, a client for it, errors in one line, what exists there already."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from saebench import telemetry
from saebench.errors import PreflightError, UserError
from saebench.runs.secrets import mask
from saebench.tracking.address import artifact_root, sqlite_file, sqlite_uri
from saebench.tracking.database import gather, quicken
from saebench.tracking.uploads import Artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_WITHIN = 5.0
"""Seconds a tracking server gets for its first answer."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of a logged model: it would tear the live view
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PREFLIGHT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
"""MLflow's own are 7 retries of up to 120 s each: about four minutes before a wrong address is reported."""
_READING = {**_QUIET, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""For a report, which sends many requests at once; variables that the user has set win."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors raised unchanged: the sweep's own message names the full directory."""
_THEIR_MODULES = r"(mlflow|sqlalchemy|alembic)(\.|$)"
"""Their DeprecationWarnings concern their own code; under `python -W error` they would stop this program."""


# --- does it answer --------------------------------------------------------------------------------------------------


def check(uri: str) -> None:
    """Find out within seconds, and without creating anything, whether a sweep can record to `uri`; raise PreflightError
    in one line if not. MLflow itself tries a database that it cannot open for nearly two minutes."""
    try:
        if (file := sqlite_file(uri)) is not None:
            _check_writable(file)
        else:
            if urlsplit(uri).scheme.split("+")[0] in _PORTS:
                _check_address(uri)
            connect(uri)
    except (OSError, sqlite3.Error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise PreflightError(f"tracking {mask(uri)}: cannot be used: {mask(said, uri)}") from error


def check_readable(uri: str) -> None:
    """Raise PreflightError within seconds if nothing answers at `uri`; for commands that only read."""
    place, parts = mask(uri), urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if (file := sqlite_file(uri)) is not None:
        if not file.is_file():
            raise PreflightError(
                f"tracking {place}: the database no longer exists; if it was moved, give its new place: --tracking-uri"
            )
    elif scheme in ("http", "https"):
        _check_http(uri, place)
    elif scheme in _PORTS:
        try:
            _check_address(uri)
        except OSError as error:
            raise PreflightError(f"tracking {place}: the server does not answer ({mask(str(error), uri)})") from error
    elif scheme in ("", "file") and not Path(unquote(parts.path)).is_dir():
        raise PreflightError(f"tracking {place}: no such folder")


def _check_writable(path: Path) -> None:
    """Raise OSError or sqlite3.Error unless the database can be written, or created if it does not exist."""
    if path.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=4)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                database.execute(f"PRAGMA user_version = {version}")  # BEGIN succeeds on a file that is read-only
                database.rollback()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):  # another process is writing to it, so it works
                    raise
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_address(uri: str) -> None:
    """Raise OSError if nothing listens at a database's host and port. Sockets of other kinds are not tried."""
    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or _PORTS[parts.scheme.split("+")[0]]
        socket.create_connection((parts.hostname, port), timeout=min(4.0, ANSWER_WITHIN)).close()


def _check_http(uri: str, place: str) -> None:
    """Raise PreflightError if nothing answers. Any HTTP status counts as an answer, 401 and 404 too: MLflow's client
    reports those."""
    begin = time.monotonic()
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        if "CERTIFICATE" in str(error):
            return
        waited = f"{time.monotonic() - begin:.0f} s"
        reason = mask(str(getattr(error, "reason", None) or error), uri)
        raise PreflightError(f"tracking {place}: the server does not answer ({reason}; {waited})") from error
    except Exception as error:  # http.client raises its own errors for an invalid address
        raise PreflightError(f"tracking {place}: {one_line(error, uri=uri)}") from error


# --- a client --------------------------------------------------------------------------------------------------------


def connect(uri: str) -> MlflowClient:
    """Return a client that may write, once its store has answered; raise PreflightError with one line, within about
    ten seconds over http. A SQLite database that does not exist is created, whole or not at all."""
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    with preflight(uri), _alone(uri):
        client_class = _client_class()
        _create_database(uri, client_class)
        quicken(uri)
        client = client_class(tracking_uri=uri)
        client.search_experiments(max_results=1)
        gather(uri)
        return client


def open_reader(uri: str) -> MlflowClient:
    """Return a client that reads, once something answers at `uri`; raise PreflightError with one line, within seconds,
    if nothing does."""
    check_readable(uri)
    with reading(uri):
        return _client_class()(tracking_uri=uri)


def _client_class() -> type[MlflowClient]:
    telemetry.disable()
    for kind in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind, module=_THEIR_MODULES)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # would print what it raises, too
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient


def _create_database(uri: str, client_class: type[MlflowClient]) -> None:
    """Create a SQLite database under a temporary name and rename it: MLflow creates its tables one by one, and if it is
    stopped half-way (a full disk, a kill), every later start fails."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(file)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        client_class(tracking_uri=sqlite_uri(aside)).search_experiments(max_results=1)
        if aside.exists():
            aside.rename(file)
    finally:
        _remove_left_overs(file)


def _remove_left_overs(file: Path) -> None:
    for path in file.parent.glob(f".{file.name}.*.tmp*"):
        _remove(path)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock, so that one process at a time opens the database: MLflow creates the tables of a SQLite file on
    first open, and if two sweeps do so at once, one fails because a table "already exists"."""
    path = sqlite_file(uri)
    lock = FileLock(path.with_name(f".{path.name}.saebench.lock")) if path else None
    with ExitStack() as stack:
        if lock is not None:
            with suppress(OSError):  # a folder that cannot be written: its database exists already
                lock.acquire(timeout=60)
                stack.callback(lock.release)
                stack.callback(_remove, Path(lock.lock_file))
        yield


def _remove(file: Path) -> None:
    with suppress(OSError):  # another user's, in a folder where only they may remove it
        file.unlink()


# --- patience, and errors in one line --------------------------------------------------------------------------------


@contextmanager
def preflight(uri: str) -> Iterator[None]:
    """Limit MLflow's retries inside the block and turn any error into a one-line PreflightError; restore the
    environment afterwards."""
    with _environment(_PREFLIGHT):
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a driver, a proxy or a plugin may raise any class
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            raise PreflightError(f"tracking {mask(uri)}: {one_line(error, uri=uri)}") from error


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Read with few retries, short waits and no progress bars, unless the user's environment sets these; turn any error
    into a one-line PreflightError."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with _environment({key: value for key, value in _READING.items() if key not in os.environ}):
        try:
            yield
        except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
            raise PreflightError(f"tracking {mask(uri)}: {one_line(error, uri=uri)}") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


_REWORDED = [
    (r"database is locked", "the database is locked: another process is writing to it; try again when it has finished"),
    (r"database or disk is full", "no room left on the disk that holds the database"),
    (r"table \w+ already exists", "the database is half made: an earlier start was cut off while creating its tables; "
     "remove the file and start again"),
    (r"attempt to write a readonly database", "the database is read-only"),
    (r"disk I/O error", "disk I/O error while reading or writing the database"),
    (r"database disk image is malformed|file is not a database", "the file is damaged or not a database"),
    (r"no such table: (\w+)", "the database has no MLflow tables: it is empty or another program's"),
]  # fmt: skip
"""Errors of SQLite (SQLAlchemy surrounds them with SQL) -> the line that is shown instead."""


def one_line(error: BaseException, limit: int = 300, *, uri: str = "") -> str:
    """Return the message of an exception on one line, without secrets."""
    said = " ".join(mask(str(error), uri).split()) or type(error).__name__
    if "Max retries exceeded" in said:  # the rest repeats urllib3's and MLflow's wrappers
        why = re.search(r"Connection refused|timed out|Name or service not known|No route to host|SSLError", said)
        said = f"the server does not answer ({why[0]})" if why else said
    if schemes := re.search(r"Supported URI schemes are: \[(.*?)\]", said):
        known = [name for name in re.findall(r"'([\w-]+)'", schemes[1]) if name != "file"]
        said = f"MLflow knows no such kind of address; it knows {', '.join(known)}"
    if isinstance(error, sqlite3.Error) or "sqlite3." in said or "[SQL:" in said:
        words = next((words for pattern, words in _REWORDED if re.search(pattern, said)), None)
        said = words or said.split(" [SQL:")[0]
    return said if len(said) <= limit else f"{said[: limit - 3]}..."


# --- what exists there -----------------------------------------------------------------------------------------------


def experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment `name`, created if need be. Raises PreflightError for a deleted one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=artifact_root(uri), tags=tags))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process created it just now
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise PreflightError(
            f"tracking {mask(uri)}: the experiment {name!r} is deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}), or give tracking.experiment another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the newest run that has all these tags and is not deleted; None if there is no such run."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return str(found[0].info.run_id) if found else None


def artifacts(client: MlflowClient, run_id: str, uri: str = "") -> Artifacts:
    """Return the repository for a run's artifacts. `uri`: the run's artifact URI if known, which saves the request for
    the whole run that the client would make before the first file."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = uri or client.get_run(run_id).info.artifact_uri
    found: Artifacts = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    return found


def alive(client: MlflowClient, run_id: str) -> bool:
    """Return whether the run exists and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_lasting(error):
            return False
        raise


_LASTING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""Without the bare statuses 404 and 400: a proxy sends those while the server behind it restarts."""


def is_lasting(error: BaseException) -> bool:
    """Return whether the same request would fail again: True if the server rejects it, False for an outage."""
    return getattr(error, "error_code", None) in _LASTING
