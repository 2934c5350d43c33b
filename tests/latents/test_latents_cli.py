"""latents and encode: from the command line to tables and files."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from latents.planted import NAMES, TOPICS, PlantedModel, data_config, planted_sae, texts, trial_config, write_trial
from scipy.sparse import load_npz

from saebench.cli import cli
from saebench.config import TrialConfig
from saebench.errors import UserError
from saebench.latents import Encoder, analyse
from saebench.latents.trial import open_trial
from saebench.latents.visible import visible
from saebench.runs.paths import TrialPaths, cache_dir
from saebench.stores import cache


def call(tmp_path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--runs-dir", str(tmp_path / "runs")])


def done(tmp_path: Path, *arguments: object) -> Result:
    result = call(tmp_path, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refused(tmp_path: Path, *arguments: object) -> str:
    result = call(tmp_path, *arguments)
    assert isinstance(result.exception, UserError), result.output + repr(result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_every_format_has_a_row_per_live_latent(trial: TrialPaths, tmp_path: Path) -> None:
    rows = json.loads(done(tmp_path, "latents", "demo/0", "--format", "json").stdout)
    assert (rows["format"], rows["version"], rows["dict_size"]) == ("saebench.latents", 1, 24)
    live = len(rows["latents"])
    water = next(latent for latent in rows["latents"] if latent["latent"] == 0)
    assert {keyword["term"] for keyword in water["keywords"][:5]} <= set(TOPICS["water"])
    assert len(water["deciles"]) == 10
    assert water["top"][0]["activation"] == pytest.approx(water["max"], abs=1e-6)
    done(tmp_path, "latents", trial.root, "--out", tmp_path / "l.csv")
    frame = pd.read_csv(tmp_path / "l.csv")
    assert len(frame) == live
    assert {"latent", "keywords", "density", "label", "family", "found_by_other_seeds", "twin"} <= set(frame.columns)
    done(tmp_path, "latents", "demo/0", "--out", tmp_path / "l.parquet")
    assert len(pd.read_parquet(tmp_path / "l.parquet")) == live
    for suffix, begins in ((".md", "## Latents"), (".tex", "\\begin{longtable}"), (".html", "<!DOCTYPE html>")):
        done(tmp_path, "latents", "demo/0", "--out", tmp_path / f"l{suffix}")
        assert (tmp_path / f"l{suffix}").read_text("utf-8").startswith(begins)
    assert "Latents" in done(tmp_path, "latents", "demo/0").stdout
    assert "demo/0" in done(tmp_path, "latents", "demo/0", "--table", "trials").stdout


def test_a_sentence_of_ones_own(trial: TrialPaths, tmp_path: Path) -> None:  # noqa: ARG001 - on disk
    result = done(tmp_path, "latents", "demo/0", "--text", "violin sonata chord \x1b[2J")
    assert "\x1b" not in result.stdout
    assert "Texts that share most of it" in result.stdout
    assert any(word in result.stdout for word in TOPICS["music"])
    done(tmp_path, "latents", "demo/0", "--text", "violin sonata", "--out", tmp_path / "p.html")
    assert '"fired":[{"text":"violin sonata"' in (tmp_path / "p.html").read_text("utf-8")


def test_scores_and_labels(trial: TrialPaths, tmp_path: Path) -> None:  # noqa: ARG001 - on disk
    out = tmp_path / "scores.json"
    done(tmp_path, "latents", "demo/0", "--table", "scores", "--second", "second", "--out", out)
    rows = {row["score"]: row for row in json.loads(out.read_text())}
    assert rows["example_auroc"]["value"] > 0.5
    assert all(row["random"] is not None and row["raw"] is not None and row["pca"] is not None for row in rows.values())
    assert len(rows["example_auroc"]["deciles"]) == 10
    judged = done(tmp_path, "latents", "demo/0", "--table", "judged", "--second", "second", "--format", "json").stdout
    assert {"latent", "coherence", "example_auroc"} <= json.loads(judged)[0].keys()
    assert "random 0." in done(tmp_path, "latents", "demo/0", "--table", "judged").stdout
    assert "was trained on" in refused(tmp_path, "latents", "demo/0", "--table", "scores", "--second", "planted")
    done(tmp_path, "latents", "demo/0", "--table", "scores", "--second", "planted", "--circular-anyway")
    done(tmp_path, "latents", "demo/0", "--table", "labels", "--out", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == set(NAMES)


def test_what_cannot_be_shown_is_one_line(trial: TrialPaths, tmp_path: Path) -> None:
    assert "demo/7: no such trial" in refused(tmp_path, "latents", "demo/7")
    assert "no sweeps" in refused(tmp_path, "latents") or "tracking.json" in refused(tmp_path, "latents")
    assert "no config.json" not in refused(tmp_path, "latents", "nowhere")
    (trial.sae / "sae.safetensors").unlink()
    assert "no sae.safetensors: the trial has not ended" in refused(tmp_path, "latents", "demo/0")


# --- encode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
def test_files_of_codes_hold_what_encode_gives(
    trial: TrialPaths, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.latents.encode.Encoder.stream.__defaults__", (16,))
    rows = [row["text"] for row in texts(50, seed=9)]
    rows[5] = ""
    source, out = tmp_path / "in.txt", tmp_path / "deep" / f"codes{suffix}"
    source.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    assert "50 texts" in done(tmp_path, "encode", "demo/0", "--file", source, "--out", out).stderr
    expected = Encoder(open_trial(trial.root)).encode(rows).dense()
    found = np.zeros_like(expected)
    if suffix == ".npz":
        found = load_npz(out).toarray()
    else:
        read = pq.read_table(out).to_pylist() if suffix == ".parquet" else map(json.loads, out.read_text().splitlines())
        for row in read:
            found[row["row"], row["latents"]] = row["values"]
    assert np.array_equal(found, expected)
    assert not expected[5].any()
    assert [path.name for path in out.parent.iterdir()] == [out.name], "nothing is left beside it"


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_shows_keywords_and_texts_however_narrow_it_is(
    trial: TrialPaths,  # noqa: ARG001 - on disk
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    """COLUMNS decides where the output is a pipe; labels and seeds give way before the texts do."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = done(tmp_path, "latents", "demo/0").stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    head = " ".join(lines[:6])
    assert all(title in head for title in ("latent", "keywords", "text that fires it most"))
    assert ("label" in head) == (width == 160)
    left_out = " ".join(" ".join(lines).split()).partition("No room here for: ")[2]
    assert ("label" in left_out) == (width == 80)
    assert "nearest" in left_out


