"""Optuna's journal in a table of a real PostgreSQL: restarted under a sweep, fenced, and without secrets anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from leaks import CommandLines, files_with
from postgres import PASSWORD, Postgres

from saebench.config import TrialConfig
from saebench.errors import LockedError, PreflightError, StorageLostError
from saebench.plan import Plan, make_plan
from saebench.runs.events import Verdict
from saebench.spec import parse_spec
from saebench.study import Search
from saebench.study.database import Database
from saebench.study.table import copy_to_file


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = Postgres()
    yield found
    found.remove()


def plan(name: str, pruner: str = "asha") -> Plan:
    values: dict[str, Any] = {
        "name": name,
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": [16, 64], "dict_size": 256}],
        "train": {"samples": 20_000, "batch_size": 128, "lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "seeds": [0],
        "search": {"sampler": "tpe", "points": 12, "refine": 0},
        "prune": {"pruner": pruner},
    }
    return make_plan(parse_spec(values), 384)


def play(search: Search, disturb: Callable[[int], None] = lambda _: None) -> list[tuple[int, float | None, str]]:
    """Run a search to its end, three trials at once: number, lr and end of each."""
    ends: list[tuple[int, float | None, str]] = []
    while configs := [config for _ in range(3) if (config := search.ask()) is not None]:
        search.commit()
        for config in configs:
            disturb(config.number)
            ends.append((config.number, config.train.lr, train(search, config)))
    search.commit()
    return ends


def train(search: Search, config: TrialConfig) -> str:
    value = abs((config.train.lr or 0) - 0.003) * 100
    for samples in range(1000, 20_001, 1000):
        decision = search.report(config.number, samples, {"eval/fvu": value * (1 + 1000 / samples)})
        search.commit()
        if decision.verdict == Verdict.PRUNE:
            search.tell(config.number, "pruned", {"eval/fvu": value}, None, {"verdict": "prune", **decision.numbers})
            return "pruned"
    search.tell(config.number, "complete", {"eval/fvu": value})
    return "complete"


def test_a_restart_of_the_server_loses_and_doubles_nothing(postgres: Postgres, tmp_path: Path) -> None:
    made, notes = plan("restarted"), list[str]()
    expected = play(Search(made, tmp_path / "journal"))
    assert {end for _, _, end in expected} == {"pruned", "complete"}
    search = Search(made, Database(postgres.uri(), "restarted", note=notes.append))
    assert play(search, lambda number: postgres.restart() if number in (4, 13) else None) == expected
    search.close()
    assert sum("waiting for it up to 60 s" in note for note in notes) == 2
    assert notes.count("search.storage: the database is back") == 2
    [(rows, last)] = postgres.rows("SELECT count(*), max(n) FROM saebench_journal WHERE sweep = 'restarted'")
    assert rows == int(str(last)) + 1, "numbered without a gap"
    with Database(postgres.uri(), "restarted") as database:
        again = Search(made, database)
        assert again.counts() == {"planned": 0, "running": 0, "pruned": sum(e == "pruned" for *_, e in expected),
                                  "complete": sum(e == "complete" for *_, e in expected), "failed": 0}  # fmt: skip
        copy_to_file(database, tmp_path / "copy")
    kept, there = (
        {
            (study, trial.number, trial.state, tuple(trial.params.items()), tuple(trial.intermediate_values.items()))
            for storage in [optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))]
            for study in optuna.get_all_study_names(storage)
            for trial in optuna.load_study(study_name=study, storage=storage).trials
        }
        for path in (tmp_path / "journal", tmp_path / "copy")
    )
    assert kept == there


def test_a_lost_answer_is_no_second_record(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction was committed, and the connection broke before that was heard."""
    import psycopg2

    database = Database(postgres.uri(), "answer", patience=5)
    search, once = Search(plan("answer"), database), database._once
    lost = iter([True])

    def lossy(work: Any) -> Any:
        found = once(work)
        if next(lost, False):
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        return found

    monkeypatch.setattr(database, "_once", lossy)
    config = search.ask()
    assert config is not None
    search.commit()
    search.close()
    with Database(postgres.uri(), "answer") as again:
        assert Search(plan("answer"), again).running() == [config]


