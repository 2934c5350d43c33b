"""Cleaning, telling apart and holding out texts."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from corpora import sentences
from hypothesis import given
from hypothesis import strategies as st

from saebench.config import DatasetConfig
from saebench.errors import DataError
from saebench.hub import dataset_out_of_reach
from saebench.stores import loading as module
from saebench.stores.dataset import stream
from saebench.stores.texts import Counts, clean, hash_text, select, threshold


@pytest.mark.parametrize(
    ("raw", "cleaned"), [("  a\t\nb  ", "a b"), ("a\u00a0b", "a b"), ("\ud800x", "?x"), (" \n", ""), ("é", "é")]
)
def test_whitespace_is_one_space_and_surrogates_are_question_marks(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=4))), st.integers(1, 10))
def test_every_row_is_accounted_for(values: list[object], cap: int) -> None:
    counts = Counts()
    kept = [text.text for text in select(((value, None) for value in values), counts, cap)]
    assert counts.read == counts.kept + counts.duplicate + counts.empty + counts.non_string
    assert len(kept) == counts.kept == len(set(kept)) <= cap
    distinct = list(dict.fromkeys(clean(v) for v in values if isinstance(v, str) and clean(v)))
    assert kept == distinct[:cap]


def test_the_stream_is_not_read_beyond_the_cap() -> None:
    rows = iter([("a", 1), ("b", 2), ("c", 3)])
    assert [(text.text, text.label) for text in select(rows, Counts(), 2)] == [("a", 1), ("b", 2)]
    assert next(rows) == ("c", 3)


def test_the_share_held_out_is_the_share_of_hashes_below_the_threshold() -> None:
    """5,000 texts at 0.1: 500 expected, standard deviation sqrt(5000 * 0.1 * 0.9) = 21."""
    hashes = [hash_text(text) for text in sentences(5_000)]
    assert abs(sum(h < threshold(0.1) for h in hashes) - 500) < 85
    assert threshold(0.0) == 0
    assert all(h < 2**64 for h in hashes)
    held = [h for h in hashes if h < threshold(0.1)]
    assert all(h < threshold(0.2) for h in held), "a larger hold-out contains a smaller one"


def test_the_hash_of_a_text_never_changes() -> None:
    """BLAKE2b-128 of the UTF-8, first 8 bytes, big-endian: entries and splits of earlier versions rest on it."""
    assert hash_text("abc") == 0xCF4AB791C62B8D2B


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a hub that does not answer; the local caches are empty."""
    from datasets import config
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return url


@pytest.mark.parametrize("name", ["fancyzhx/agg_news", "imdbb"])
def test_without_a_network_a_dataset_that_is_not_cached_is_refused_at_once(
    nobody: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(DataError, match=rf"^dataset {name} \[train\]: .* \({nobody}\) cannot be reached: .*refused"):
        next(stream(DatasetConfig(path=name)))
    assert slept == []


@pytest.mark.parametrize("cached", ["hub/datasets--org--MyTexts", "datasets/org___my_texts"])
def test_a_dataset_that_a_cache_may_hold_is_left_to_the_loader(nobody: str, cached: str, tmp_path: Path) -> None:
    (tmp_path / cached).mkdir(parents=True)
    assert dataset_out_of_reach("org/MyTexts") is not None, nobody
    module._refuse_out_of_reach(DatasetConfig(path="org/MyTexts"))


def test_folders_and_formats_need_no_hub(nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError(nobody)

    monkeypatch.setattr(module, "dataset_out_of_reach", ask)
    (tmp_path / "own" / "texts").mkdir(parents=True)
    (tmp_path / "own" / "texts" / "a.csv").write_text("text\na cat\n")
    monkeypatch.chdir(tmp_path)
    for path, files in (("own/texts", None), (str(tmp_path / "own" / "texts"), None), ("csv", "own/texts/a.csv")):
        assert list(stream(DatasetConfig(path=path, data_files=files))) == [("a cat", None)]


def test_a_file_in_the_place_of_its_format_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na cat\n")
    with pytest.raises(DataError, match=r"a\.csv \[train\]: a file; `path` names its format") as raised:
        next(stream(DatasetConfig(path=str(tmp_path / "a.csv"))))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_called_like_a_format_is_not_in_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csv").write_text("text\na cat\n")
    monkeypatch.chdir(tmp_path)
    assert list(stream(DatasetConfig(path="csv", data_files="csv"))) == [("a cat", None)]


def test_a_column_may_be_text_and_label(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a cat", "a dog"], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    dataset = DatasetConfig(path="parquet", data_files=str(tmp_path / "a.parquet"), label_column="text")
    assert list(stream(dataset)) == [("a cat", "a cat"), ("a dog", "a dog")]
