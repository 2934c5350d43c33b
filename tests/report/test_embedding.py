"""The embedding-aware tables: their numbers against plain arithmetic, and what a sweep may lack."""

from __future__ import annotations

import io
import json
import math
from statistics import mean, stdev

import pytest
from rich.console import Console
from sweep_data import frame_of, simulate, with_state

from saebench.metrics import PROBED_LATENTS
from saebench.report import formats, latex
from saebench.report.document import Report
from saebench.report.embedding import BASELINES, SCORES
from saebench.report.html import page
from saebench.report.record import Record
from saebench.report.text import show

T2 = 4.302653
"""97.5% of t with 2 degrees of freedom."""


def with_values(trials: list, *, probing: bool = True, extras: bool = True) -> list:
    """Values that differ by trial, baselines that do not."""
    for i, trial in enumerate(trials):
        values = trial["metrics"]
        values["eval/cosine_p5"] = 0.5 + 0.001 * i
        if extras:
            values["eval/knn_overlap_at_10"] = 0.4 + 0.002 * i
            values["eval/similarity_rank_correlation"] = 0.9 - 0.003 * i
        for k in PROBED_LATENTS if probing else ():
            for score, shift in (("auc", 0.05), ("accuracy", 0.0)):
                values[f"eval/probing_{score}_k{k}"] = 0.6 + shift + 0.01 * k + 0.0005 * i
                values[f"eval/probing_{score}_k{k}_raw"] = 0.55 + shift + 0.01 * k
                values[f"eval/probing_{score}_k{k}_pca"] = 0.57 + shift + 0.01 * k
                values[f"eval/probing_{score}_all_raw"] = 0.9 + shift
    return trials


def report_of(trials: list) -> Report:
    return Report(Record(frame_of(trials)))


def of_first_stratum(report: Report, key: str) -> list[float]:
    frame = report.frame
    return frame[(frame["stratum"] == "topk-k16-n1536") & (frame["point"] == "p0")][key].tolist()


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(with_values(simulate()))


@pytest.mark.parametrize(
    ("table", "key", "column"),
    [
        ("fidelity", "eval/cosine", "cosine"),
        ("fidelity", "eval/cosine_p5", "cosine_p5"),
        ("fidelity", "eval/knn_overlap_at_10", "knn_overlap_at_10"),
        ("fidelity", "eval/similarity_rank_correlation", "similarity_rank_correlation"),
        *(("probing", f"eval/probing_{score}_k{k}", f"{score}_k{k}") for score in SCORES for k in PROBED_LATENTS),
    ],
)
def test_a_stratum_has_the_mean_and_t_interval_of_its_best_point(
    report: Report, table: str, key: str, column: str
) -> None:
    row, values = report.table(table).frame.iloc[0], of_first_stratum(report, key)
    half = T2 * stdev(values) / math.sqrt(3)
    assert len(values) == row["seeds"] == 3
    assert row[column] == pytest.approx(mean(values))
    assert row[f"{column}_low"] == pytest.approx(mean(values) - half)
    assert row[f"{column}_high"] == pytest.approx(mean(values) + half)


def test_baselines_stand_below_the_strata_once(report: Report) -> None:
    table = report.table("probing")
    assert table.frame["arm"].tolist()[-2:] == list(BASELINES.values())
    raw, pca = table.rows()[-2:]
    for k in PROBED_LATENTS:
        assert raw[f"accuracy_k{k}"] == pytest.approx(0.55 + 0.01 * k)
        assert pca[f"auc_k{k}"] == pytest.approx(0.62 + 0.01 * k)
    assert "All raw dimensions: accuracy 0.900, AUC 0.950." in table.note
    assert table.columns[-1].text(raw) == "-", "no trials stand behind a baseline of their own"
    assert table.columns[-1].text(table.rows()[0]) == "4/0/0"
    assert report.table("strata").frame["arm"].isin(BASELINES.values()).sum() == 0


def test_groups_have_baselines_of_their_own() -> None:
    trials = with_values([*simulate(name="a"), *simulate(name="b")])
    for number, trial in enumerate(trials):
        trial["trial"] = number
        trial["params"]["data.dataset"] = trial["sweep"]
        trial["metrics"]["eval/probing_auc_k1_raw"] = 0.6 if trial["sweep"] == "a" else 0.7
    found = report_of(trials).table("probing")
    raw = found.frame[found.frame["arm"] == "raw dimensions"].set_index("group")["auc_k1"]
    assert raw.to_dict() == pytest.approx({"a": 0.6, "b": 0.7})
    assert "All raw dimensions (a): accuracy" in found.note


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = report_of(with_values(simulate(seeds=(0,))))
    for name, column in (("fidelity", "knn_overlap_at_10"), ("probing", "accuracy_k5")):
        row = found.table(name).frame.iloc[0]
        assert math.isfinite(row[column])
        assert math.isnan(row[f"{column}_high"])
        assert not any("±" in column.text(dict(row)) for column in found.table(name).columns)


def test_without_labels_there_is_no_probing_and_it_says_why() -> None:
    found = report_of(with_values(simulate(), probing=False))
    table = found.table("probing")
    assert table.rows() == []
    assert "for a dataset with enough labels" in table.note
    assert len(found.table("fidelity").frame)


def test_what_no_trial_has_is_no_column() -> None:
    table = report_of(simulate()).table("fidelity")
    assert [c.key for c in table.columns if c.key.startswith(("cosine", "knn", "similarity"))] == ["cosine"]
    assert table.note.endswith("on test texts: cosine between embedding and reconstruction.")


def test_a_cell_without_a_value_is_a_dash_and_keeps_its_counts() -> None:
    trials = with_values(simulate())
    for trial in trials:
        if trial["stratum"] == "topk-k16-n1536":
            trial["metrics"]["eval/knn_overlap_at_10"] = math.nan
    trials = [with_state(t, "failed", "x") if t["stratum"] == "topk-k32-n1536" else t for t in trials]
    table = report_of(trials).table("fidelity")
    shown = {row["stratum"]: [column.text(row) for column in table.columns] for row in table.rows()}
    assert shown["topk-k16-n1536"].count("-") == 1
    assert shown["topk-k32-n1536"][-1] == "0/0/4"


def test_they_are_in_every_form_of_the_report(report: Report) -> None:
    out = io.StringIO()
    show(report, Console(file=out, width=160), everything=True)
    tables = [report.table(name) for name in ("fidelity", "probing")]
    texts = [out.getvalue(), page(report), formats.markdown(report, tables), latex.document(report, tables)]
    for text in texts:
        assert "Similarities after reconstruction" in text
        assert "k-sparse probing" in text
        assert BASELINES["_raw"] in text
    for table in tables:
        assert len(json.loads(formats.to_json(table))) == len(table.frame)
        assert formats.csv(table).count("\n") == len(table.frame) + 1