def test_a_second_scheduler_is_refused_and_a_late_one_is_fenced(postgres: Postgres) -> None:
    first = Database(postgres.uri(), "fenced", patience=2)
    search = Search(plan("fenced"), first)
    with pytest.raises(LockedError, match=rf"another scheduler holds the sweep fenced: saebench .*:{os.getpid()} "):
        Database(postgres.uri(), "fenced")
    Database(postgres.uri(), "another").close()
    sleeper = first._connection  # its machine stops; the server gives the session up, and the lock with it
    assert sleeper is not None
    postgres.rows(f"SELECT pg_terminate_backend({sleeper.get_backend_pid()})")
    second = Database(postgres.uri(), "fenced")
    successor = Search(plan("fenced"), second)
    assert search.ask() is not None
    with pytest.raises(LockedError, match="another scheduler holds the sweep fenced"):
        search.commit()
    second.close()
    with pytest.raises(LockedError, match="has taken over the sweep fenced meanwhile; this one stops"):
        search.commit()  # the successor has ended by now, but it has opened the journal in between
    assert successor.numbers() == []
    with Database(postgres.uri(), "fenced") as third:
        assert Search(plan("fenced"), third).numbers() == [], "nothing of the late one was written"


def test_patience_ends_with_one_line_and_at_once_when_somebody_is_in_a_hurry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, asked = Postgres(), False
    try:
        database = Database(own.uri(), "gone", patience=1.5, hurried=lambda: asked)
        search = Search(plan("gone"), database)
        own.stop()
        assert search.ask() is not None
        begun = time.monotonic()
        with pytest.raises(
            StorageLostError, match=r"^search.storage: postgresql://saebench:\*\*\*@127.0.0.1"
        ) as caught:
            search.commit()
        assert time.monotonic() - begun >= 1.5
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        asked, tried, once = True, [], database._once
        monkeypatch.setattr(database, "_once", lambda work: (tried.append(work), once(work)))
        with pytest.raises(StorageLostError):
            search.commit()
        assert len(tried) == 1, "nothing is waited for"
    finally:
        own.remove()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"user": "nobody-here"}, "password authentication failed"),
        ({"database": "none"}, 'database "none" does not exist'),
    ],
    ids=lambda value: str(value),
)
def test_what_is_wrong_with_an_address_is_one_line(postgres: Postgres, change: dict[str, str], said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(PreflightError, match=said) as caught:
        Database(postgres.uri(**change), "x")
    assert time.monotonic() - begun < 10
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_addresses_that_no_postgresql_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    with pytest.raises(PreflightError, match="Connection refused"):
        Database("postgresql://u@127.0.0.1:9/d", "x")
    with pytest.raises(PreflightError, match=r"mysql://u:\*\*\*@h/d: is not the address of a PostgreSQL"):
        Database("mysql://u:pw@h/d", "x")
    for name in ("SAEBENCH_DB_PASSWORD_FILE", "PGPASSFILE", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PreflightError, match="its password is not stored; set SAEBENCH_DB_PASSWORD_FILE or PGPASSFILE"):
        Database("postgresql://u:***@h/d", "x")
    monkeypatch.setenv("SAEBENCH_DB_PASSWORD_FILE", "/nowhere/password")
    with pytest.raises(PreflightError, match="SAEBENCH_DB_PASSWORD_FILE=/nowhere/password: cannot be read"):
        Database("postgresql://u:***@h/d", "x")


def test_the_password_comes_from_a_file(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    monkeypatch.setenv("SAEBENCH_DB_PASSWORD_FILE", str(file))
    Database(postgres.uri(password=None), "by-file").close()
    Database(postgres.uri("***").replace("postgresql:", "postgresql+psycopg2:"), "by-file").close()
    monkeypatch.delenv("SAEBENCH_DB_PASSWORD_FILE")
    passes = tmp_path / "pgpass"
    passes.write_text(f"127.0.0.1:{postgres.port}:*:saebench:{PASSWORD}\n")
    passes.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passes))
    Database(postgres.uri("***"), "by-pgpass").close()


