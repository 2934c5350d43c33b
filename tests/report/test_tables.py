"""The tables: their numbers, and that none hides its survivors."""

from __future__ import annotations

import math

import pytest
from sweep_data import frame_of, simulate, with_state

from saebench.report import TABLES, columns
from saebench.report.document import Report, keep
from saebench.report.record import Record
from saebench.report.tables import on_front


def report_of(trials, where=()) -> Report:
    """A report of trials that lie in no store."""
    return Report(Record(frame_of(trials)), where)


@pytest.fixture(scope="module")
def report() -> Report:
    trials = simulate(points=3)
    trials[4] = with_state(trials[4], "failed", "cuda_oom")
    return report_of(trials)


def test_strata_give_mean_std_and_interval_over_the_seeds_of_the_best_point(report: Report) -> None:
    row = report.table("strata").frame.iloc[0]
    values = report.frame[(report.frame["stratum"] == "topk-k16-n1536") & (report.frame["point"] == "p0")]["eval/fvu"]
    assert row["fvu"] == pytest.approx(values.mean())
    assert row["fvu_std"] == pytest.approx(values.std())
    assert row["fvu_high"] - row["fvu"] == pytest.approx(4.302653 * values.std() / math.sqrt(3))  # t(2) at 97.5%
    assert (row["seeds"], row["complete"], row["pruned"], row["failed"]) == (3, 4, 0, 1)


def test_counts_stand_beside_every_cell(report: Report) -> None:
    for name in ("strata", "pareto", "best", "seeds", "effects"):
        frame = report.table(name).frame
        assert len(frame), name
        assert {"complete", "pruned", "failed", "unfinished"} <= set(frame.columns), name
    arms = report.table("arms").frame
    assert set(arms["trials_a"]) | set(arms["trials_b"]) == {"4/1/0", "4/0/1"}
    assert report.table("strata").frame[["complete", "pruned", "failed", "unfinished"]].sum().sum() == len(report.frame)


def test_arms_side_by_side_are_the_paired_difference(report: Report) -> None:
    row = report.table("arms").frame.iloc[0]
    assert row["pair"] == "batchtopk vs topk"
    assert row["difference_percent"] == pytest.approx(100 * (row["fvu_a"] / row["fvu_b"] - 1))
    assert row["l0_matched"] == "as measured"
    assert row["p_holm"] >= row["p"]


def test_where_an_arm_is_interpolated_the_table_says_which() -> None:
    trials = simulate(arms={"topk": 1.0, "vanilla": 1.25}, levels=(8, 16, 32))
    for trial in trials:
        if trial["type"] == "vanilla":
            trial["metrics"]["eval/l0"] *= 1.3
    frame = report_of(trials).table("arms").frame
    assert set(frame["l0_matched"]) <= {"first interpolated", "second interpolated"}
    row = frame.iloc[0]
    assert row["difference_percent"] == pytest.approx(100 * (row["fvu_a"] / row["fvu_b"] - 1))


def test_the_front_has_what_nothing_beats() -> None:
    assert on_front([(1, 5), (2, 4), (2, 5), (3, 4), (math.nan, 0)]) == [True, True, False, False, False]


def test_the_pareto_table_is_the_better_arm_s_wider_strata(report: Report) -> None:
    frame = report.table("pareto").frame
    assert set(frame["arm"]) == {"batchtopk"}
    assert set(frame["dict_size"]) == {3072}
    assert frame["l0"].is_monotonic_increasing


def test_best_names_a_trial_that_exists_and_is_the_best_of_its_point(report: Report) -> None:
    row = report.table("best").frame.iloc[0]
    frame = report.frame
    mine = frame[(frame["arm"] == row["arm"]) & (frame["level"] == row["level"]) & (frame["state"] == "complete")]
    assert row["dict_size"] == 3072
    assert frame.loc[frame["trial"] == row["best_trial"], "eval/fvu"].item() == mine["eval/fvu"].min()


def test_effects_say_how_much_worse_than_the_best_of_the_stratum(report: Report) -> None:
    frame = report.table("effects").frame
    topk = frame[frame["arm"] == "topk"].set_index("value")
    assert set(frame["parameter"]) == {"lr"}
    assert topk["worse_percent"]["0.0003"] == 0  # point 0 is the best of every stratum
    assert topk["worse_percent"]["0.0006"] == pytest.approx(8, abs=2)  # point 1 is made 8% worse
    assert topk["pruned"]["0.0012"] == 5
    assert topk["failed"]["0.0012"] == 1


