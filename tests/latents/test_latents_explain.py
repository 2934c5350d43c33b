"""Latents against targets: planted effects are found, numbers agree with scipy and sklearn, bad columns are refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from latents.planted import NAMES, TOPICS, planted_sae, texts, write_trial
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score

from saebench.cli import cli
from saebench.config import DataConfig, TrialConfig
from saebench.errors import DataError, UserError
from saebench.latents import Latents, analyse
from saebench.latents.codes import Codes
from saebench.latents.explain import confirm, delong, entry_order, explain, holm
from saebench.latents.explained import explain_columns, explain_contrast
from saebench.latents.explained_page import explained_page
from saebench.latents.targets import Target, read_column, targets
from saebench.runs.paths import TrialPaths

DRAW = np.random.default_rng(1)


@pytest.fixture
def found(trial: TrialPaths, config: TrialConfig, tmp_path: Path) -> Latents:
    for seed in (1, 2):
        write_trial(tmp_path / "runs", config.model_copy(update={"seed": seed, "number": seed}), planted_sae(seed))
    return analyse(trial.root)


def codes(n: int, width: int = 30) -> np.ndarray:
    return np.where(DRAW.random((n, width)) < 0.2, DRAW.random((n, width)), 0).astype(np.float32)


def numbers(x: np.ndarray, y: np.ndarray, name: str = "y", kind: str = "number") -> Target:
    return Target(name, kind, (np.arange(len(x)), np.arange(len(y))), (x.astype(float), y.astype(float)))  # type: ignore[arg-type]


def test_the_class_of_a_topic_is_explained_by_its_latent_and_other_seeds_confirm_it(found: Latents) -> None:
    rows = explain_columns(found, ["label"]).rows()
    for topic in NAMES:
        best = next(row for row in rows if row["target"] == f"label = {topic}")
        assert best["latent"] == NAMES.index(topic)
        assert best["effect"] > 0.95
        assert best["low"] <= best["effect"] <= best["high"]
        assert best["p_holm"] < 1e-6
        assert best["inside"] > 0.9 > 0.4 > best["outside"]
        assert (best["matched"], best["confirmed"], best["seeds"]) == (2, 2, 2)
        assert best["path"] == 1
        assert set(best["keywords"].split(", ")[:4]) <= set(TOPICS[topic])


def test_a_number_of_the_data_set_is_joined_by_text_and_explained(found: Latents) -> None:
    """`length` grows with music by 2 in units of its noise; no SAE and no cache has seen it."""
    explained = explain_columns(found, ["length"])
    best = explained.rows()[0]
    assert (best["latent"], best["kind"]) == (NAMES.index("music"), "correlation")
    assert 0.3 < best["low"] < best["effect"] < 0.75
    assert (best["confirmed"], best["matched"]) == (2, 2)
    values = {row["text"]: row["length"] for row in texts(1200)}
    assert found.part.texts is not None
    y = np.array([values[text] for text in found.part.texts])
    x = found.codes.dense()[:, best["latent"]]
    assert best["effect"] == pytest.approx(pearsonr(x, y).statistic)
    assert best["p"] == pytest.approx(pearsonr(x, y).pvalue)


def test_effects_of_classes_agree_with_scipy_and_are_of_the_second_part_alone() -> None:
    train, test = codes(400), codes(400)
    here, there = DRAW.random(400) < 0.3, DRAW.random(400) < 0.3
    train[here, 7] += 1
    test[there, 7] += 0.3
    effects = explain(Codes.of(train), Codes.of(test), [numbers(here, there, kind="class")], most=5)
    assert effects[0].latent == 7
    for effect in effects:
        x = test[:, effect.latent].astype(float)
        assert effect.ranked == pytest.approx(roc_auc_score(here, train[:, effect.latent]))
        assert effect.effect == pytest.approx(roc_auc_score(there, x))
        assert effect.p == pytest.approx(mannwhitneyu(x[there], x[~there], method="asymptotic").pvalue)
        assert effect.inside == pytest.approx((x[there] != 0).mean())
    strength = [abs(effect.ranked - 0.5) for effect in effects]
    assert strength == sorted(strength, reverse=True)
    again = explain(Codes.of(train), Codes.of(codes(400)), [numbers(here, there, kind="class")], most=5)
    assert [e.latent for e in again] == [e.latent for e in effects], "the ranking does not look at the second part"


def test_correlations_are_ranked_as_numpy_ranks_them() -> None:
    train, y = codes(300), DRAW.standard_normal(300)
    train[:, 3] = np.maximum(y, 0)
    train[:, 9] = 0
    expected = np.array([abs(np.corrcoef(train[:, j], y)[0, 1]) if train[:, j].std() else 0 for j in range(30)])
    effects = explain(Codes.of(train), Codes.of(train), [numbers(y, y)], most=30)
    assert [e.latent for e in effects[:5]] == np.argsort(-expected, kind="stable")[:5].tolist()
    assert 9 not in [e.latent for e in effects]


def test_the_regression_takes_in_one_of_two_latents_that_say_the_same() -> None:
    x = codes(500, 6)
    x[:, 1] = x[:, 0] + 0.02 * DRAW.random(500) * (x[:, 0] > 0)
    y = 2 * x[:, 0] + x[:, 4] + 0.1 * DRAW.standard_normal(500)
    path = entry_order(Codes.of(x), np.arange(6), y.astype(float))
    assert {path[0], path[4]} == {1, 2}
    assert path.get(1, 99) > 2


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_nothing_is_found_in_noise() -> None:
    """Of 20 targets of noise with 10 latents each, Holm lets through what it should: none, but one time in twenty."""
    train, test = codes(400, 60), codes(400, 60)
    noise = [numbers(DRAW.random(400) < 0.3, DRAW.random(400) < 0.3, f"t{i}", "class") for i in range(20)]
    effects = explain(Codes.of(train), Codes.of(test), noise)
    assert len(effects) == 200
    assert min(e.p_holm for e in effects) > 0.01
    assert np.mean([e.p < 0.05 for e in effects]) < 0.12


def test_the_interval_of_an_auroc_holds_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for _ in range(400):
        low_high = delong(DRAW.standard_normal(60) + 1, DRAW.standard_normal(90))[1:]
        hits += low_high[0] <= 0.760250 <= low_high[1]  # Phi(1 / sqrt 2)
    assert 0.91 < hits / 400 < 0.98
    assert delong(np.array([2.0, 3.0]), np.array([1.0, 0.0]))[0] == 1


def test_a_seed_that_says_the_opposite_does_not_confirm() -> None:
    x, y = codes(300, 4), DRAW.random(300) < 0.4
    x[y, 0] += 1
    effects = explain(Codes.of(x), Codes.of(x), [numbers(y, y, kind="class")], most=1)
    turned = x.copy()
    turned[:, 0] = np.where(y, 0, 1)
    axes = np.eye(4, dtype=np.float32)
    by_name = {"y": numbers(y, y, kind="class")}
    told = confirm(effects, axes, by_name, [(axes, Codes.of(x)), (axes, Codes.of(turned)), (-axes, Codes.of(x))])
    assert (told[0].matched, told[0].confirmed) == (2, 1)
    assert replace(told[0], matched=0, confirmed=0) == effects[0]


# --- columns ---------------------------------------------------------------------------------------------------------


def test_what_a_column_may_hold() -> None:
    some, notes = targets("n", [[1.5, None, float("nan"), 2.5] * 30, [0.5, 1.5] * 30])
    assert [(t.kind, len(t.rows[0])) for t in some] == [("number", 60)]
    assert notes == ["n: 60 of 180 texts have no value and are left out"]
    some, _ = targets("c", [["a", "b"] * 30, ["a", "b"] * 30])
    assert [t.name for t in some] == ["c = a"], "the other class is the same question"
    many = [str(i % 60) for i in range(1200)]
    some, notes = targets("c", [many, many])
    assert len(some) == 50
    assert notes == ["c: 10 classes are left out: rare ones, and those beyond the 50 most frequent"]
    some, _ = targets("year", [list(range(100)), list(range(100))])
    assert some[0].kind == "number"
    some, _ = targets("year", [list(range(4)) * 30] * 2)
    assert [t.kind for t in some] == ["class"] * 4
    assert targets("year", [list(range(4)) * 30] * 2, "number")[0][0].kind == "number"
    some, _ = targets("flag", [[True, False, False] * 20] * 2)
    assert [t.name for t in some] == ["flag = False"]
    rare = ["rare"] * 12 + ["common"] * 2000
    some, _ = targets("c", [rare, rare])
    assert len(some[0].values[0]) == 2012


@pytest.mark.parametrize(
    ("columns", "kind", "said"),
    [
        ([[None] * 50] * 2, "auto", "no text has a value"),
        ([[3] * 50] * 2, "auto", "constant"),
        ([["x"] * 50] * 2, "auto", "constant"),
        ([["a", 1] * 30] * 2, "number", "is not a number; to treat the values as classes: --as class"),
        ([[str(i) for i in range(99)]] * 2, "class", "no class has at least ten texts"),
        ([[1.5, 2.5] * 5] * 2, "auto", "only 10 training texts"),
        ([[1.5, 2.5] * 50, [1.5] * 50], "auto", "constant on measured texts"),
    ],
)
def test_a_column_with_nothing_to_explain_is_refused(columns: list[list[object]], kind: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        targets("t", columns, kind)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- corpora and the command line ------------------------------------------------------------------------------------


def test_one_corpus_against_another(found: Latents) -> None:
    other = [row["text"] for row in texts(2000, seed=7) if row["label"] in ("stars", "bread")][:300]
    known = [row["text"] for row in texts(1200)][:100]
    explained = explain_contrast(found, "other.txt", [*other, *other, *known, "", " "])
    assert explained.notes[0].startswith("other.txt: ")
    rows = explained.rows()
    up = {row["latent"] for row in rows if row["effect"] > 0.5 and row["p_holm"] < 0.01}
    assert {NAMES.index("stars"), NAMES.index("bread")} <= up
    assert all(row["confirmed"] == row["matched"] == 2 for row in rows[:2])
    with pytest.raises(UserError, match="at least 40"):
        explain_contrast(found, "few.txt", [*other[:30], *known])


def test_a_target_beside_embeddings_of_ones_own_is_joined_by_row(found: Latents, tmp_path: Path) -> None:
    """A column of the Parquet file that holds the embeddings; of a missing one, the columns that are there."""
    rows, numbers = np.zeros((4000, 2), np.float32).tolist(), list(range(4000))
    file = tmp_path / "v.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"vector": rows, "number": numbers}), file)
    own = DataConfig(embeddings=str(file))  # type: ignore[call-arg]
    (values,) = read_column(own, "number", [found.part])
    assert values == found.part.row_numbers
    with pytest.raises(DataError, match=r"^--target: year: .*no such column of v\.parquet \(vector, number\)"):
        read_column(own, "year", [found.part])


def call(tmp_path: Path, *arguments: object) -> object:
    return CliRunner().invoke(cli, ["explain", *map(str, arguments), "--runs-dir", str(tmp_path / "runs")])


def test_the_command_writes_tables_and_a_page(found: Latents, data: DataConfig, tmp_path: Path) -> None:  # noqa: ARG001
    for arguments in (["--target", "label", "--target", "length"], ["--contrast", tmp_path / "other.txt"]):
        (tmp_path / "other.txt").write_text("\n".join(row["text"] for row in texts(400, seed=3)))
        result = call(tmp_path, "demo/0", *arguments, "--out", tmp_path / "e.csv")
        assert result.exit_code == 0, result.output + repr(result.exception)  # type: ignore[attr-defined]
    result = call(tmp_path, "demo/0", "--target", "label", "--out", tmp_path / "e.json")
    assert {row["target"] for row in json.loads((tmp_path / "e.json").read_text())} == {f"label = {n}" for n in NAMES}
    with (tmp_path / "e.csv").open() as file:
        assert "p_holm" in next(csv.reader(file))
    result = call(tmp_path, "demo/0", "--target", "label", "--out", tmp_path / "e.html")
    assert (tmp_path / "e.html").read_text("utf-8").count("<section>") == len(NAMES)
    for arguments, said in (
        ([], "one of the two"),
        (["--target", "absent"], "--target: absent: no such column (there are: text, label, length, same)"),
        (["--target", "same"], "constant"),
    ):
        result = call(tmp_path, "demo/0", *arguments)
        assert isinstance(result.exception, UserError)  # type: ignore[attr-defined]
        assert said in str(result.exception)  # type: ignore[attr-defined]


def test_texts_on_the_page_are_texts(found: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = explain_columns(found, ["label"], most=1)
    monkeypatch.setattr(type(found), "example", lambda *_: "<script>alert(1)</script> \x1b[2J")
    page = explained_page(explained)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
