"""Addresses of MLflow: which one a sweep uses, the file behind a SQLite address, how an address is stored."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from saebench.errors import PreflightError
from saebench.runs.secrets import is_masked, mask
from saebench.sweep_config import TrackingConfig

DATABASE = "mlflow.db"
"""The file that MLflow creates in the working directory if no address is given."""
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?")


# --- the file behind an address --------------------------------------------------------------------------------------


def sqlite_uri(file: Path) -> str:
    """Return the address of a SQLite database, as the SQLAlchemy that is installed reads it (percent signs are an
    escape from 2.1 on)."""
    path = str(file)
    if re.search("[%?]", path):
        quoted = path.replace("%", "%25").replace("?", "%3F")
        if sqlite_file(f"sqlite:///{quoted}") == file:
            path = quoted
        elif "?" in path:
            raise PreflightError(f"{file}: a database's path cannot hold a question mark; use another folder")
    return f"sqlite:///{path}"


def sqlite_file(uri: str) -> Path | None:
    """Return the database's file; None for servers and databases of another kind, and for one in memory."""
    match = _SQLITE.fullmatch(uri)
    if match is None or match[2].startswith((":memory:", "file:")):
        return None
    if "%" not in match[2]:
        return Path(match[2])
    from sqlalchemy import make_url

    return Path(make_url(uri).database or match[2])


def artifact_root(uri: str) -> str | None:
    """Return where the artifacts of a new experiment belong: beside a SQLite database that is not in the working
    directory; None leaves it to MLflow, which would not quote a percent sign in the working directory's name."""
    file = sqlite_file(uri)
    if file is None:
        return None
    folder = file.absolute().parent
    if folder == Path.cwd():
        return (folder / "mlruns").as_uri() if "%" in str(folder) else None
    return (folder / "mlartifacts").as_uri()


# --- the address of a sweep ------------------------------------------------------------------------------------------


def resolve_uri(tracking: TrackingConfig, folder: Path | None = None) -> str:
    """Return the absolute address: the spec's, else MLFLOW_TRACKING_URI, else the database that MLflow itself would
    make in `folder` (None: the working directory), so that a plain `mlflow ui` there shows the sweep.

    Raises PreflightError for a file store: MLflow 3 no longer opens one, and it cannot drop a point sent twice.
    """
    folder = (folder or Path.cwd()).absolute()
    given = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        _refuse_file_store(folder)
        return sqlite_uri(folder / DATABASE)
    scheme = given.split(":", 1)[0] if ":" in given else ""
    if scheme in ("", "file"):
        raise PreflightError(
            f"tracking.uri: {mask(given)}: MLflow no longer supports its file store; "
            f"give a database (sqlite:///{DATABASE}) or a server (http://...)"
        )
    match = _SQLITE.fullmatch(given)
    if match and (file := sqlite_file(given)) and not file.is_absolute():
        return f"{match[1]}{sqlite_uri(folder / file).removeprefix('sqlite:///')}{match[3] or ''}"
    return given.rstrip("/") if scheme in ("http", "https") else given


def _refuse_file_store(folder: Path) -> None:
    """Raise PreflightError if ./mlruns holds experiments: MLflow would default to that file store, and `mlflow ui`
    would not show this sweep."""
    if any((folder / "mlruns").glob("[0-9]*/meta.yaml")):
        raise PreflightError(
            f"{folder / 'mlruns'}: MLflow's default here is this old file store, which it no longer supports; "
            f"migrate it (mlflow migrate-filestore), or give tracking.uri (sqlite:///{DATABASE})"
        )


def start_uri(
    tracking: TrackingConfig,
    before: str | None,
    note: Callable[[str], None],
    root: Path | None = None,
    run_id: str = "",
) -> str:
    """Return the address that this start of a sweep uses: the spec's; without one, `before`, the address that the sweep
    began with; without that, the one from the environment or the working directory.

    A database that was moved with the sweep's folder (`root`, parent run `run_id`) is found there. A `before` whose
    secret was not stored, or whose file no longer exists, is not used. `note` is called with a line for the user if
    the address is not the one that this start would have resolved to.
    """
    uri = resolve_uri(tracking)
    shown = mask(uri)
    if tracking.uri or not before or before == shown or is_masked(before):
        return uri
    file = sqlite_file(before)
    if file is not None and not file.exists():
        moved = moved_database(file, root, run_id) if root else None
        if moved is not None:
            note(f"tracking: {file} has moved with this sweep to {moved}")
            return sqlite_uri(moved)
        note(f"tracking continues at {shown}: {file}, where this sweep began, no longer exists")
        return uri
    note(f"tracking stays at {before}, where this sweep began")
    return before


def moved_database(file: Path, root: Path, run_id: str) -> Path | None:
    """Return the database that lay at `file` when the sweep in `root` began and has been moved together with it: the
    nearest file of that name, or of the last parts of that path, above `root` that holds the run."""
    parts = file.parts[1:]
    for folder in root.absolute().parents:
        for count in range(1, len(parts) + 1):
            candidate = folder.joinpath(*parts[-count:])
            if candidate.is_file() and _holds(candidate, run_id):
                return candidate
    return None


def _holds(file: Path, run_id: str) -> bool:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as database:
            return database.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


# --- an address that was stored --------------------------------------------------------------------------------------


def unmasked(uri: str) -> str:
    """Return a stored address with its secret, which is not stored: MLFLOW_TRACKING_URI must hold the same address."""
    if not is_masked(uri):
        return uri
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if mask(given) != uri:
        raise PreflightError(
            f"tracking {uri}: passwords and tokens are not stored; set MLFLOW_TRACKING_URI to the whole address"
        )
    return given