def test_many_values_are_shown_in_thirds() -> None:
    trials = simulate(arms={"topk": 1.0}, points=2)
    for i, trial in enumerate(trials):
        trial["params"]["lr"] = 1e-4 * 1.1**i
    values = report_of(trials).table("effects").frame["value"].tolist()
    assert len(values) == 3
    assert values[0].startswith("0.0001 to ")


def test_seeds_list_every_replicated_point_with_its_values(report: Report) -> None:
    frame = report.table("seeds").frame
    assert len(frame) == 12
    assert frame["values"][0].startswith("0: 0.")
    assert frame["seeds"].eq(3).all()


def test_lost_trials_have_their_reasons_and_the_verdict_s_numbers(report: Report) -> None:
    table = report.table("lost")
    assert len(table.frame) == (report.frame["state"] != "complete").sum() == 12
    failed = table.frame[table.frame["state"] == "failed"].iloc[0]
    pruned = table.frame[table.frame["state"] == "pruned"].iloc[0]
    assert failed["reason"] == "cuda_oom"
    assert (pruned["value"], pruned["threshold"], pruned["peers"], pruned["pruner"]) == (0.61, 0.52, 3, "median")
    assert table.note == "48 complete, 11 pruned, 1 failed"


def test_where_keeps_what_was_asked_for(report: Report) -> None:
    kept = keep(report.frame, ["type=topk", "k=16", "dict_size=1536.0", "state=complete"])
    assert len(kept) == 4
    assert set(kept["stratum"]) == {"topk-k16-n1536"}
    assert keep(report.frame, ["type=nothing"]).empty


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("foo=1", r"no column 'foo' \(there are: sweep, trial, .*, and the metrics\)"),
        ("eval/fvuu=1", r"no column 'eval/fvuu' \(did you mean eval/fvu"),
        ("type", "not KEY=VALUE"),
    ],
)
def test_where_explains_what_it_cannot_do(report: Report, condition: str, said: str) -> None:
    from saebench.errors import UserError

    with pytest.raises(UserError, match=said):
        keep(report.frame, [condition])


def test_the_names_of_the_command_line_are_the_tables_and_charts() -> None:
    from saebench.cli.report import NAMES, PLOTS
    from saebench.report.charts import CHARTS

    assert tuple(TABLES) == NAMES
    assert tuple(CHARTS) == PLOTS


def test_importances_come_from_the_sweep_s_journal(tmp_path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from saebench.report.sources import Source
    from saebench.runs.paths import SweepPaths

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    for seed, name in enumerate(("demo/topk-k16-n1536", "demo/topk-k32-n1536", "demo/topk-k16-n1536/replicates")):
        study = optuna.create_study(storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler(seed))
        for _ in range(15):
            trial = study.ask()
            lr, batch = trial.suggest_float("lr", 1e-4, 1e-2, log=True), trial.suggest_int("batch_size", 1024, 4096)
            study.tell(trial, (0.3 if "k16" in name else 0.1) * (1 + math.log(lr / 1e-4) + batch * 1e-9))
    report = report_of(simulate(arms={"topk": 1.0}))
    report.record.sources = (Source("demo", "", "", "", SweepPaths(tmp_path)),)
    frame = report.table("importances").frame
    assert frame["parameter"].tolist() == ["lr", "batch_size"]
    assert frame["importance"][0] > 0.8
    assert frame["trials"].tolist() == [30, 30]  # both strata, no replicates


def test_without_a_journal_there_are_no_importances_and_a_note(tmp_path) -> None:
    from saebench.report.sources import Source
    from saebench.runs.paths import SweepPaths

    report = report_of(simulate())
    report.record.sources = (Source("demo", "", "", "", SweepPaths(tmp_path)),)
    assert not len(report.table("importances").frame)
    assert report.record.notes == ["demo: optuna.journal is not on this machine: no importances"]


def test_numbers_are_shown_as_a_reader_wants_them() -> None:
    from saebench.report.table import p_value, plain, signed

    assert [plain(x) for x in (None, math.nan, 3, 16.0, 0.00031234, "x")] == ["-", "-", "3", "16", "0.0003123", "x"]
    assert [p_value(x) for x in (0.0001, 0.02, math.nan)] == ["< 0.001", "0.020", "-"]
    assert [signed(x) for x in (-4.14, 3.0, math.nan)] == ["-4.1%", "+3.0%", "-"]
    assert columns.sparsity({"level_name": "k", "level": 16.0}) == "k=16"
