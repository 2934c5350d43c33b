"""Floors beside the arms: in tables, in the verdict, and in words if none were measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sweep_data import frame_of, simulate, simulate_search

from saebench.report import formats, points
from saebench.report.document import Report
from saebench.report.floors import Floors, beaten
from saebench.report.record import Record
from saebench.report.sources import Source
from saebench.runs.paths import SweepPaths

K16 = {"pca": 0.9, "data": 0.7, "kmeans": 0.6, "random": 0.8}


def record(name: str, k: int, fvu: float, width: int = 1536, **values: float) -> dict[str, object]:
    scores = {"test/fvu": fvu, **{f"test/{key}": value for key, value in values.items()}}
    return {"floor": name, "k": k, "dict_size": width, "values": scores, "left_out": {}}


def report_with(tmp_path: Path, found: object) -> Report:
    """Two arms at k 16 (FVU of about 0.46 and 0.44) and 32 (0.36 and 0.35), and this content of floors.json."""
    paths = SweepPaths(tmp_path / "demo")
    paths.root.mkdir()
    paths.floors.write_text(found if isinstance(found, str) else json.dumps(found))
    source = Source("demo", "sqlite:///none.db", "1", "run", paths)
    return Report(Record(frame_of(simulate_search()), (source,)))


def test_the_verdict_counts_strata_in_which_an_arm_is_above_the_best_floor_for_certain(tmp_path: Path) -> None:
    found = [record(name, 16, fvu, probing_auc_k5=0.5) for name, fvu in K16.items()]
    found += [record("pca", 32, 0.9, probing_auc_k5=0.9), record("kmeans", 32, 0.1, probing_auc_k5=0.5)]
    report = report_with(tmp_path, {"format": 1, "floors": found})
    assert report.verdict.endswith(
        " Certainly better than every floor (score without training) in FVU and probing AUC k=5: topk in 1 of 2 "
        "strata, "
        "batchtopk in 1 of 2."
    )
    strata = report.table("strata").rows()
    shown = [(row["level"], row["floor_fvu"], row["floor"]) for row in strata if row["arm"] == "topk"]
    assert shown == [(16, 0.6, "kmeans"), (32, 0.1, "kmeans")]
    table = report.table("floors")
    assert [(row["k"], row["floor"]) for row in table.rows()][:3] == [(16, "pca"), (16, "data"), (16, "kmeans")]
    assert "k-means centres" in formats.markdown_table(table)


def test_one_seed_below_the_floor_is_not_above_it(tmp_path: Path) -> None:
    frame = Report(Record(frame_of(simulate_search()))).chosen
    cell = frame[(frame["arm"] == "topk") & (frame["level"] == 16)]["final/fvu"]
    between = float(cell.sort_values().iloc[-2:].mean())  # above all seeds but the worst
    report = report_with(tmp_path, {"floors": [record("kmeans", 16, between)]})
    assert "in FVU: topk in 0 of 1 strata, batchtopk in 1 of 1." in report.verdict


def test_an_arm_as_good_as_its_floor_is_rarely_above_it() -> None:
    """The floor is the arm's own mean, 3 seeds, 2 strata: 5% of 200 sweeps at most, but for chance; the best of three
    seeds alone would be in one of eight."""
    above = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        frame = points.annotate(frame_of(simulate_search(arms={"topk": 1.0}, points=1, extra=False)))
        best = points.chosen(frame, "eval/fvu", False)
        best["final/fvu"] = 0.4 + rng.normal(0, 0.01, len(best))
        rows = [{"sweep": "demo", "floor": "pca", "k": k, "dict_size": 1536, "fvu": 0.4} for k in (16, 32)]
        above += beaten(Floors(rows), frame, best)["topk"]["fvu"][0] > 0
    assert above / 200 <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", {"floors": 3}, {"floors": [{"floor": "pca"}, 7, {"floor": "new", "k": 16, "dict_size": 9}]}],
)
def test_without_floors_or_with_a_damaged_file_the_verdict_says_that_there_are_none(
    tmp_path: Path, content: object
) -> None:
    report = report_with(tmp_path, content)
    assert report.verdict.endswith(" No floors were measured: the scores without training are unknown.")
    assert report.table("floors").note == "None were measured."
    assert not report.table("floors").rows()
    assert all(column.key not in ("floor", "floor_fvu") for column in report.table("strata").columns)


def test_what_holds_of_every_arm_is_said_once(tmp_path: Path) -> None:
    found = [record("pca", 16, 0.9, knn_overlap_at_10=0.99), record("pca", 32, 0.9)]
    report = report_with(tmp_path, {"floors": found})
    assert report.verdict.endswith("in FVU: every arm in all strata; in neighbours kept: no arm.")


def test_floors_of_other_sizes_are_no_floors_of_these_arms(tmp_path: Path) -> None:
    report = report_with(tmp_path, {"floors": [record("pca", 16, 0.9, width=99)]})
    assert report.verdict.endswith(" Floors were measured, but not at the sizes of these arms.")


def test_sweeps_without_a_test_part_have_no_word_of_floors() -> None:
    """Their scores are of other texts."""
    assert "loor" not in Report(Record(frame_of(simulate()))).verdict


def test_what_a_floor_lacks_is_said(tmp_path: Path) -> None:
    one = {**record("kmeans", 16, float("nan")), "left_out": {"kmeans": "9 training rows for 1536 centres"}}
    report = report_with(tmp_path, {"floors": [one]})
    row = report.table("floors").rows()[0]
    assert row["left_out"] == "kmeans: 9 training rows for 1536 centres"
    assert row["fvu"] != row["fvu"]