def test_a_text_is_cut_between_words() -> None:
    assert visible("a river that floods its valley", 20) == "a river that floods …"
    assert visible("a river that floods its valley", 18) == "a river that …"
    assert visible("x" * 40, 20) == "x" * 19 + "…"
    assert visible("short", 20) == "short"


def test_texts_of_the_sweep_come_from_its_cache(
    trial: TrialPaths, config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are known: they get the very codes of the trial's own evaluation, and are not encoded again."""
    entry = cache.find(config.data, cache_dir())
    assert entry is not None
    write_trial(tmp_path / "runs", config.model_copy(update={"cache_key": entry.cache_key}), planted_sae())
    one, encoded = analyse(trial.root), list[str]()
    model_row = PlantedModel.row
    monkeypatch.setattr(PlantedModel, "row", lambda self, text: encoded.append(text) or model_row(self, text))
    assert one.part.texts is not None
    known = [one.part.texts[i] for i in (7, 3)]
    source, out = tmp_path / "in.txt", tmp_path / "c.npz"
    source.write_text("\n".join([known[0], "a river that is new", f"  {known[1]}"]), encoding="utf-8")
    said = done(tmp_path, "encode", "demo/0", "--file", source, "--out", out).stderr
    assert "3 texts, 2 of them from the embedding cache" in said
    assert "a river that is new" in encoded
    assert not set(known) & set(encoded)
    assert np.array_equal(load_npz(out).toarray()[[0, 2]], one.codes.dense()[[7, 3]])
    encoded.clear()
    said = done(tmp_path, "encode", "demo/0", "--file", source, "--out", out, "--cache-dir", tmp_path / "none").stderr
    assert set(known) <= set(encoded)
    assert "(3 texts)" in said


def test_encode_shows_rate_and_time_left_on_a_terminal(
    trial: TrialPaths,  # noqa: ARG001 - on disk
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saebench.latents.encode.Encoder.stream.__defaults__", (16,))
    monkeypatch.setenv("COLUMNS", "120")
    encode, now = import_module("saebench.cli.encode"), iter(range(1000))
    monkeypatch.setattr(encode, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    terminal = StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    source, out = tmp_path / "in.txt", tmp_path / "c.npz"
    source.write_text("".join(f"{row['text']}\n" for row in texts(50, seed=9)), encoding="utf-8")
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    encode.encode.callback("demo/0", (), source, None, out, "cpu", None, str(tmp_path / "runs"))
    shown = terminal.getvalue()
    assert "loading the encoder" in shown
    assert "encoding: 16 of 50 texts, 8 a second, about 4 s left" in shown
    assert "encoding: 50 of 50 texts" in shown


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_texts_come_from_files_with_columns(trial: TrialPaths, tmp_path: Path, kind: str) -> None:  # noqa: ARG001 - on disk
    frame = pd.DataFrame({"body": ["river flood", 'with "quotes",\nand lines', "violin"], "n": [1, 2, 3]})
    source = tmp_path / f"in.{kind}"
    if kind == "jsonl":
        frame.to_json(source, orient="records", lines=True)
    else:
        frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    out = tmp_path / "c.jsonl"
    assert "'text'" in refused(tmp_path, "encode", "demo/0", "--file", source, "--out", out)
    done(tmp_path, "encode", "demo/0", "--file", source, "--column", "body", "--out", out)
    assert len(out.read_text().splitlines()) == 3
    if kind != "csv":
        said = refused(tmp_path, "encode", "demo/0", "--file", source, "--column", "n", "--out", tmp_path / "d.jsonl")
        assert "row 1: n: int, expected a text" in said
        assert not (tmp_path / "d.jsonl").exists()


def test_encode_says_what_it_needs(trial: TrialPaths, tmp_path: Path) -> None:  # noqa: ARG001 - on disk
    assert "one of the two" in refused(tmp_path, "encode", "demo/0")
    assert "--file needs --out" in refused(tmp_path, "encode", "demo/0", "--file", tmp_path / "x.txt")
    assert "unknown suffix" in refused(tmp_path, "encode", "demo/0", "--text", "x", "--out", "x.txt")
    out = tmp_path / "c.npz"
    assert "no such file" in refused(tmp_path, "encode", "demo/0", "--file", tmp_path / "x.txt", "--out", out)
    assert "not a trial" in refused(tmp_path, "encode", "demo", "--text", "x")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnot json\n')
    said = refused(tmp_path, "encode", "demo/0", "--file", tmp_path / "bad.jsonl", "--out", out)
    assert "bad.jsonl:2: not JSON" in said
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(tmp_path, "encode", "demo/0", "--file", tmp_path / "bad.txt", "--out", out)
    assert not out.exists()


def test_a_text_on_the_command_line_is_answered_in_lines(trial: TrialPaths, tmp_path: Path) -> None:  # noqa: ARG001 - on disk
    lines = done(tmp_path, "encode", "demo/0", "--text", "river flood canal").stdout.splitlines()
    assert lines[0].startswith("river flood canal: ")
    assert lines[1].split()[0] == "0"


def test_what_is_not_there_is_a_dash_or_a_sentence(config: TrialConfig, tmp_path: Path) -> None:
    """A latent that no label goes with, and an SAE that nothing fires, whose tables of scores are empty."""
    sae = planted_sae()
    sae.b_enc[10:] = 0.5  # fires on everything
    write_trial(tmp_path / "runs", config, sae)
    shown = done(tmp_path, "latents", "demo/0").stdout
    assert "nan" not in shown
    sae.b_enc.fill_(-1e6)
    write_trial(tmp_path / "runs", config.model_copy(update={"number": 1}), sae)
    for table in ("scores", "judged"):
        shown = " ".join(done(tmp_path, "latents", "demo/1", "--table", table).stdout.split())
        assert "A score needs latents that fire on 5 texts or more, and texts, labels or --second MODEL." in shown


@pytest.mark.usefixtures("models")
def test_a_label_does_not_steer_the_terminal(tmp_path: Path) -> None:
    rows = [row | {"label": row["label"].replace("music", "mu\x1b[2Jsic")} for row in texts(600)]
    config = trial_config(data_config(tmp_path, rows))
    cache.build(config.data, cache_dir())
    write_trial(tmp_path / "runs", config, planted_sae())
    for table in ("labels", "latents"):
        shown = done(tmp_path, "latents", "demo/0", "--table", table).stdout
        assert "\x1b" not in shown
        assert "mu\\x1b[2Jsic" in "".join(shown.split())
