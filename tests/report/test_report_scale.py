"""What a trial more costs a report: counted in calls of functions and in bytes, which every machine has the same."""

from __future__ import annotations

import cProfile
import io
import math
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import pytest
import sweep_data
from rich.console import Console
from sweep_data import Store, simulate

from saebench.report import load, sqlite_runs
from saebench.report.read import _plain, read
from saebench.report.screen import screen
from saebench.report.sources import Source, find, pages
from saebench.report.wire import Run
from saebench.tracking.server import open_reader

FEW, MANY = 100, 300
"""Points per arm, of which the first alone has several seeds."""


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[int, Path]:
    """Points per arm -> runs directory with such a sweep of two arms."""
    made = {}
    for points in (FEW, MANY):
        folder = tmp_path_factory.mktemp(f"points{points}")
        shutil.copy(empty_database, folder / "mlflow.db")
        trials = simulate(levels=(16,), widths=(1536,), points=points)
        sweep_data.log_many(folder / "mlflow.db", trials, folder / "runs")
        made[points] = folder / "runs"
    return made


def per_trial(cost: dict[int, float]) -> float:
    return (cost[MANY] - cost[FEW]) / (2 * (MANY - FEW))


def test_a_trial_more_costs_best_and_report_a_bounded_number_of_calls(sweeps: dict[int, Path]) -> None:
    """Ten thousand trials took 6,500 calls each: an object of SQLAlchemy's per tag, param and metric, and a search of
    all trials per point."""
    cost = {}
    for points, runs in sweeps.items():
        profile = cProfile.Profile()
        profile.enable()
        report = load("demo", runs_dir=runs)
        report.table("best")
        screen(report, Console(file=io.StringIO(), width=100), 40)
        profile.disable()
        assert len(report.frame) == 2 * (points + 2)
        cost[points] = float(sum(entry.callcount for entry in profile.getstats()))
    assert per_trial(cost) < 1500


def test_a_trial_more_takes_a_bounded_number_of_bytes(sweeps: dict[int, Path]) -> None:
    cost = {}
    for points, runs in sweeps.items():
        sources = find(["demo"], runs)
        tracemalloc.start()
        read(sources)
        cost[points] = float(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert per_trial(cost) < 20_000


def by_client(source: Source) -> list[Run]:
    """The runs as MLflow's own client finds them."""
    wanted = f"tags.`mlflow.parentRunId` = '{source.run_id}'"
    search = open_reader(source.uri).search_runs
    return [_plain(run) for run in pages(search, experiment_ids=[source.experiment_id], filter_string=wanted)]


def shown(runs: list[Run]) -> list[str]:
    """repr, in which NaN is equal to itself."""
    return [repr(run._replace(tags=dict(sorted(run.tags.items())), params=dict(sorted(run.params.items())),
                              metrics=dict(sorted(run.metrics.items())))) for run in runs]  # fmt: skip


def test_the_database_is_read_as_mlflow_reads_it(store: Store, tmp_path: Path) -> None:
    """Deleted runs, NaN, infinity, tags without a value, other sweeps, equal start times."""
    (source,) = find(["demo"], store.runs)
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as before, sqlite3.connect(file) as database:
        before.backup(database)
        trials = """
            SELECT m.run_uuid FROM latest_metrics m JOIN tags t ON t.run_uuid = m.run_uuid
            WHERE t.key = 'mlflow.parentRunId' AND t.value = ? GROUP BY m.run_uuid ORDER BY count(*) DESC
        """
        ids = [run for (run,) in database.execute(trials, [source.run_id])]
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", ids[:1])
        database.execute("UPDATE latest_metrics SET is_nan = 1, value = 0 WHERE run_uuid = ?", ids[1:2])
        database.execute("UPDATE latest_metrics SET value = 1.7976931348623157e308 WHERE run_uuid = ?", ids[2:3])
        database.execute("DELETE FROM tags WHERE key = 'mlflow.parentRunId' AND run_uuid = ?", ids[3:4])
        database.execute("DELETE FROM params WHERE run_uuid = ?", ids[4:5])
        database.execute("UPDATE runs SET end_time = NULL, status = 'RUNNING' WHERE run_uuid = ?", ids[5:6])
        database.execute("UPDATE runs SET start_time = 7 WHERE run_uuid IN (?, ?)", ids[6:8])
    database.close()
    before.close()
    moved = Source(source.name, f"sqlite:///{file}", source.experiment_id, source.run_id)
    found, expected = list(sqlite_runs.runs(file, source.experiment_id, source.run_id)), by_client(moved)
    assert len(found) == len(store.trials) - 2
    assert shown(found) == shown(expected)
    assert sum(math.isnan(value) for run in found for value in run.metrics.values()) > 3


def test_a_database_of_another_shape_is_left_to_mlflow(
    sweeps: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = load("demo", runs_dir=sweeps[FEW]).frame
    monkeypatch.setattr(sqlite_runs, "_TAGS", "SELECT a FROM table_of_a_later_mlflow")
    assert load("demo", runs_dir=sweeps[FEW]).frame.equals(fast)
