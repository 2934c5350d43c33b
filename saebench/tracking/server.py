"""Open MLflow: a client for an address, once its store has answered."""

from __future__ import annotations

import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from saebench import telemetry
from saebench.errors import PreflightError
from saebench.runs.durable import temporary_name
from saebench.runs.secrets import mask
from saebench.tracking.address import sqlite_file, sqlite_uri
from saebench.tracking.database import checkpoint_log, use_log
from saebench.tracking.mlflow_errors import QUIET_ENVIRONMENT, preflight, reading
from saebench.tracking.reachable import PORTS, check_address, check_readable, check_writable

if TYPE_CHECKING:
    from mlflow import MlflowClient

_THEIR_MODULES = r"(mlflow|sqlalchemy|alembic)(\.|$)"
"""Their DeprecationWarnings concern their own code; under `python -W error` they would stop this program."""


def check(uri: str) -> None:
    """Find out within seconds, and without creating anything, whether a sweep can record to `uri`; raise PreflightError
    in one line if not. MLflow itself tries a database that it cannot open for nearly two minutes."""
    try:
        if (file := sqlite_file(uri)) is not None:
            check_writable(file)
        else:
            if urlsplit(uri).scheme.split("+")[0] in PORTS:
                check_address(uri)
            connect(uri)
    except (OSError, sqlite3.Error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise PreflightError(f"tracking {mask(uri)}: cannot be used: {mask(said, uri)}") from error


def connect(uri: str) -> MlflowClient:
    """Return a client that may write, once its store has answered; raise PreflightError with one line, within about
    ten seconds over http. A SQLite database that does not exist is created, whole or not at all."""
    os.environ.update({key: value for key, value in QUIET_ENVIRONMENT.items() if key not in os.environ})
    with preflight(uri), _open_lock(uri):
        client_class = _client_class()
        _create_database(uri, client_class)
        use_log(uri)
        client = client_class(tracking_uri=uri)
        client.search_experiments(max_results=1)
        checkpoint_log(uri)
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
    aside = temporary_name(file)
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
def _open_lock(uri: str) -> Iterator[None]:
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
