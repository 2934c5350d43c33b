"""`init --data`: from somebody's file to a spec that fits it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from saebench.cli import cli
from saebench.cli.starter import TEXTS_PER_LATENT, sizes
from saebench.config import default_batch_size
from saebench.forecast import advice
from saebench.plan import make_plan
from saebench.spec import load_spec


def init(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", "--no-measure", *arguments])


@pytest.fixture
def papers(tmp_path: Path, glosses: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """3,000 abstracts with fields and years, as Excel exports them in Europe."""
    monkeypatch.chdir(tmp_path)
    frame = pd.read_parquet(glosses).head(3000)[["text", "label"]]
    frame.columns = ["abstract", "field"]
    frame["year"] = [2000 + i % 9 for i in range(3000)]
    frame.to_csv("my papers.csv", sep=";", index=False, encoding="cp1252", errors="replace")
    return tmp_path / "my papers.csv"


def test_the_spec_fits_the_file(papers: Path, minilm_path: str) -> None:
    assert minilm_path
    shown = init("--data", papers.name)
    assert shown.exit_code == 0, f"{shown.output}{shown.exception!r}"
    spec = load_spec(Path("my_papers.yaml"))
    dataset = spec.data.dataset
    assert (dataset.path, dataset.delimiter, dataset.text_column) == ("csv", ";", "abstract")
    assert dataset.data_files == [str(papers)] or dataset.data_files == str(papers)
    plan = make_plan(spec)
    train = 0.7 * 3000
    assert plan.samples / train == pytest.approx(30, rel=0.02)
    assert all(stratum.axes["dict_size"] * TEXTS_PER_LATENT <= train for stratum in plan.strata)
    assert advice(plan) == []
    written = Path("my_papers.yaml").read_text()
    assert "lr_factor: {low: 0.25, high: 4, log: true}" in written, "a range around the default lr, whatever it is"
    assert not re.search(r"^ *lr:", written, re.MULTILINE)
    for said in ("delimiter ';'", "abstract", "taken for", "year", "3,000:", "first:", "saebench plan my_papers.yaml"):
        assert said in shown.output, said
    assert re.search(r"^ ?abstract +texts +\w+", shown.output, re.MULTILINE), "long texts push no column out"
    again = init("--data", papers.name)
    assert "exists already" in str(again.exception)


def test_columns_can_be_chosen_and_are_checked(papers: Path) -> None:
    shown = init("--data", papers.name, "--column", "abstract", "--label", "field", "-")
    assert "label_column: field" in shown.output
    for option in ("--column", "--label"):
        refused = init("--data", papers.name, option, "nothing", "-")
        assert "nothing: no such column (there are: abstract, field, year)" in str(refused.exception)
    assert [path.name for path in papers.parent.iterdir()] == [papers.name], "- writes nothing"


def test_a_folder_of_texts_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for i in range(150):
        (tmp_path / "notes" / f"{i}.txt").write_text(f"Note {i}\nabout an owl")
    shown = init("--data", "notes")
    assert shown.exit_code == 0, f"{shown.output}{shown.exception!r}"
    assert len(pd.read_parquet("notes.parquet")) == 150
    assert load_spec(Path("notes.yaml")).data.dataset.text_column == "text"


def test_too_few_texts_write_no_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text\n" + "\n".join(f"owl {i}" for i in range(20)))
    assert "20 texts: too few" in str(init("--data", "a.csv").exception)
    assert not Path("a.yaml").exists()


def test_options_of_data_need_data() -> None:
    assert "belong to --data" in str(init("--column", "x", "-").exception)


@pytest.mark.parametrize("train", [90, 500, 2000, 9000, 40_000, 120_000, 900_000])
def test_sizes_fit(train: int) -> None:
    fit = sizes(train)
    assert fit.k[1] * 4 <= fit.dict_size
    assert fit.batch_size <= max(32, train // 20)
    assert fit.batch_size <= default_batch_size(fit.samples)
    assert fit.dict_size * TEXTS_PER_LATENT <= max(train, 480)
    assert 5 <= fit.samples / train <= 34
