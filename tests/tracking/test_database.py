"""A quick SQLite file as MLflow's database: what is committed is there, and what is said to be sent is on the disk."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from saebench.tracking import database
from saebench.tracking.book import Book, Sent


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(database, "_file_system", lambda _: "ext4")
    yield tmp_path / "mlflow.db"
    database._LOGGED.discard(str(tmp_path / "mlflow.db"))


def opened(file: Path) -> sqlalchemy.Engine:
    database.use_log(f"sqlite:///{file}")
    return sqlalchemy.create_engine(f"sqlite:///{file}")


def fill(engine: sqlalchemy.Engine, rows: int = 3) -> None:
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE points (x)"))
    for row in range(rows):
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"INSERT INTO points VALUES ({row})"))


def rows(file: Path) -> int:
    with closing(sqlite3.connect(file)) as own:
        return int(own.execute("SELECT count(*) FROM points").fetchone()[0])


def test_commits_do_not_wait_for_the_disk_and_sync_log_does(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr("os.fsync", lambda fd: waited.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    engine = opened(file)
    fill(engine)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 1
    database.sync_log(f"sqlite:///{file}")
    assert waited == ["mlflow.db-wal"]
    engine.dispose()


def test_a_kill_loses_nothing(file: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from saebench.tracking import database
from saebench.tracking.book import Book, Sent
database._file_system = lambda _: "ext4"
import test_database
test_database.fill(test_database.opened(Path({str(file)!r})), 50)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert rows(file) == 50


def test_after_gather_the_file_alone_is_the_database(file: Path, tmp_path: Path) -> None:
    engine = opened(file)
    fill(engine, 7)
    database.checkpoint_log(f"sqlite:///{file}")
    shutil.copy(file, tmp_path / "copy.db")
    assert rows(tmp_path / "copy.db") == 7
    engine.dispose()


def mode(file: Path) -> str:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as own:
        return str(own.execute("PRAGMA journal_mode").fetchone()[0])


def test_in_the_end_the_file_is_a_plain_one_again_and_still_in_use(file: Path) -> None:
    engine = opened(file)
    fill(engine, 7)
    assert mode(file) == "wal"
    database.restore_journal(f"sqlite:///{file}")
    assert mode(file) == "delete"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with engine.begin() as connection:  # MLflow's engine lives on: it connects again, in the file's own mode
        connection.execute(sqlalchemy.text("INSERT INTO points VALUES (7)"))
    assert (rows(file), mode(file)) == (8, "delete")
    engine.dispose()


def test_a_file_that_another_process_reads_keeps_its_mode_until_the_next_end(file: Path) -> None:
    fill(opened(file), 7)
    with closing(sqlite3.connect(file)) as other:  # as `mlflow ui` has it open
        other.execute("SELECT * FROM points").fetchone()
        database.restore_journal(f"sqlite:///{file}")
        assert (mode(file), rows(file)) == ("wal", 7)
    engine = opened(file)
    engine.connect().close()
    database.restore_journal(f"sqlite:///{file}")
    assert (mode(file), rows(file)) == ("delete", 7)
    engine.dispose()


_READS_ON = """
import sys, threading, time
from pathlib import Path
from sqlalchemy import text
from saebench.tracking import database
sys.path.insert(0, {folder!r})
import test_database
database._file_system = lambda _: "ext4"
file, end = Path({file!r}), time.monotonic() + 3
engine = test_database.opened(file)
test_database.fill(engine, 2000)

def read():
    while time.monotonic() < end:
        with engine.connect() as connection:
            assert len(connection.execute(text("SELECT x FROM points ORDER BY -x")).all()) == 2000

threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
while time.monotonic() < end:
    database.use_log(f"sqlite:///{{file}}")
    database.restore_journal(f"sqlite:///{{file}}")
for thread in threads:
    thread.join()
"""


def test_a_thread_that_reads_meanwhile_reads_on(file: Path) -> None:
    code = _READS_ON.format(folder=str(Path(__file__).parent), file=str(file))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_somebody_holds_and_other_databases_stay_as_they_are(file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE held (x)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM held").fetchall()
        database.use_log(f"sqlite:///{file}")
        engine = sqlalchemy.create_engine(f"sqlite:///{file}", connect_args={"timeout": 0.1})
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "delete"
            assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 2
        engine.dispose()
    elsewhere = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    fill(elsewhere)
    with elsewhere.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "delete"
    elsewhere.dispose()


def test_a_disk_that_machines_may_share_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_file_system", lambda _: "nfs4")
    engine = opened(file)
    fill(engine)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "delete"
    database.sync_log(f"sqlite:///{file}")
    database.checkpoint_log(f"sqlite:///{file}")
    engine.dispose()


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        def __init__(self, mountpoint: Path, fstype: str) -> None:
            self.mountpoint, self.fstype = str(mountpoint), fstype

    parts = [Part(Path("/"), "ext4"), Part(tmp_path, "NFS4"), Part(tmp_path / "in", "xfs")]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: parts)
    assert database._file_system(tmp_path / "runs" / "mlflow.db") == "nfs4"
    assert database._file_system(tmp_path / "in" / "mlflow.db") == "xfs"


def test_what_the_book_says_was_sent_is_on_the_disk_before(tmp_path: Path) -> None:
    book, path = Book("sqlite:////x"), tmp_path / "tracking.json"
    seen: list[bool] = []
    book.trials[0] = Sent(offset=7)
    book.save(path, lambda: seen.append(path.exists()), now=True)
    assert seen == [False]
    assert Book.open(path, "sqlite:////x").trials == {0: Sent(offset=7)}
    book.save(path, lambda: seen.append(True))
    assert seen == [False], "once a second is enough"

    def full() -> None:
        raise OSError("disk")

    book.trials[0].offset = 8
    with pytest.raises(OSError, match="disk"):
        book.save(path, full, now=True)
    assert Book.open(path, "sqlite:////x").trials == {0: Sent(offset=7)}
