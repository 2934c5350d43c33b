"""The address that a start of a sweep uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench.sweep_config import TrackingConfig
from saebench.tracking.address import sqlite_file, sqlite_uri, start_uri


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def chosen(uri: str | None, before: str | None) -> tuple[str, list[str]]:
    said: list[str] = []
    return start_uri(TrackingConfig(uri=uri), before, said.append), said


def test_a_first_start_takes_what_the_spec_resolves_to(tmp_path: Path) -> None:
    assert chosen(None, None) == (f"sqlite:///{tmp_path}/mlflow.db", [])
    assert chosen("http://a:1", None) == ("http://a:1", [])


def test_a_sweep_stays_where_it_began_unless_its_spec_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "old.db").touch()
    old = f"sqlite:///{tmp_path}/old.db"
    assert chosen(None, old) == (old, [f"tracking stays at {old}, where this sweep began"])
    assert chosen("http://a:1", old) == ("http://a:1", [])
    assert chosen(None, f"sqlite:///{tmp_path}/mlflow.db") == (f"sqlite:///{tmp_path}/mlflow.db", [])


def test_a_file_that_is_gone_or_an_address_whose_password_is_not_kept_is_not_gone_back_to(tmp_path: Path) -> None:
    here = f"sqlite:///{tmp_path}/mlflow.db"
    gone = tmp_path / "gone.db"
    assert chosen(None, f"sqlite:///{gone}") == (
        here,
        [f"tracking continues at {here}: {gone}, where this sweep began, no longer exists"],
    )
    assert chosen(None, "postgresql://me:***@host/db") == (here, [])


@pytest.mark.parametrize("name", ["my p", "my%20p", "feature%2Fx", "a#b", "ü", "100%", "a+b"])
def test_a_folder_with_any_name_is_found_under_its_address(name: str, tmp_path: Path) -> None:
    """SQLAlchemy decodes percent signs from 2.1 on: the record went into the sibling folder `my p`, or nowhere."""
    from sqlalchemy import create_engine, text

    folder = tmp_path / name
    folder.mkdir()
    uri = sqlite_uri(folder / "mlflow.db")
    assert sqlite_file(uri) == folder / "mlflow.db"
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "mlflow.db").exists()


def test_only_files_are_files() -> None:
    assert sqlite_file("sqlite:////a/b.db") == Path("/a/b.db")
    assert sqlite_file("sqlite+pysqlite:////a/b.db?timeout=3") == Path("/a/b.db")
    assert sqlite_file("sqlite:///b.db") == Path("b.db")
    for other in ("sqlite://", "sqlite:///:memory:", "postgresql://u:p@h/db", "http://h:5000"):
        assert sqlite_file(other) is None
