"""`plan` looks into the files, knows a sweep of the same name, and reckons in minutes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from saebench import response
from saebench.cli import cli, decidable, outlook
from saebench.cli.plan import show_plan
from saebench.plan import make_plan
from saebench.runs.paths import SweepPaths
from saebench.spec import load_spec
from saebench.trial import measure
from saebench.trial.measure import Measured

SPEC = """
name: owls
data:
  model: sentence-transformers/all-MiniLM-L6-v2
  dataset: {path: json, data_files: owls.jsonl, text_column: text, label_column: kind}
  num_examples: 5_000
sae: [{type: topk, k: [4, 8], dict_size: 128}]
train: {samples: 36_000, batch_size: 100, lr: 1e-3}
search: {sampler: grid}
run: {devices: cpu, per_device: 1}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """1,000 rows: 900 texts, 90 of them again, 6 empty, 4 numbers."""
    rows: list[dict[str, Any]] = [{"text": f"owl  number {i}", "kind": "bird"} for i in range(900)]
    rows += rows[:90] + [{"text": " ", "kind": "bird"}] * 6 + [{"text": 5, "kind": "bird"}] * 4
    (tmp_path / "owls.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "owls.yaml").write_text(SPEC)
    return tmp_path / "owls.yaml"


def plan(spec: Path, *more: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["plan", str(spec), "--no-measure", *more])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_local_files_are_read(spec: Path, minilm_path: str) -> None:
    assert minilm_path
    said = plan(spec)
    found = json.loads(CliRunner().invoke(cli, ["plan", str(spec), "--no-measure", "--json"]).output)["texts"]
    assert found["look"]["counts"] == {"read": 1000, "kept": 900, "duplicate": 90, "empty": 6, "non_string": 4}
    assert found["train"] + found["validation"] + found["test"] == 900
    assert f"texts 900: {found['train']} to train on" in said
    assert "num_examples is 5,000, but there are no more than 900" in said
    assert "of 1,000 rows read, left out: 90 duplicates, 6 empty, 4 not text" in said
    assert 'first: "owl number 0" (kind: bird)' in said
    epochs = 36_000 / found["train"]
    assert f"warning {epochs:,.0f} epochs, 128 latents for {found['train']} training texts: an SAE may memorise" in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.dataset.data_files=nothing.jsonl", "nothing.jsonl"),
        ("data.dataset.text_column=abstract", "text_column: abstract: no such column (there are: text, kind)"),
    ],
)
def test_what_a_sweep_would_refuse_plan_refuses(spec: Path, setting: str, said: str) -> None:
    result = CliRunner().invoke(cli, ["plan", str(spec), "--no-measure", "--set", setting])
    assert result.exit_code == 1
    assert said in str(result.exception)


@pytest.mark.parametrize(
    ("dict_size", "samples", "word"), [(128, 36_000, "may"), (512, 36_000, "will"), (128, 8000, ""), (32, 36_000, "")]
)
def test_who_will_memorise(spec: Path, dict_size: int, samples: int, word: str) -> None:
    """About 810 training texts: 44 epochs of 6.3 texts per latent, of 1.6; 10 epochs at most; 25 texts per latent."""
    more = [f"sae[0].dict_size={dict_size}", f"train.samples={samples}"]
    found = make_plan(load_spec(spec, more), 384)
    lines = outlook.memorising(found, outlook.Corpus(810, 30, 60))
    assert len(lines) == bool(word)
    assert f"an SAE {word} memorise" in (lines or ["an SAE  memorise"])[0]


@pytest.mark.parametrize(
    ("points", "refine", "said"),
    [
        (2, 4, "2 points in a stratum for lr: the best setting takes 3 or more to locate, so the verdict will decide"),
        (4, 2, "4 points and at most 2 more around the best one in a stratum for lr: hardly enough to locate"),
        (4, 4, ""),
    ],
)
def test_points_too_few_for_a_verdict(spec: Path, points: int, refine: int, said: str) -> None:
    """lr over a factor of 20: ln 20 / ln 1.5 = 7.4, eight points locate the best one; two points are never refined."""
    more = ["train.lr={low: 1e-3, high: 2e-2, log: true}", "search.sampler=qmc", f"search.points={points}"]
    found = make_plan(load_spec(spec, [*more, f"search.refine={refine}"]), 384)
    lines = list(decidable.too_few_points(found))
    assert len(lines) == bool(said)
    assert not said or (lines[0].startswith(said) and lines[0].endswith("set search.points to about 8"))


def test_plan_and_the_search_agree_on_too_few_points(spec: Path) -> None:
    """What the warning says of two points is what the search records of them: no gap, eight points needed."""
    more = ["train.lr={low: 1e-3, high: 2e-2, log: true}", "search.sampler=qmc", "search.points=2"]
    ranges = make_plan(load_spec(spec, more), 384).strata[0].ranges
    choice = response.choose([response.Measured((0.2,), 0.5), response.Measured((0.6,), 0.4)], ranges)
    assert (choice.gap, choice.needed) == (float("inf"), 8)


