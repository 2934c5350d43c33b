"""Stability across seeds from planted dictionaries on disk and in MLflow, and whatever can be missing."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sweep_data
from rich.console import Console
from safetensors.numpy import load_file, save_file

from saebench.report import Report, formats, latex, load, stability
from saebench.report.html import page
from saebench.report.matching import match
from saebench.report.text import show

D_IN, LATENTS = 16, 12


@dataclass
class Sweep:
    """Two strata of three seeds, as the tracker and the trials leave them."""

    runs: Path
    uri: str

    def sae(self, trial: int) -> Path:
        return self.runs / "s" / "trials" / f"{trial:04d}" / "sae" / "sae.safetensors"

    def report(self) -> Report:
        return load("s", runs_dir=self.runs)

    def rows(self, *, quick: bool = False) -> list[dict]:
        report = self.report()
        self.notes = report.record.notes
        return report.table("stability", quick=quick).rows()


def dictionary(seed: int, shared: int = 6) -> np.ndarray:
    """`shared` rows that every seed finds, in an order of its own; the rest belong to the seed."""
    common = np.linalg.qr(np.random.default_rng(0).standard_normal((D_IN, D_IN)))[0][:shared]
    own = np.random.default_rng(seed + 1).standard_normal((LATENTS - shared, D_IN))
    rows = np.concatenate([common, own / np.linalg.norm(own, axis=1, keepdims=True)])
    return rows[np.random.default_rng(seed).permutation(LATENTS)].astype(np.float32)


def write(folder: Path, rows: np.ndarray, firing: np.ndarray | None) -> None:
    (folder / "sae").mkdir(parents=True, exist_ok=True)
    save_file({"W_dec": rows, "b_dec": rows[0]}, folder / "sae" / "sae.safetensors")
    (folder / "sae" / "sae.json").write_text("{}")
    if firing is not None:
        errors = np.ones(50, dtype=np.float32)
        save_file({"firing": firing, "squared_error": errors, "l0": errors.astype(np.int32)},
                  folder / "evaluation.safetensors")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Trials 0 to 2: seeds of a point; 3: a second point with one seed; 4 to 7 the same of another stratum."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("sweep")
    trials = sweep_data.simulate(arms={"topk": 1.0}, levels=(2, 4), widths=(LATENTS,), name="s")
    for trial in trials:
        trial["params"]["d_in"] = D_IN
    uri, runs = sweep_data.database(root / "mlflow.db"), root / "runs"
    parent = sweep_data.log_sweep(uri, trials, runs, root / "artifacts", evaluations=False)
    client = MlflowClient(tracking_uri=uri)
    tag = f"tags.`mlflow.parentRunId` = '{parent}'"
    experiment = client.get_run(parent).info.experiment_id
    found = {int(r.data.tags["saebench.trial"]): r.info.run_id for r in client.search_runs([experiment], tag)}
    for trial in trials:
        folder = runs / "s" / "trials" / f"{trial['trial']:04d}"
        firing = np.arange(LATENTS, dtype=np.int64) if trial["trial"] < 4 else np.ones(LATENTS, dtype=np.int64)
        write(folder, dictionary(trial["seed"]), firing)
        client.log_artifacts(found[trial["trial"]], str(folder))
    return Sweep(runs, uri)


@pytest.fixture
def sweep(made: Sweep, tmp_path: Path) -> Sweep:
    """A copy of the directory; the record in MLflow is shared."""
    shutil.copytree(made.runs, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "s" / "report", ignore_errors=True)
    return Sweep(tmp_path / "runs", made.uri)


def forget(sweep: Sweep) -> None:
    shutil.rmtree(sweep.runs / "s" / "report", ignore_errors=True)


def test_a_row_per_point_of_several_seeds_with_the_mean_over_pairs(sweep: Sweep) -> None:
    rows = sweep.rows()
    assert [(row["level"], row["seeds"], row["pairs"], row["best"]) for row in rows] == [
        (2, 3, 3, True),
        (4, 3, 3, True),
    ]
    whole = [match(dictionary(a), dictionary(b)) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert rows[1]["cosine"] == pytest.approx(np.mean([m.cosine for m in whole]))
    assert rows[1]["cosine_lowest"] == pytest.approx(min(m.cosine for m in whole))
    assert rows[1]["cosine_highest"] == pytest.approx(max(m.cosine for m in whole))
    assert rows[1]["same_share"] == pytest.approx(np.mean([m.same for m in whole]))
    assert rows[1]["same_share"] >= 0.5, "six of twelve are planted"
    assert rows[1]["alive"] == LATENTS
    assert rows[1]["sampled"] is None
    assert rows[1]["by_pair"].startswith("0-1: 0.")
    assert (rows[0]["complete"], rows[0]["pruned"]) == (3, 0)
    assert sweep.notes == []


def test_it_is_in_every_form_of_the_report(sweep: Sweep, tmp_path: Path) -> None:
    report, out = sweep.report(), io.StringIO()
    show(report, Console(file=out, width=160), everything=True)
    table = report.table("stability")
    for text in (out.getvalue(), page(report), formats.markdown_table(table), latex.longtable(table)):
        assert "Stability of latents across seeds" in text
        assert "3/0/0" in text
    assert [row["pairs"] for row in json.loads(formats.to_json(table))] == [3, 3]
    assert formats.csv(table).count("\n") == 3
    formats.parquet(table, tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["cosine"].tolist() == table.frame["cosine"].tolist()


def test_latents_that_never_fire_are_left_out(sweep: Sweep) -> None:
    """In the first stratum row 0 of every seed is dead."""
    alive = [match(dictionary(a)[1:], dictionary(b)[1:]).cosine for a, b in ((0, 1), (0, 2), (1, 2))]
    row = sweep.rows()[0]
    assert row["cosine"] == pytest.approx(np.mean(alive))
    assert row["alive"] == LATENTS - 1


def test_without_the_evaluation_all_latents_are_matched_and_that_is_said(sweep: Sweep) -> None:
    (sweep.sae(0).parent.parent / "evaluation.safetensors").unlink()
    table = sweep.report().table("stability")
    live = next(column for column in table.columns if column.key == "alive")
    assert [live.text(row) for row in table.rows()] == ["-", str(LATENTS)]
    sweep.rows()
    assert any("no evaluation.safetensors for 1 point: latents that never fire" in note for note in sweep.notes)


def test_results_are_kept_beside_the_sweep_and_used_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep.rows()
    monkeypatch.setattr(stability, "match", None)
    assert sweep.rows() == first
    assert sweep.rows(quick=True) == first
    assert json.loads((sweep.runs / "s" / "report" / "stability.json").read_text())["pairs"]


def test_what_was_kept_is_forgotten_when_the_sae_changes(sweep: Sweep) -> None:
    before = sweep.rows()
    write(sweep.sae(4).parent.parent, dictionary(1), None)
    after = sweep.rows()
    assert after[0] == before[0]
    assert after[1]["cosine_highest"] == pytest.approx(1), "trial 4 is now what trial 5 is"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 1}', '{"cells": 37748736, "pairs": {"x": 1}}'])
def test_a_damaged_file_of_kept_results_is_no_obstacle(sweep: Sweep, text: str) -> None:
    rows = sweep.rows()
    kept = sweep.runs / "s" / "report" / "stability.json"
    kept.write_text(text)
    assert sweep.rows() == rows


def test_a_folder_that_cannot_be_written_is_no_obstacle(sweep: Sweep) -> None:
    (sweep.runs / "s" / "report").write_text("not a folder")
    assert len(sweep.rows()) == 2


@pytest.mark.parametrize("damage", ["gone", "cut", "no W_dec", "nan", "other width", "other size"])
def test_a_damaged_sae_is_taken_from_mlflow(sweep: Sweep, damage: str) -> None:
    expected = sweep.rows()
    forget(sweep)
    _damage(sweep.sae(0), damage)
    assert sweep.rows() == expected
    assert sweep.notes == []


@pytest.mark.parametrize("damage", ["gone", "cut", "no W_dec", "nan", "other width", "other size"])
def test_a_damaged_sae_that_is_nowhere_else_costs_its_pairs_and_a_note(
    sweep: Sweep, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "from_mlflow", lambda _: None)
    _damage(sweep.sae(0), damage)
    rows = sweep.rows()
    assert [(row["seeds"], row["pairs"]) for row in rows] == [(2, 1), (3, 3)]
    assert sweep.notes == [
        "stability of latents: no readable SAE of s/0 here or in MLflow; its pairs of seeds are missing"
    ]


def _damage(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        rows = load_file(file)["W_dec"]
        damaged = {"no W_dec": rows, "nan": rows * np.nan, "other width": rows[:, 1:].copy(), "other size": rows[1:]}
        save_file({"W_enc" if how == "no W_dec" else "W_dec": damaged[how]}, file)


def test_all_saes_gone_leave_an_empty_table_and_the_rest_of_the_report(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "from_mlflow", lambda _: None)
    for trial in range(8):
        sweep.sae(trial).unlink()
    report = sweep.report()
    table = report.table("stability")
    assert table.rows() == []
    assert "No point has SAEs" in table.note
    assert "no readable SAE of s/0, s/1, s/2 and 3 more here" in report.record.notes[-1]
    assert len(report.table("strata").frame) == 2


def test_from_a_server_without_the_directory_when_asked(made: Sweep, tmp_path: Path) -> None:
    report = load("s", runs_dir=tmp_path, tracking_uri=made.uri)
    assert report.table("stability", quick=True).rows() == []
    assert report.record.notes == [
        "stability of latents: 2 points left out, as their SAEs are not here; --table stability asks MLflow for them"
    ]
    assert [row["pairs"] for row in report.table("stability").rows()] == [3, 3]


def test_a_server_that_is_gone_by_then_is_a_note(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sweep.report()
    source = report.record.sources[0]
    report.record.sources = (type(source)(**{**vars(source), "uri": f"sqlite:///{sweep.runs}/gone.db"}),)
    sweep.sae(0).unlink()
    asked = []
    monkeypatch.setattr(stability, "from_mlflow", lambda trial: asked.append(trial))
    assert [row["pairs"] for row in report.table("stability").rows()] == [1, 3]
    assert any("gone.db" in note and "--tracking-uri" in note for note in report.record.notes), report.record.notes
    assert asked == []


def test_unasked_only_so_much_is_computed(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "QUICK", 3 * LATENTS**2)
    assert len(sweep.rows(quick=True)) == 1
    assert sweep.notes == [
        "stability of latents: 1 point left out, as that takes longer; --table stability measures and keeps them"
    ]
    assert len(sweep.rows(quick=True)) == 2, "the first is kept, so that the second is now within reach"


def test_unasked_is_what_eval_extra_none_means(sweep: Sweep) -> None:
    lock = sweep.runs / "s" / "lock.json"
    said = json.loads(lock.read_text())
    said["spec"]["eval"] = {"extra": "none"}
    lock.write_text(json.dumps(said))
    assert sweep.rows(quick=True) == []
    assert "not measured (eval.extra: none); --table stability measures it anyway" in sweep.notes[0]
    assert len(sweep.rows()) == 2


def test_one_seed_has_nothing_to_be_compared_with(sweep: Sweep) -> None:
    report = load("s", runs_dir=sweep.runs, where=["seed=0"])
    for quick in (True, False):
        assert report.table("stability", quick=quick).rows() == []
    assert report.record.notes == []


def test_asked_for_it_has_the_points_that_are_not_the_best_too(sweep: Sweep) -> None:
    report = sweep.report()
    other = report.frame["trial"].isin([4, 5])  # two seeds of the other stratum, as if they were a worse point of this
    for key in ("level", "k", "stratum"):
        report.frame.loc[other, key] = report.frame[key].iloc[0]
    report.frame.loc[other, "point"] = "p2"
    report.frame.loc[other, "eval/fvu"] *= 2
    found = {quick: report.table("stability", quick=quick).rows() for quick in (True, False)}
    assert [(row["point"], row["best"], row["seeds"]) for row in found[True]] == [("p0", True, 3)]
    assert [(row["point"], row["best"], row["seeds"]) for row in found[False]] == [("p0", True, 3), ("p2", False, 2)]
    assert "p0 (best)" in formats.markdown_table(report.table("stability"))
    assert "p0" not in formats.markdown_table(report.table("stability", quick=True)), (
        "there is no other to tell it from"
    )


def test_planted_copies_are_exactly_the_same(sweep: Sweep) -> None:
    for trial, seed in ((4, 1), (5, 2), (6, 3)):
        rows = dictionary(0)[np.random.default_rng(seed).permutation(LATENTS)]
        write(sweep.sae(trial).parent.parent, rows, np.ones(LATENTS, dtype=np.int64))
    row = sweep.rows()[1]
    assert row["cosine"] == pytest.approx(1, abs=1e-12)
    assert row["same_share"] == 1
