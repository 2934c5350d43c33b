"""Where MLflow is, whether it answers, and the experiment and runs that are there already."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from filelock import FileLock

from saebench import telemetry
from saebench.errors import PreflightError
from saebench.sweep_config import TrackingConfig
from saebench.tracking.database import file_of, gather, quicken

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PREFLIGHT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
"""MLflow's own are 7 retries of up to 120 s each: about four minutes before a wrong address is reported."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Raised as they are by writing the sweep's own files; what MLflow's writing meets, it says in its own words."""
_OTHERS = r"(mlflow|sqlalchemy|alembic)(\.|$)"
"""Modules whose warnings of what they will change one day are their own affair: `python -W error` would stop here."""
_QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of a logged model: it would tear the live view
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def resolve_uri(tracking: TrackingConfig, folder: Path | None = None) -> str:
    """The absolute URI: the spec's, else MLFLOW_TRACKING_URI, else the database that MLflow itself would make in
    `folder` (null: the working directory), so that a plain `mlflow ui` there shows the sweep.

    Raises PreflightError for a file store: MLflow 3 no longer opens one, and it cannot drop a point sent twice.
    """
    folder = (folder or Path.cwd()).absolute()
    given = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        _refuse_old_store(folder)
        return f"sqlite:///{folder / 'mlflow.db'}"
    scheme = given.split(":", 1)[0] if ":" in given else ""
    if scheme in ("", "file"):
        raise PreflightError(
            f"tracking.uri: {given}: MLflow no longer supports its file store; "
            "give a database (sqlite:///mlflow.db) or a server (http://...)"
        )
    if match := re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/].*)", given):
        return f"{match[1]}{folder / match[2]}"
    return given.rstrip("/") if scheme in ("http", "https") else given


def _refuse_old_store(folder: Path) -> None:
    """Where ./mlruns holds experiments, MLflow's default is that file store, and `mlflow ui` would not show ours."""
    if any((folder / "mlruns").glob("[0-9]*/meta.yaml")):
        raise PreflightError(
            f"{folder / 'mlruns'}: MLflow's default here is this old file store, which it no longer supports; "
            "migrate it (mlflow migrate-filestore), or give tracking.uri (sqlite:///mlflow.db)"
        )


def without_password(uri: str) -> str:
    """`uri` as it may be shown and stored."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", uri)


def check(uri: str) -> None:
    """Find out within seconds, and without making anything, whether `uri` can be used; raises PreflightError in one
    line. MLflow itself tries a database that it cannot open for nearly two minutes, and makes one by looking."""
    try:
        if uri.startswith("sqlite"):
            _check_file(Path(uri.partition(":///")[2].split("?")[0]))
        else:
            if _DATABASE.match(uri):
                _check_address(uri)
            connect(uri)
    except (OSError, sqlite3.Error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise PreflightError(f"tracking {without_password(uri)}: cannot be used: {said}") from error


_DATABASE = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?://")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def _check_file(path: Path) -> None:
    """A database that can be written, or a folder where one can be made; raises OSError or sqlite3.Error."""
    if path.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=4)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                database.execute(f"PRAGMA user_version = {version}")  # BEGIN passes over a file that can only be read
                database.rollback()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):  # somebody writes to it: it is alive
                    raise
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_address(uri: str) -> None:
    """Does anything listen at a database's host and port? Raises OSError. Sockets of other kinds are passed over."""
    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or _PORTS[parts.scheme.split("+")[0]]
        socket.create_connection((parts.hostname, port), timeout=4).close()


def connect(uri: str) -> MlflowClient:
    """A client whose store has answered; raises PreflightError with one line, within about ten seconds over http."""
    telemetry.disable()
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    for kind in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=kind, module=_OTHERS)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with preflight(uri), _alone(uri):
        quicken(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        gather(uri)  # a database that has just been made is whole in its file
        return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time: MLflow makes the tables of a SQLite file when it first looks, and of two sweeps that look
    at once (they waited for the same corpus) one fails on a table that "already exists"."""
    path = file_of(uri)
    lock = FileLock(path.with_name(f".{path.name}.saebench.runs.lock")) if path else None
    with ExitStack() as stack:
        if lock is not None:
            with suppress(OSError):  # a folder that cannot be written: whoever made the file is done
                lock.acquire(timeout=60)
                stack.callback(lock.release)
                stack.callback(_remove, Path(lock.lock_file))
        yield


def _remove(file: Path) -> None:
    with suppress(OSError):  # somebody else's, in a folder where only they may remove it
        file.unlink()


@contextmanager
def preflight(uri: str) -> Iterator[None]:
    """Ask MLflow with little patience, and turn what goes wrong into one line; the environment is restored."""
    with _environment(_PREFLIGHT):
        try:
            yield
        except PreflightError:
            raise
        except Exception as error:  # whatever a driver, a proxy or a plugin raises means: no tracking
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            raise PreflightError(f"tracking {without_password(uri)}: {one_line(error)}") from error


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


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception says, on one line, without passwords."""
    said = " ".join(without_password(str(error)).split()) or type(error).__name__
    if "Max retries exceeded" in said:  # the rest is four layers of urllib3's and MLflow's own words
        why = re.search(r"Connection refused|timed out|Name or service not known|No route to host|SSLError", said)
        said = f"the server does not answer ({why[0]})" if why else said
    if schemes := re.search(r"Supported URI schemes are: \[(.*?)\]", said):
        known = [name for name in re.findall(r"'([\w-]+)'", schemes[1]) if name != "file"]
        said = f"MLflow knows no such kind of address; it knows {', '.join(known)}"
    return said if len(said) <= limit else f"{said[: limit - 3]}..."


def experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment `name`, made if need be. Raises PreflightError when it lies in MLflow's bin."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=_artifacts(uri), tags=tags))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # somebody made it at the same moment
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise PreflightError(
            f"tracking {without_password(uri)}: the experiment {name!r} is deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}), or give tracking.experiment another name"
        )
    return str(found.experiment_id)


def _artifacts(uri: str) -> str | None:
    """Beside a sqlite database in another folder; MLflow alone would put them below the working directory."""
    if not uri.startswith("sqlite") or ":////" not in uri:
        return None
    folder = Path("/" + uri.split(":////", 1)[1].split("?")[0]).parent
    return None if folder == Path.cwd() else (folder / "mlartifacts").as_uri()


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Id of the newest live run that has all these tags."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return str(found[0].info.run_id) if found else None


class Artifacts(Protocol):
    """Where a run's files belong (MLflow's `ArtifactRepository`)."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None: ...
    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None: ...


def artifacts(client: MlflowClient, run_id: str, uri: str = "") -> Artifacts:
    """Where a run's files belong. `uri`: the run's artifact URI where it is known; the client itself would ask for the
    whole run before it stores the first file."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = uri or client.get_run(run_id).info.artifact_uri
    found: Artifacts = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    return found


def alive(client: MlflowClient, run_id: str) -> bool:
    """Is the run there, and not in the bin?"""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_lasting(error):
            return False
        raise


_LASTING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""Not 404 or 400 by themselves: a proxy says those while the server behind it restarts."""


def is_lasting(error: BaseException) -> bool:
    """Would the same request fail again? True for what the server refuses, False for a server in trouble."""
    return getattr(error, "error_code", None) in _LASTING