@pytest.mark.parametrize(("seeds", "lr", "warned"), [("[0, 1]", "[1e-3, 2e-3]", True), ("[0, 1]", "1e-3", False),
                                                     ("[0, 1, 2]", "[1e-3, 2e-3]", False)])  # fmt: skip
def test_seeds_too_few_for_an_interval(spec: Path, seeds: str, lr: str, warned: bool) -> None:
    """A seed that searched does not compare; where nothing is searched, every seed does."""
    found = make_plan(load_spec(spec, [f"seeds={seeds}", f"train.lr={lr}"]), 384)
    assert bool(list(decidable.too_few_seeds(found))) == warned


def test_test_texts_too_few(spec: Path, minilm_path: str) -> None:
    """Counted in the file; of a data set on the hub, as many as the spec asks for: 5,000 x 0.1, 20,000 x 0.1."""
    assert minilm_path
    test = json.loads(CliRunner().invoke(cli, ["plan", str(spec), "--no-measure", "--json"]).output)["texts"]["test"]
    assert f"warning {test} test texts: with fewer than 1,000 the noise of the texts is large" in plan(spec)
    hub = ["data.dataset={path: some/corpus, split: train}", "data.holdout={validation: 0.05, test: 0.1}"]
    (few,) = decidable.too_few_texts(make_plan(load_spec(spec, hub), 384), None)
    assert few.startswith("about 500 test texts: ")
    assert not [*decidable.too_few_texts(make_plan(load_spec(spec, [*hub, "data.num_examples=20_000"]), 384), None)]


def test_a_sweep_of_that_name_is_compared(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = SweepPaths(tmp_path / "runs" / "owls")
    loaded = load_spec(spec)
    assert outlook.existing(loaded, paths) is None
    paths.root.mkdir(parents=True)
    paths.lock.write_text(json.dumps({"spec": loaded.plain(), "d_in": 384}))
    assert (
        outlook.existing(loaded, paths) == "runs/owls exists with this spec (0 trials begun): saebench sweep resumes it"
    )
    more = outlook.existing(load_spec(spec, ["seeds=[0, 1]"]), paths)
    assert more == (
        "runs/owls exists with less (seeds: [0], now [0, 1]): saebench sweep --extend applies the change to it"
    )
    other = outlook.existing(load_spec(spec, ["train.lr=2e-3"]), paths)
    assert other is not None
    assert other.startswith(
        "runs/owls exists with another spec (train.lr: 0.001, now 0.002): give this one another name"
    )


def test_minutes_are_those_of_every_trial(spec: Path, monkeypatch: pytest.MonkeyPatch, minilm_path: str) -> None:
    """A millisecond per example: 2 trials of 36,000 examples, 20 evaluations of 300 texts at a third, 2 s to start:
    40 s each, one at a time; 1,000 texts at 10 ms."""
    assert minilm_path
    asked: list[Any] = []

    def fake(*arguments: Any) -> Measured:
        asked.append(arguments)
        return Measured([0.001], 0.01)

    monkeypatch.setattr(measure, "measure", fake)
    found = make_plan(load_spec(spec), 384)
    look = outlook.corpus(load_spec(spec), {"cached": False})
    assert look is not None
    assert look.look is not None
    time = outlook.minutes(found, outlook.Corpus(640, 300, 60, look.look), cached=False)
    assert time is not None
    assert time.trial == pytest.approx(2 + 36 + 20 * 300 / 3 / 1000)
    assert time.total == pytest.approx(10 + 2 * 40)
    head, _, rest = outlook.about_time(time).partition("): ")
    assert re.fullmatch(r"at most about 2 min \(started now, done around \d\d:\d\d", head)
    assert rest == "encoding 10 s, 2 trials of 40 s one at a time on cpu"
    ((config,), width, device, threads, texts) = asked[0]
    assert (config.sae.dict_size, width, device, threads >= 1, len(texts)) == (128, 384, "cpu", True, 23)


@pytest.mark.slow
def test_a_step_and_the_encoding_of_a_text_are_measured(spec: Path, minilm_path: str) -> None:
    assert minilm_path
    config = make_plan(load_spec(spec), 384).trial(make_plan(load_spec(spec), 384).strata[0], {}, 0, 0)
    found = measure.measure([config], 384, "cpu", 1, ["an owl", "another"])
    assert found is not None
    assert 0 < found.examples[0] < 1
    assert found.text is not None
    assert 0 < found.text < 60
    assert measure.measure([config], 384, "no such device", 1) is None


def test_own_embeddings_are_not_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((600, 32)).astype("f4"))
    (tmp_path / "own.yaml").write_text(
        "name: own\ndata: {embeddings: v.npy}\nsae:\n  - {type: topk, k: 4, dict_size: 64}\ntrain: {samples: 2000}\n"
    )
    show_plan(load_spec(tmp_path / "own.yaml", []), str(tmp_path), str(tmp_path / "cache"), measured=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "encode nothing: 600 rows of " in said
    assert (
        "v.npy (width 32, 0.1 MB) are mapped in place, or copied once, if their layout needs it; not cached yet ("
        in said
    )
