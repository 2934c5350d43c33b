"""Whether tracking can be used, found out before anything is encoded: in one line, within seconds, making nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from saebench.errors import PreflightError
from saebench.tracking.server import check, connect


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("sqlite:///{}/file/mlflow.db", "Not a directory"),
        ("sqlite:///{}/file/deeper/mlflow.db", "Not a directory"),
        ("sqlite:///{}/file", "file is not a database"),
        ("sqlite:///{}", "unable to open database file"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow", "Connection refused"),
        ("mysql://127.0.0.1:1/mlflow", "Connection refused"),
        ("http://127.0.0.1:1", "the server does not answer (Connection refused)"),
        ("nothing://here", "MLflow does not support such an address; it supports databricks, "),
    ],
)
def test_what_cannot_be_used_is_said_at_once(uri: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, and long enough to be taken for one" * 10)
    started = time.monotonic()
    with pytest.raises(PreflightError) as error:
        check(uri.format(tmp_path))
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert time.monotonic() - started < 20, "MLflow's import and its own retries included"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_database_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_database_that_somebody_writes_to_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, connect = tmp_path / "mlflow.db", sqlite3.connect
    monkeypatch.setattr("sqlite3.connect", lambda *args, **options: connect(*args, **{**options, "timeout": 0.1}))
    writer = connect(file)
    writer.execute("CREATE TABLE t (x)")
    writer.execute("BEGIN IMMEDIATE")
    check(f"sqlite:///{file}")
    writer.close()


def test_a_database_that_can_only_be_read_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colleague's file. SQLite opens it all the same, and begins a transaction in it."""
    file, connect = tmp_path / "mlflow.db", sqlite3.connect
    made = connect(file)
    made.execute("CREATE TABLE t (x)")
    made.close()
    check(f"sqlite:///{file}")
    monkeypatch.setattr("sqlite3.connect", lambda file, **options: connect(file.replace("=rw", "=ro"), **options))
    with pytest.raises(PreflightError, match=r"mlflow.db: cannot be used: attempt to write a readonly database"):
        check(f"sqlite:///{file}")


def test_two_sweeps_that_start_at_once_do_not_make_the_tables_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most: list[int] = []

    class SlowClient:
        """MLflow's, where the tables are not there yet."""

        def __init__(self, tracking_uri: str) -> None:  # noqa: ARG002 - what MLflow calls it
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

        def search_experiments(self, max_results: int) -> list[object]:
            return [None] * max_results

    monkeypatch.setattr("mlflow.MlflowClient", SlowClient)
    threads = [threading.Thread(target=connect, args=(f"sqlite:///{tmp_path}/mlflow.db",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert [path.name for path in tmp_path.iterdir() if "lock" in path.name] == []


def test_a_lock_that_cannot_be_removed_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder for everybody, where another user made it."""

    def refuses(_: Path, missing_ok: bool = False) -> None:
        raise PermissionError(f"Operation not permitted, {missing_ok}")

    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: SimpleNamespace(search_experiments=lambda **_: []))
    monkeypatch.setattr(Path, "unlink", refuses)
    assert connect(f"sqlite:///{tmp_path}/mlflow.db").search_experiments() == []


def test_what_mlflow_is_warned_of_is_no_error_of_ours(tmp_path: Path) -> None:
    code = f"from saebench.tracking.server import connect; connect('sqlite:///{tmp_path}/mlflow.db')"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
