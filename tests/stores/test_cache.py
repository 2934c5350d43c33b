"""The embedding cache: what an entry holds, what makes another one, and what survives accidents."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from corpora import HashModel, sentences, tree
from filelock import FileLock

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores import build, cache, encoder_pool, in_use, open_store, tidy
from saebench.stores.progress import Progress
from saebench.stores.texts import hash_text, threshold

pytestmark = pytest.mark.usefixtures("inline")

Corpus = Callable[..., DataConfig]


def rows_of(entry: cache.CacheEntry) -> np.ndarray[Any, Any]:
    return np.concatenate(entry.rows())[: entry.count]


def expected(texts: list[str], model: HashModel) -> np.ndarray[Any, Any]:
    return torch.stack([model.row(text) for text in texts]).numpy()


@pytest.mark.usefixtures("small_pieces")
def test_an_entry_holds_every_distinct_text_in_the_order_of_the_stream(
    corpus: Corpus, cache_dir: Path, inline: HashModel
) -> None:
    texts = sentences(300)
    data = corpus([*texts[:200], *texts[50:150], *texts[200:]])
    assert cache.find(data, cache_dir) is None
    entry = cache.build(data, cache_dir)
    assert (rows_of(entry) == expected(texts, inline)).all()
    assert [text.text for text in entry.texts()] == texts
    assert (entry.count, entry.d_in, entry.info["duplicate"], entry.info["read"]) == (300, 8, 100, 400)
    assert sorted(p.name for p in entry.directory.iterdir()) == sorted(entry.manifest.names())


def test_the_part_is_decided_by_the_text_alone(corpus: Corpus, cache_dir: Path) -> None:
    """The same texts, shuffled and with duplicates, are in the same part; about the share that was asked for. Of 2,000
    texts 400 are held out: a third for validation, two thirds for test."""
    texts = sentences(2_000)
    entries = [
        cache.build(corpus(rows, name, holdout=0.2), cache_dir)
        for name, rows in (("a.jsonl", texts), ("b.jsonl", [*texts[1_000:], *texts[::-1]]))
    ]
    for entry in entries:
        everything = [text.text for text in entry.texts()]
        found = {part: {everything[i] for i in entry.index_of(part)} for part in ("train", "validation", "test")}
        cut, end = threshold(0.2 * 2 / 3), threshold(0.2)
        assert found["test"] == {text for text in texts if hash_text(text) < cut}
        assert found["validation"] == {text for text in texts if cut <= hash_text(text) < end}
        assert found["train"] == {text for text in texts if hash_text(text) >= end}
        assert (len(found["validation"]), len(found["test"])) == (entry.num_validation, entry.num_test)
        assert abs(entry.num_validation - 133) < 50
        assert abs(entry.num_test - 267) < 70


def test_unusable_texts_are_skipped_and_counted(corpus: Corpus, cache_dir: Path) -> None:
    rows: list[Any] = ["one", None, "", "  \t\n ", " one ", "two\n words", "x" * 1_000_000]
    data = corpus([{"text": row} for row in rows])
    entry = cache.build(data, cache_dir)
    kept = [text.text for text in entry.texts()]
    assert kept == ["one", "two words", "x" * 1_000_000]
    counts = {key: entry.info[key] for key in ("read", "kept", "duplicate", "empty", "non_string")}
    assert counts == {"read": 7, "kept": 3, "duplicate": 1, "empty": 3, "non_string": 0}


def test_values_that_are_not_strings_are_skipped_and_counted(tmp_path: Path, corpus: Corpus, cache_dir: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"text": "word", "n": 1}\n{"text": "other", "n": 2}\n')
    data = corpus([], dataset={"path": "json", "data_files": str(path), "text_column": "n"})
    with pytest.raises(DataError, match=r"no text \(2 rows read: 0 empty, 2 not strings\)"):
        cache.build(data, cache_dir)


def test_the_cap_counts_distinct_texts(corpus: Corpus, cache_dir: Path) -> None:
    texts = sentences(50)
    entry = cache.build(corpus([*texts[:20], *texts[:20], *texts[20:]], num_examples=30), cache_dir)
    assert [text.text for text in entry.texts()] == texts[:30]


# --- one entry, many views -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
def test_growing_encodes_only_what_is_new_and_shrinking_nothing(
    corpus: Corpus, cache_dir: Path, inline: HashModel
) -> None:
    texts = sentences(400)
    small = cache.build(corpus(texts, num_examples=100), cache_dir)
    before = len(inline.seen)
    grown = cache.build(corpus(texts, num_examples=250), cache_dir)
    new = [text for text in inline.seen[before:] if text in texts]
    assert sorted(new) == sorted(texts[100:250])
    assert grown.directory == small.directory
    assert (rows_of(grown) == expected(texts[:250], inline)).all()
    found = cache.find(corpus(texts, num_examples=40), cache_dir)
    assert found is not None
    assert (found.count, found.num_train + found.num_validation + found.num_test) == (40, 40)
    assert (rows_of(small) == expected(texts[:100], inline)).all(), "an open view outlives the growth"
    everything = cache.build(corpus(texts), cache_dir)
    assert (everything.count, cache.find(corpus(texts, num_examples=999_999), cache_dir) is not None) == (400, True)


def test_another_share_of_hold_out_needs_no_encoding(corpus: Corpus, cache_dir: Path) -> None:
    texts = sentences(100)
    cache.build(corpus(texts, holdout=0.1), cache_dir)
    entry = cache.find(corpus(texts, holdout=0.5), cache_dir)
    assert entry is not None
    assert entry.num_test + entry.num_validation == sum(hash_text(text) < threshold(0.5) for text in texts)
    shares = cache.find(corpus(texts, holdout={"validation": 0.3, "test": 0.1}), cache_dir)
    assert shares is not None
    assert shares.num_test == sum(hash_text(text) < threshold(0.1) for text in texts)
    assert shares.num_validation == sum(threshold(0.1) <= hash_text(text) < threshold(0.4) for text in texts)


def test_labels_are_kept_and_asking_for_them_later_encodes_nothing(
    corpus: Corpus, cache_dir: Path, inline: HashModel
) -> None:
    texts = sentences(200)
    plain = cache.build(corpus(texts), cache_dir)
    assert plain.labels(plain.test_index) is None
    seen = len(inline.seen)
    labelled = cache.build(corpus(texts, dataset={"label_column": "label"}), cache_dir)
    assert labelled.directory == plain.directory
    assert not set(inline.seen[seen:]) & set(texts)
    assert labelled.labels(labelled.test_index) == [len(texts[i]) for i in labelled.test_index]


def test_a_finished_entry_is_found_without_reading_texts_or_loading_the_model(
    corpus: Corpus, cache_dir: Path, inline: HashModel
) -> None:
    data = corpus(sentences(50))
    cache.build(data, cache_dir)
    seen = list(inline.seen)
    reported: list[Progress] = []
    cache.build(data, cache_dir, on_progress=reported.append)
    assert (inline.seen, reported) == (seen, [])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"revision": "v2"},
        {"prompt": "query: "},
        {"normalize": True},
        {"max_seq_length": 64},
        {"dtype": "float16"},
        {"precision": "bfloat16"},
        {"dataset": {"text_column": "other"}},
        {"dataset": {"split": "test"}},
        {"dataset": {"name": "de"}},
        {"dataset": {"revision": "abc"}},
        {"dataset": {"path": "text"}},
    ],
    ids=str,
)
def test_each_field_of_the_key_makes_another_entry(corpus: Corpus, cache_dir: Path, change: dict[str, Any]) -> None:
    texts = sentences(3)
    assert cache.entry_folder(corpus(texts), cache_dir) != cache.entry_folder(corpus(texts, **change), cache_dir)


@pytest.mark.parametrize(
    "change", [{"num_examples": 7}, {"holdout": 0.3}, {"encode_batch_size": 8}, {"dataset": {"label_column": "label"}}]
)
def test_what_does_not_change_the_rows_is_not_in_the_key(
    corpus: Corpus, cache_dir: Path, change: dict[str, Any]
) -> None:
    texts = sentences(3)
    assert cache.entry_folder(corpus(texts), cache_dir) == cache.entry_folder(corpus(texts, **change), cache_dir)


def test_local_files_and_model_folders_count_by_content(corpus: Corpus, cache_dir: Path, tmp_path: Path) -> None:
    texts = sentences(5)
    here = cache.entry_folder(corpus(texts), cache_dir)
    assert cache.entry_folder(corpus(texts, "moved.jsonl"), cache_dir) == here
    assert cache.entry_folder(corpus([*texts, "more"]), cache_dir) != here
    for name, content in (("m1", "a"), ("m2", "a"), ("m3", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
    one, two, three = (
        cache.entry_folder(corpus(texts, model=str(tmp_path / name)), cache_dir) for name in ("m1", "m2", "m3")
    )
    assert one == two != three


@pytest.mark.parametrize("how", ["behind a link", "below a folder .git", "of the same size and time"])
def test_weights_that_change_in_place_make_another_entry(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, how: str
) -> None:
    cache_dir.mkdir()
    folder = tmp_path / (".git" if how == "below a folder .git" else "") / "model"
    weights = (tmp_path / "elsewhere" if how == "behind a link" else folder / "0_Transformer") / "model.safetensors"
    weights.parent.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    if how == "behind a link":
        (folder / "0_Transformer").symlink_to(weights.parent)
        (weights.parent / "loop").symlink_to(folder)
    weights.write_bytes(b"before")
    os.utime(weights, (1e9, 1e9))
    data = corpus(["a"], model=str(folder))
    before = cache.entry_folder(data, cache_dir)
    assert cache.entry_folder(data, cache_dir) == before
    weights.unlink()
    weights.write_bytes(b"after!")
    if how == "of the same size and time":
        os.utime(weights, (1e9, 1e9))
    assert cache.entry_folder(data, cache_dir) != before


@pytest.mark.parametrize("path", ["json", "pandas", "hdf5", "lance", "conll"])
def test_files_of_every_format_count_by_content(corpus: Corpus, cache_dir: Path, path: str) -> None:
    before = cache.entry_folder(corpus(["a"], dataset={"path": path}), cache_dir)
    assert cache.entry_folder(corpus(["b"], dataset={"path": path}), cache_dir) != before


def test_hidden_files_are_no_part_of_a_model(corpus: Corpus, cache_dir: Path, tmp_path: Path) -> None:
    """As `hf download --local-dir` and file managers write them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = cache.entry_folder(corpus(["a"], model=str(folder)), cache_dir)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "config.json.metadata").write_text("1763769600")
    (folder / ".DS_Store").touch()
    assert cache.entry_folder(corpus(["a"], model=str(folder)), cache_dir) == before