def test_a_damaged_table_is_set_aside(postgres: Postgres) -> None:
    with Database(postgres.uri(), "damaged") as database:
        search = Search(plan("damaged"), database)
        assert search.ask() is not None
        search.commit()
    record = json.dumps({"op_code": 4, "worker_id": "x"})
    with Database(postgres.uri(), "damaged") as database:
        change = f"UPDATE saebench_journal SET record = '{record}' WHERE sweep = 'damaged' AND n = 1"
        database.transact(lambda at: at.execute(change))
        assert Search(plan("damaged"), database).numbers() == []
    [(count,)] = postgres.rows(
        "SELECT count(DISTINCT sweep) FROM saebench_journal WHERE sweep LIKE 'damaged.damaged-%'"
    )
    assert count == 1


SCRIPT = """
import sys
from saebench import run_sweep
import json
print(run_sweep(json.load(open(sys.argv[1])), target="sweep_toys:train", runs_dir=sys.argv[2]).exit_code)
"""


@pytest.mark.slow
def test_a_sweep_whose_database_restarts_and_whose_scheduler_is_killed(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: the password, which stands in the spec, is in no file of the sweep or of MLflow's, no log and no
    command line; nothing is lost, nothing doubled."""
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(tests).parent), tests]))
    monkeypatch.setenv("TOY_STEP", "0.03")
    spec = {
        "name": "whole",
        "data": {
            "model": "all-MiniLM-L6-v2", "dataset": {"path": "text", "data_files": __file__}, "num_examples": 1000,
            "cache": False,
        },
        "sae": [{"type": "topk", "k": [4, 8], "dict_size": 64}],
        "train": {"samples": 400, "batch_size": 10, "eval_every": 100, "lr": 0.01},
        "seeds": [0, 1],
        "prune": {"pruner": "none"},
        "run": {"devices": "cpu", "per_device": 2},
        "search": {"storage": postgres.uri()},
    }  # fmt: skip
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-c", SCRIPT, str(file), str(tmp_path / "runs")]
    root = tmp_path / "runs" / "whole"

    def run() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait(evaluations: int) -> None:
        until = time.monotonic() + 90
        while sum(p.read_text().count('"eval"') for p in root.glob("trials/*/events.jsonl")) < evaluations:
            assert time.monotonic() < until
            time.sleep(0.02)

    with CommandLines(PASSWORD[-6:]) as command_lines:
        process = run()
        wait(2)
        postgres.restart()
        wait(5)
        process.send_signal(signal.SIGSTOP)  # so that it is still there when the second has started
        assert "another scheduler holds this sweep" in run().communicate(timeout=90)[0]
        process.kill()
        process.communicate()
        output, _ = run().communicate(timeout=120)
    assert output.splitlines()[-1] == "0", output
    log = (root / "scheduler.log").read_text()
    assert "the database is back" in log
    with Database(postgres.uri(), "whole") as database:
        search = Search(make_plan(parse_spec(spec), 384), database)
        assert search.numbers() == [0, 1, 2, 3]
        assert search.counts()["complete"] == 4
    assert (root / "optuna.journal").is_file(), "a copy, for dashboards and the report"
    assert (tmp_path / "mlflow.db").is_file()
    assert files_with(tmp_path, PASSWORD[-6:], file) == [], "whichever way the rest of it is quoted"
    assert PASSWORD[-6:] not in output
    assert command_lines.seen == set()
