"""saebench cache ls | build | verify | gc."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from corpora import sentences

from saebench.cli import cli
from saebench.config import DataConfig
from saebench.errors import DataError, UserError
from saebench.stores import cache

pytestmark = pytest.mark.usefixtures("inline")

SPEC = """
name: small
data:
  model: hash-model
  dataset: {path: json, data_files: t.jsonl, text_column: text}
  num_examples: 100
sae: [{type: topk, k: 4, dict_size: 32}]
train: {samples: 1000, batch_size: 16}
run: {devices: cpu}
"""


@pytest.fixture
def saebench(cache_dir: Path) -> Callable[..., Result]:
    """Run `saebench cache ...` on the test's cache."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["cache", *arguments, "--cache-dir", str(cache_dir)])

    return run


@pytest.fixture
def built(corpus: Callable[..., DataConfig], cache_dir: Path) -> cache.CacheEntry:
    """Nobody reads it any more."""
    return replace(cache.build(corpus(sentences(60)), cache_dir), hold=None)


def test_build_encodes_the_corpus_of_a_spec_once(
    tmp_path: Path, corpus: Callable[..., DataConfig], saebench: Callable[..., Result]
) -> None:
    corpus(sentences(150))
    (tmp_path / "spec.yaml").write_text(SPEC)
    result = saebench("build", str(tmp_path / "spec.yaml"), "--set", "data.num_examples=80")
    assert result.exit_code == 0, result.output
    assert "80 texts (" in result.stdout
    assert "texts: 0 of 80" in result.stderr
    again = saebench("build", str(tmp_path / "spec.yaml"), "--set", "data.num_examples=80")
    assert (again.stdout, again.stderr) == (result.stdout, "")


def test_build_tells_what_it_skipped(
    tmp_path: Path, corpus: Callable[..., DataConfig], saebench: Callable[..., Result]
) -> None:
    corpus([*sentences(60), sentences(60)[0], *({"text": text} for text in (None, " ", ""))])
    (tmp_path / "spec.yaml").write_text(SPEC)
    result = saebench("build", str(tmp_path / "spec.yaml"))
    assert result.stdout.splitlines()[1:] == ["of 64 rows read, left out: 1 equal to an earlier text, 3 empty"]


def test_gc_says_that_an_entry_is_in_use(saebench: Callable[..., Result], corpus: Callable[..., DataConfig]) -> None:
    folder = Path(str(saebench("ls").stdout.split(" in ")[-1].strip()))
    entry = cache.build(corpus(sentences(60)), folder)
    assert saebench("gc", entry.cache_key).stdout.splitlines() == [
        f"embeddings/{entry.cache_key}: 0 B: kept: a process is using it",
        "0 B freed",
    ]
    assert entry.directory.exists()


def test_ls_shows_entries_with_their_sizes(saebench: Callable[..., Result], built: cache.CacheEntry) -> None:
    [row] = json.loads(saebench("ls", "--json").stdout)
    size = sum(path.stat().st_size for path in built.directory.rglob("*"))
    assert row["counts"] == {"read": 60, "kept": 60, "duplicate": 0, "empty": 0, "non_string": 0}
    assert (row["key"], row["texts"], row["d_in"], row["bytes"], row["state"]) == (
        built.cache_key,
        60,
        8,
        size,
        "complete",
    )
    lines = saebench("ls").stdout.splitlines()
    assert built.cache_key in lines[1]
    assert "hash-model" in lines[1]
    assert lines[2].startswith("1 entry, ")


def test_ls_tells_entries_of_the_same_texts_apart(
    saebench: Callable[..., Result], corpus: Callable[..., DataConfig], cache_dir: Path
) -> None:
    for changes in ({}, {"normalize": True, "precision": "bfloat16"}, {"prompt": "query: ", "max_seq_length": 64}):
        cache.build(corpus(sentences(20), **changes), cache_dir)
        wide = "settings" in saebench("ls").stdout
        assert wide == bool(changes), "no column where there is nothing to say"
    told = {row["settings"] for row in json.loads(saebench("ls", "--json").stdout)}
    assert told == {"", "normalize, precision bfloat16", "prompt query: , max_seq_length 64"}
    assert all(words in saebench("ls").stdout for words in told)


@pytest.mark.parametrize("width", [70, 80, 100, 400])
def test_ls_fits_the_terminal_that_it_is_seen_in(
    saebench: Callable[..., Result], built: cache.CacheEntry, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Names wrap, and what tells least is left out; nothing is, where there is room or no terminal."""
    piped = saebench("ls").stdout.splitlines()[:-1]
    monkeypatch.setattr("saebench.cli.cache._width", lambda: width)
    shown = saebench("ls").stdout.splitlines()[:-1]
    if width == 400:
        assert shown == piped
        return
    assert max(len(line.rstrip()) for line in shown) <= width < max(map(len, piped))
    assert shown[1].startswith(built.cache_key)
    assert "complete" in shown[1]
    where = piped[1].split("  ")[2].replace(" ", "")
    assert where.startswith("/")
    start = shown[0].index("dataset")
    assert "".join(line[start:].split("  ")[0] for line in shown[1:]).replace(" ", "") == where


def test_an_empty_cache_has_no_entries(saebench: Callable[..., Result]) -> None:
    assert saebench("ls").stdout.splitlines()[-1].startswith("0 entries, 0 B in ")
    assert saebench("verify").exit_code == 0


def test_verify_names_the_damaged_file(saebench: Callable[..., Result], built: cache.CacheEntry) -> None:
    assert saebench("verify").stdout == f"{built.cache_key}: sound\n"
    victim = next(built.directory.glob("*-rows-*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x77")
    result = saebench("verify")
    assert f"  {victim.name}: the content has another checksum" in result.stdout
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "1 damaged file; the next sweep repairs those in the cache"


def test_gc_removes_what_is_named_and_only_says_so_in_a_dry_run(
    saebench: Callable[..., Result], built: cache.CacheEntry
) -> None:
    dry = saebench("gc", built.cache_key[:6], "--dry-run").stdout
    assert f"embeddings/{built.cache_key}: " in dry
    assert "would be freed" in dry
    assert built.directory.exists()
    assert saebench("gc").stdout == "0 B freed\n"
    assert saebench("gc", built.cache_key[:6]).exit_code == 0
    assert not built.directory.exists()
    assert isinstance(saebench("gc", "nothing").exception, UserError)