def test_the_digest_of_a_file_that_is_dated_ahead_is_kept_too(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir.mkdir()
    data = corpus(sentences(5))
    os.utime(tmp_path / "t.jsonl", (time.time() + 3_600,) * 2)
    before = cache.entry_folder(data, cache_dir)
    monkeypatch.setattr("saebench.stores.keys.hashlib.file_digest", lambda *_: pytest.fail("it was read again"))
    assert cache.entry_folder(data, cache_dir) == before


def test_files_are_found_at_home(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(sentences(5))
    monkeypatch.setenv("HOME", str(tmp_path))
    for files in ("~/t.jsonl", ["~/t.jsonl"]):
        at_home = corpus(sentences(5), dataset={"data_files": files})
        assert cache.build(at_home, cache_dir).cache_key == cache.build(data, cache_dir).cache_key


# --- accidents -------------------------------------------------------------------------------------------------------


def forget_checks(cache_dir: Path) -> None:
    """As after a restart of the machine: no checksum has been read."""
    for path in (cache_dir / "embeddings").glob("*.verified"):
        path.unlink()


def flip(path: Path, place: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["rows", "texts", "hashes"])
@pytest.mark.parametrize("how", ["flipped bit", "truncated", "missing"])
def test_a_damaged_file_is_noticed_and_made_again(
    corpus: Corpus, cache_dir: Path, inline: HashModel, kind: str, how: str
) -> None:
    texts = sentences(200)
    data = corpus(texts)
    entry = cache.build(data, cache_dir)
    good = tree(entry.directory)
    victim = sorted(entry.directory.glob(f"*-{kind}-*"))[1]
    if how == "flipped bit":
        flip(victim)
        forget_checks(cache_dir)
    elif how == "truncated":
        victim.write_bytes(victim.read_bytes()[:-8])
        assert cache.find(data, cache_dir) is None
    else:
        victim.unlink()
    assert next(bad for _, bad in tidy.verify(cache_dir))[0].startswith(victim.name)
    before = len(inline.seen)
    reported: list[Progress] = []
    cache.build(data, cache_dir, on_progress=reported.append)
    assert tree(entry.directory) == good
    assert any(p.warning and victim.name in p.message for p in reported)
    encoded = [text for text in inline.seen[before:] if text in texts]
    assert sorted(encoded) == (sorted(texts[64:128]) if kind == "rows" else [])


@pytest.mark.parametrize("places", [range(0, 500, 7), range(500, 1_400, 7)], ids=["first half", "second half"])
def test_no_flipped_bit_of_a_manifest_is_believed(
    corpus: Corpus, cache_dir: Path, inline: HashModel, places: range
) -> None:
    """A digit of a count is as good JSON as the digit that it was."""
    texts = sentences(20)
    data = corpus(texts)
    entry = cache.build(data, cache_dir)
    path, good = entry.directory / "manifest.json", tree(entry.directory)
    content = path.read_bytes()
    assert len(content) > places[-1]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert cache.find(data, cache_dir) is None
    before = len(inline.seen)
    reported: list[Progress] = []
    cache.build(data, cache_dir, on_progress=reported.append)
    assert [p.message for p in reported if p.warning] == [
        f"{entry.cache_key}/manifest.json is damaged: everything is read and encoded again"
    ]
    assert len([text for text in inline.seen[before:] if text in texts]) == 20
    assert tree(entry.directory) == good


@pytest.mark.parametrize("place", [8, 40, -5])
def test_damaged_hashes_never_decide_what_is_held_out(corpus: Corpus, cache_dir: Path, place: int) -> None:
    """Wherever the bit is: in the header, which NumPy would stumble over, or in a hash."""
    data = corpus(sentences(20))
    entry = cache.build(data, cache_dir)
    good = tree(entry.directory)
    flip(next(entry.directory.glob("*-hashes-*")), place)
    assert cache.find(data, cache_dir) is None
    cache.build(data, cache_dir)
    assert tree(entry.directory) == good


def test_a_warning_reaches_the_log_where_nobody_watches(
    corpus: Corpus, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = corpus(sentences(20))
    entry = cache.build(data, cache_dir)
    flip(next(entry.directory.glob("*-rows-*")))
    forget_checks(cache_dir)
    cache.build(data, cache_dir)
    assert "is damaged: 20 texts are encoded again" in caplog.text


@pytest.mark.usefixtures("small_pieces")
def test_a_changed_dataset_under_the_same_name_is_encoded_again_where_it_changed(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hub dataset without a revision may do: the key stays, the texts do not."""
    texts = sentences(150)
    key = {"format": 1, "dataset": "hub"}
    monkeypatch.setattr("saebench.stores.keys.identity_of", lambda _data, _cache: key)
    cache.build(corpus(texts, num_examples=120), cache_dir)
    changed = [*texts[:70], "a new one", *texts[71:]]
    reported: list[Progress] = []
    entry = cache.build(corpus(changed, num_examples=130), cache_dir, on_progress=reported.append)
    assert (rows_of(entry) == expected(changed[:130], inline)).all()
    assert [p.message for p in reported if p.warning] == ["the dataset has changed: 56 texts are encoded again"]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (["a"], {"dataset": {"text_column": "body"}}, "text_column: body: no such column (there are: text, label)"),
        (["a"], {"dataset": {"label_column": "y"}}, "label_column: y: no such column (there are: text, label)"),
        ([], {}, "no text (0 rows read: 0 empty, 0 not strings)"),
        ([{"text": " "}], {}, "no text (1 rows read: 1 empty, 0 not strings)"),
        (["a"], {"dataset": {"split": "tset"}}, "split: tset: files have one split, train"),
        (["a", "b nan c"], {}, "model hash-model: gives NaN or infinity for 1 texts, such as 'b nan c'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    corpus: Corpus, cache_dir: Path, rows: list[Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        cache.build(corpus(rows, **changes), cache_dir)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not [p for p in (cache_dir / "embeddings").iterdir() if p.is_dir()]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_an_empty_file_is_said_to_be_empty(corpus: Corpus, cache_dir: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"empty.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), file)
    else:
        file.touch()
    with pytest.raises(DataError, match=r"empty\.\w+ \[train\]: no text") as raised:
        cache.build(corpus(["a"], dataset={"path": kind, "data_files": str(file)}), cache_dir)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("inline")
def test_a_stream_of_duplicates_shows_progress_and_hears_stop(corpus: Corpus, cache_dir: Path) -> None:
    """Of a million equal rows one is kept: the listener is called while they are read, and may end the build."""
    seen: list[Progress] = []

    def listen(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "texts" and "rows read" in progress.message:
            raise KeyboardInterrupt

    rows = ["the same text"] * 300_000
    with pytest.raises(KeyboardInterrupt):
        cache.build(corpus(rows), cache_dir, on_progress=listen)
    assert (seen[-1].done, seen[-1].total) == (1, 1_000_000)
    assert 1 < int(seen[-1].message.split("(")[1].split()[0].replace(",", "")) < 300_000


@pytest.mark.usefixtures("small_pieces", "inline")
def test_cut_texts_are_counted_also_by_a_build_that_was_interrupted(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of a piece is in its name: a later build takes it from there."""
    from saebench.stores import tokens

    plain = tokens.Tokens.__call__

    def call(self: Any, texts: Any) -> Any:
        found = plain(self, texts)
        cut = np.array([text.endswith(("0", "5")) for text in texts])
        return tokens.Tokenised(found.lengths, cut, found.features)

    monkeypatch.setattr(tokens.Tokens, "__call__", call)
    texts = sentences(150)
    with monkeypatch.context() as patched:
        patched.setattr(build.Build, "_merge", lambda *_: (_ for _ in ()).throw(DataError("killed")))
        with pytest.raises(DataError, match="killed"):
            cache.build(corpus(texts), cache_dir)
    assert cache.build(corpus(texts), cache_dir).info["truncated"] == 30
    assert cache.build(corpus(sentences(200)[:200], "u.jsonl"), cache_dir).info["truncated"] == 40


def test_malformed_json_and_a_dataset_that_dies_half_way(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(["a"])
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    with pytest.raises(DataError, match=r"t\.jsonl \[train\]: line 2: not JSON: "):
        cache.build(data, cache_dir)

    (tmp_path / "t.csv").write_text("text\na\n")
    data = corpus(["a"], dataset={"path": "csv", "data_files": str(tmp_path / "t.csv")})

    class Dying:
        column_names = None

        def __iter__(self) -> Any:
            yield from ({"text": text} for text in sentences(30))
            raise ConnectionResetError("the line went dead")

    monkeypatch.setattr("saebench.stores.loading._open", lambda *_: (Dying(), [], "csv"))
    with pytest.raises(DataError, match="failed after 30 rows: the line went dead"):
        cache.build(data, cache_dir)
    assert not [p for p in (cache_dir / "embeddings").iterdir() if p.is_dir()]


def test_a_file_that_changes_while_it_is_read_is_refused(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry would hold other texts than those of the content it is named by."""
    data, plain = corpus(sentences(30)), build.Build._read

    def reads(self: build.Build, *args: Any) -> Any:
        found = plain(self, *args)
        with (tmp_path / "t.jsonl").open("a") as file:
            file.write('{"text": "one more"}\n')
        return found

    with monkeypatch.context() as patched:
        patched.setattr(build.Build, "_read", reads)
        with pytest.raises(DataError, match=r"t\.jsonl \[train\]: changed while it was being read"):
            cache.build(data, cache_dir)
    assert not [path for path in (cache_dir / "embeddings").iterdir() if path.is_dir()]
    assert cache.build(data, cache_dir).count == 31


def test_a_model_that_is_replaced_while_it_is_loaded_is_refused(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a training that saves its best checkpoint into the same folder."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("before")
    data = corpus(sentences(30), model=str(tmp_path / "model"))

    def load(*_: Any) -> HashModel:
        (tmp_path / "model" / "weights").write_text("after!")
        return inline

    with monkeypatch.context() as patched:
        patched.setattr("saebench.stores.sentence_encoder._load", load)
        with pytest.raises(DataError, match=r"model .*model: changed while it was being read"):
            cache.build(data, cache_dir)
    assert not [path for path in (cache_dir / "embeddings").iterdir() if path.is_dir()]
    assert cache.build(data, cache_dir).count == 30


def test_a_url_of_a_file_counts_by_its_content(corpus: Corpus, cache_dir: Path, tmp_path: Path) -> None:
    url = {"data_files": f"file://{tmp_path / 't.jsonl'}"}
    for texts in (sentences(3), sentences(4)):
        plain = corpus(texts)
        assert cache.build(corpus(texts, dataset=url), cache_dir).cache_key == cache.build(plain, cache_dir).cache_key


def test_the_home_of_nobody_is_no_folder(corpus: Corpus, cache_dir: Path) -> None:
    with pytest.raises(DataError, match=r"~nobody-here/t\.jsonl: no such file"):
        cache.find(corpus(["a"], dataset={"data_files": "~nobody-here/t.jsonl"}), cache_dir)
    assert cache.find(corpus(["a"], model="~nobody-here/model"), cache_dir) is None


def test_a_format_without_files_is_refused(corpus: Corpus, cache_dir: Path) -> None:
    """`datasets` would read whatever lies in the working folder, and all such corpora would be one entry."""
    with pytest.raises(DataError, match=r"dataset json \[train\]: data_files: is missing"):
        cache.find(corpus(["a"], dataset={"data_files": None}), cache_dir)


def test_a_missing_file_is_named(corpus: Corpus, cache_dir: Path, tmp_path: Path) -> None:
    data = corpus(["a"])
    (tmp_path / "t.jsonl").unlink()
    with pytest.raises(DataError, match=r"t\.jsonl: no such file"):
        cache.find(data, cache_dir)


def test_a_model_of_another_width_does_not_grow_an_entry(corpus: Corpus, cache_dir: Path, inline: HashModel) -> None:
    texts = sentences(40)
    cache.build(corpus(texts, num_examples=20), cache_dir)
    inline.d_in = 5
    with pytest.raises(DataError, match=r"its rows have 8 values, but model hash-model now gives 5; .*cache gc"):
        cache.build(corpus(texts), cache_dir)
    assert cache.find(corpus(texts, num_examples=20), cache_dir) is not None


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("whole", [True, False], ids=["rows", "pieces"])
def test_rows_of_two_models_never_mix(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """The name of a hub model may mean other weights when the entry grows, or when a killed build goes on."""
    texts, plain = [*sentences(90), "nan", *sentences(10, seed=1)], inline.row
    if whole:
        cache.build(corpus(texts, num_examples=40), cache_dir)
    else:
        with pytest.raises(DataError, match="NaN"):
            cache.build(corpus(texts), cache_dir)
    monkeypatch.setattr(inline, "row", lambda text: plain(text.replace("nan", "") + " "))
    with pytest.raises(
        DataError, match=r"model hash-model no longer gives the embeddings cached under its name; .*cache gc"
    ):
        cache.build(corpus(texts), cache_dir)
    monkeypatch.setattr(inline, "row", lambda text: 1.01 * plain(text.replace("nan", "")))  # as in a lower precision
    assert cache.build(corpus(texts), cache_dir).count == 101


def test_float16_that_overflows_is_refused(corpus: Corpus, cache_dir: Path, inline: HashModel) -> None:
    inline.row = lambda _text: torch.full((8,), 1e6)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"embeddings reach 1e\+06, more than float16 holds"):
        cache.build(corpus(["a"], dtype="float16"), cache_dir)


def test_a_full_disk_is_noticed_before_encoding(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(DataError, match=r"50 embeddings need 0\.3 GB, 0\.0 GB are free"):
        cache.build(corpus(sentences(50)), cache_dir)


def test_a_cache_that_cannot_be_written_is_one_line(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*Not a directory"):
        cache.build(corpus(["a"]), tmp_path / "file" / "cache")


@pytest.mark.usefixtures("small_pieces")
def test_a_lost_encoder_is_replaced_by_the_others(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, died = sentences(300), threading.Event()
    plain = inline.preprocess

    def dies_once(batch: list[str], prompt: str | None = None) -> dict[str, Any]:
        if texts[40] in batch and not died.is_set():
            died.set()
            raise MemoryError("gone")
        return plain(batch, prompt)

    monkeypatch.setattr(inline, "preprocess", dies_once)
    monkeypatch.setattr("saebench.stores.encoder_pool.count_cores", lambda: 2)
    reported: list[Progress] = []
    entry = cache.build(corpus(texts), cache_dir, on_progress=reported.append)
    assert died.is_set()
    assert [p.message for p in reported if p.warning] != []
    assert (rows_of(entry) == expected(texts, inline)).all()


# --- several at once -------------------------------------------------------------------------------------------------


def test_two_builds_at_once_encode_once_and_the_second_says_that_it_waits(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(60)
    data = corpus(texts)
    plain = inline.preprocess

    waits = threading.Event()

    def once_the_other_waits(batch: list[str], prompt: str | None = None) -> dict[str, Any]:
        assert waits.wait(60)
        return plain(batch, prompt)

    monkeypatch.setattr(inline, "preprocess", once_the_other_waits)
    built: list[cache.CacheEntry] = []

    def listen(progress: Progress) -> None:
        if progress.stage == "waiting" and "another process builds" in progress.message:
            waits.set()

    def build() -> None:
        built.append(cache.build(data, cache_dir, on_progress=listen))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.count for entry in built] == [60, 60]
    assert sorted(text for text in inline.seen if text in texts) == sorted(texts)
    assert waits.is_set()


# --- opening and tidying ---------------------------------------------------------------------------------------------


def test_gc_removes_leftovers_and_named_entries_only(corpus: Corpus, cache_dir: Path) -> None:
    keep = replace(cache.build(corpus(sentences(20)), cache_dir), hold=None)
    drop = replace(cache.build(corpus(sentences(20), prompt="x"), cache_dir), hold=None)
    (keep.directory / "parts").mkdir()
    (keep.directory / "parts" / "00000-x.npy").write_bytes(b"123")
    broken = cache_dir / "embeddings" / ("0" * 20)
    broken.mkdir()
    would = [(path.name, why) for path, _, why in tidy.gc(cache_dir, [drop.cache_key[:8]], dry_run=True)]
    assert sorted(would) == sorted(
        [("parts", "left over"), (drop.cache_key, "named"), ("0" * 20, "no readable manifest")]
    )
    assert broken.exists()
    assert drop.directory.exists()
    list(tidy.gc(cache_dir, [drop.cache_key[:8]]))
    assert [listed.folder for listed in tidy.entries(cache_dir)] == [keep.directory]
    assert [bad for _, bad in tidy.verify(cache_dir)] == [[]]
    assert list(tidy.gc(cache_dir, unused_days=1)) == []
    assert [why for _, _, why in tidy.gc(cache_dir, unused_days=0)] == ["not used for 0 days"]


def test_gc_leaves_an_entry_alone_that_somebody_reads(corpus: Corpus, cache_dir: Path) -> None:
    data = corpus(sentences(60))
    entry = cache.build(data, cache_dir)
    for dry_run in (True, False):
        [(folder, size, why)] = tidy.gc(cache_dir, [entry.cache_key], dry_run=dry_run)
        assert (folder, size, why) == (entry.directory, 0, "kept: a process is using it")
    assert list(tidy.gc(cache_dir, unused_days=0)) == []
    store = open_store(data, batch_size=8, seed=0, device="cpu", cache_dir=cache_dir)
    del entry
    assert list(tidy.gc(cache_dir, unused_days=0)) == [], "a trial reads it"
    store.next_batch()
    del store
    assert [why for _, _, why in tidy.gc(cache_dir, unused_days=0)] == ["not used for 0 days"]
    assert cache.find(data, cache_dir) is None


def test_an_entry_that_is_being_removed_is_waited_for_and_not_found(corpus: Corpus, cache_dir: Path) -> None:
    """Without a lock it would be found a moment before it is gone."""
    data = corpus(sentences(20))
    folder = cache.build(data, cache_dir).directory
    found: list[Any] = []
    finder = threading.Thread(target=lambda: found.append(cache.find(data, cache_dir)))
    with in_use.nobody_holds(cache.beside(folder, ".used")) as free:
        assert free
        finder.start()
        finder.join(0.2)
        assert found == []
        (folder / "manifest.json").unlink()
    finder.join(60)
    assert found == [None]


def test_a_dry_run_is_no_use_of_an_entry(corpus: Corpus, cache_dir: Path) -> None:
    """A build that was killed has never been used, and is what is to be removed."""
    folder = replace(cache.build(corpus(sentences(20)), cache_dir), hold=None).directory
    cache.beside(folder, ".used").unlink()
    os.utime(folder, (0, 0))
    for dry_run in (True, True, False):
        [(path, _, why)] = tidy.gc(cache_dir, unused_days=1, dry_run=dry_run)
        assert (path, why.partition(" for ")[0]) == (folder, "not used")
    assert not folder.exists()


def test_gc_leaves_files_that_an_entry_outgrew_to_who_still_reads_them(corpus: Corpus, cache_dir: Path) -> None:
    texts = sentences(60)
    small = cache.build(corpus(texts, num_examples=20), cache_dir)
    cache.build(corpus(texts), cache_dir)
    assert list(tidy.gc(cache_dir)) == []
    assert (len(small.hashes), len(list(small.texts()))) == (20, 20)
    del small
    assert {why for _, _, why in tidy.gc(cache_dir)} == {"left over"}
    assert [bad for _, bad in tidy.verify(cache_dir)] == [[]]


def test_an_entry_that_goes_or_grows_while_it_is_looked_at_is_no_damage(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(60)
    entry = cache.build(corpus(texts, num_examples=20), cache_dir)
    plain, busy = tidy.has_content, [True]

    def grows(folder: Path, file: Any) -> bool:
        if busy and busy.pop():
            cache.build(corpus(texts), cache_dir)
            for path in set(folder.iterdir()) - {folder / name for name in entry.manifest.names()}:
                assert path.exists()
            (folder / file.name).unlink()  # as the end of the other build may have done
        return plain(folder, file)

    monkeypatch.setattr(tidy, "has_content", grows)
    assert list(tidy.verify(cache_dir)) == [(entry.directory, [])]
    busy.append(True)
    monkeypatch.setattr(tidy, "has_content", lambda folder, _: bool(shutil.rmtree(folder, True)))
    assert list(tidy.verify(cache_dir)) == []
    (cache_dir / "embeddings" / "going").mkdir()
    monkeypatch.setattr(tidy, "_list", lambda folder: folder.with_name("gone").stat())
    assert tidy.entries(cache_dir) == []


def test_gc_removes_what_killed_writers_left_beside_entries(corpus: Corpus, cache_dir: Path) -> None:
    folder = replace(cache.build(corpus(sentences(20)), cache_dir), hold=None).directory
    (cache_dir / "digests").mkdir(exist_ok=True)
    old = [folder.with_name(f".{folder.name}.verified.4711.tmp"), cache_dir / "digests" / ".x.json.4711.tmp"]
    young = folder.with_name(f".{folder.name}.verified.4712.tmp")
    for path in (*old, young):
        path.touch()
    for path in old:
        os.utime(path, (1e9, 1e9))
    assert [path for path, _, _ in tidy.gc(cache_dir, dry_run=True)] == sorted(old)
    assert [why for _, _, why in tidy.gc(cache_dir)] == ["left over"] * 2
    assert [path.exists() for path in (*old, young)] == [False, False, True]


def test_gc_removes_floors_of_embeddings_that_are_gone(corpus: Corpus, cache_dir: Path) -> None:
    entry = replace(cache.build(corpus(sentences(20)), cache_dir), hold=None)
    (cache_dir / "floors").mkdir()
    kept, gone, old = (
        cache_dir / "floors" / f"{name}.json" for name in (f"{entry.cache_key}-0a", "0123abcd-0a", "ffff")
    )
    for path in (kept, gone, old):
        path.write_text("[]")
    assert list(tidy.gc(cache_dir, dry_run=True)) == list(tidy.gc(cache_dir))
    assert [path.exists() for path in (kept, gone, old)] == [True, False, False]
    assert entry.cache_key == entry.directory.name


def test_two_who_tidy_up_at_once_do_not_stumble(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_dir / "digests" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setattr(tidy.json, "loads", lambda _: path.unlink() or {})
    assert list(tidy.gc(cache_dir)) == []


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("written", [0, 1, 2, 4, 9, 14, 25, 30])
def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_written_file(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    texts = sentences(100)
    plain, left = os.fsync, [written]

    def fills_up(handle: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        plain(handle)

    with monkeypatch.context() as patched:
        faked = SimpleNamespace(**{**vars(os), "fsync": fills_up})
        patched.setattr("saebench.runs.durable.os", faked)
        with pytest.raises(DataError, match="No space left on device") as raised:
            cache.build(corpus(texts), cache_dir)
        assert "\n" not in str(raised.value)
        names = [path.name for path in (cache_dir / "embeddings").rglob("*") if path.is_file()]
        assert not [name for name in names if name.endswith(("tmp", "-rows", "-texts", "-hashes"))]
        assert left == [0], "it was the disk"
    assert (rows_of(cache.build(corpus(texts), cache_dir)) == expected(texts, inline)).all()


def test_a_pattern_means_files_not_folders(corpus: Corpus, cache_dir: Path, tmp_path: Path) -> None:
    data = corpus(["a"], "part-1.jsonl")
    (tmp_path / "part-2.jsonl").mkdir()
    pattern = data.model_copy(
        update={"dataset": data.dataset.model_copy(update={"data_files": str(tmp_path / "part-*.jsonl")})}
    )
    assert cache.entry_folder(pattern, cache_dir) == cache.entry_folder(data, cache_dir)
    (tmp_path / "part-1.jsonl").unlink()
    with pytest.raises(DataError, match=r"part-\*\.jsonl: no such file"):
        cache.find(pattern, cache_dir)


def test_a_cache_that_can_only_be_read_serves_and_is_not_taken_for_one_that_is_being_built(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = corpus(sentences(60))
    key = cache.build(data, cache_dir).cache_key

    def refuses(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(in_use, "os", SimpleNamespace(**{**vars(os), "open": refuses}))
    monkeypatch.setattr(cache, "write_json", refuses)
    monkeypatch.setattr(FileLock, "acquire", refuses)
    assert len(open_store(data, batch_size=8, seed=0, device="cpu", cache_dir=cache_dir).next_batch()) == 8
    assert cache.build(data, cache_dir).cache_key == key
    assert [listed.building for listed in tidy.entries(cache_dir)] == [False]
    with pytest.raises(DataError, match=r"cannot be removed: .*Read-only file system"):
        list(tidy.gc(cache_dir, [key]))


@pytest.mark.usefixtures("small_pieces")
def test_an_unfinished_entry_keeps_its_pieces(
    corpus: Corpus, cache_dir: Path, inline: HashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(100)
    bad = [*texts[:90], "nan", *texts[90:]]
    with pytest.raises(DataError, match="NaN"):
        cache.build(corpus(bad), cache_dir)
    [listed] = tidy.entries(cache_dir)
    assert not listed.complete
    assert list(tidy.gc(cache_dir)) == []
    before = len(inline.seen)
    plain = inline.row
    monkeypatch.setattr(inline, "row", lambda text: plain(text.replace("nan", "")))
    cache.build(corpus(bad), cache_dir)
    assert len([text for text in inline.seen[before:] if text in bad]) < 50


@pytest.mark.parametrize(("flags", "reported"), [("fpu amx_bf16 amx_tile", 1), ("fpu avx2", 0)])
def test_who_encodes_much_in_float32_is_told_of_bfloat16_where_that_is_faster(
    corpus: Corpus, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, reported: int
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(
        encoder_pool, "Path", lambda name: tmp_path / "cpuinfo" if name == "/proc/cpuinfo" else Path(name)
    )
    monkeypatch.setattr(encoder_pool, "LONG_WORK", 50)
    said: list[Progress] = []
    for count, changes in ((49, {}), (60, {"precision": "bfloat16"}), (60, {"prompt": "x"})):
        cache.build(corpus(sentences(count), **changes), cache_dir, on_progress=said.append)
    assert sum("data.precision: bfloat16 is faster" in progress.message for progress in said) == reported


def test_a_process_that_ends_with_an_entry_in_its_hands_ends_in_silence(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from saebench.stores.in_use import Hold, nobody_holds\n"
        "path = Path(sys.argv[1]); kept = sys.modules['kept'] = Hold(path); del path\n"
        "with nobody_holds(Path(sys.argv[1])) as free: print(free)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.used")], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("False\n", "", 0)
    with in_use.nobody_holds(tmp_path / "x.used") as free:
        assert free
