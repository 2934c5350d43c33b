"""Rows of files in every format: the columns they need, their values, and what is said of those that fail."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from saebench.config import FILE_FORMATS, DatasetConfig
from saebench.errors import DataError
from saebench.spec import parse_spec
from saebench.stores.dataset import stream
from saebench.stores.loading import expand

Write = Callable[[Path, dict[str, list[Any]]], None]


def write_csv(path: Path, columns: dict[str, list[Any]], separator: str = ",") -> None:
    lines = [separator.join(columns), *(separator.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")


def write_json_lines(path: Path, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json_array(path: Path, columns: dict[str, list[Any]]) -> None:
    path.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]))


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_arrow(path: Path, columns: dict[str, list[Any]]) -> None:
    table = pyarrow.table(columns)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, tuple[str, Write]] = {
    "csv": ("csv", write_csv),
    "json lines": ("json", write_json_lines),
    "json array": ("json", write_json_array),
    "parquet": ("parquet", write_parquet),
    "arrow": ("arrow", write_arrow),
}


def read(path: str, files: list[Path] | Path, **changes: Any) -> list[tuple[Any, Any]]:
    names = [str(file) for file in files] if isinstance(files, list) else str(files)
    return list(stream(DatasetConfig(path=path, data_files=names, **changes)))


@pytest.mark.parametrize("kind", list(WRITERS))
@pytest.mark.parametrize("first", [True, False])
def test_a_file_without_the_column_is_an_error_that_names_it(tmp_path: Path, kind: str, first: bool) -> None:
    """Its rows would be left out as empty: 500 of 1,000, without a word."""
    path, write = WRITERS[kind]
    write(tmp_path / "good", {"text": [f"a cat {i}" for i in range(5)], "n": [1] * 5})
    write(tmp_path / "bad", {"sentence": [f"a dog {i}" for i in range(5)], "n": [1] * 5})
    files = [tmp_path / "good", tmp_path / "bad"]
    with pytest.raises(
        DataError, match=r"/bad \[train\]: text_column: text: no such column \(there are: sentence, n\)$"
    ):
        read(path, files[::-1] if first else files)
    with pytest.raises(DataError, match=r"/bad \[train\]: label_column: text: no such column"):
        read(path, tmp_path / "bad", text_column="sentence", label_column="text")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_files_with_other_columns_beside_the_text_are_read_one_after_the_other(tmp_path: Path, kind: str) -> None:
    path, write = WRITERS[kind]
    write(tmp_path / "a", {"text": ["one", "two"], "n": [1, 2]})
    write(tmp_path / "b", {"source": ["x", "y"], "text": ["three", "four"]})
    assert [text for text, _ in read(path, [tmp_path / "a", tmp_path / "b"])] == ["one", "two", "three", "four"]


def test_a_shard_of_a_folder_without_the_column_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train-1.csv", {"text": ["a cat"]})
    write_csv(tmp_path / "train-2.csv", {"sentence": ["a dog"]})
    with pytest.raises(DataError, match=r"train-2\.csv \[train\]: (text_column: text: no such column|cannot be read)"):
        list(stream(DatasetConfig(path=str(tmp_path))))


def test_labels_of_a_csv_are_text_whatever_the_other_rows_hold(tmp_path: Path) -> None:
    """pandas reads 10,000 rows at a time and guesses: one word in the second chunk made classes 1 and "1"."""
    labels: list[Any] = [i % 4 + 1 for i in range(12_000)]
    labels[11_000] = "n/k"
    write_csv(tmp_path / "t.csv", {"text": [f"t {i}" for i in range(12_000)], "label": labels})
    found = Counter(label for _, label in read("csv", tmp_path / "t.csv", label_column="label"))
    assert found == {"1": 2999, "2": 3000, "3": 3000, "4": 3000, "n/k": 1} or found == Counter(map(str, labels))


def test_words_that_pandas_takes_for_missing_are_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"text": ["NA", "None", "null", "", "nan"], "label": ["NA", "", "a", "b", "nan"]})
    assert read("csv", tmp_path / "t.csv", label_column="label") == [
        ("NA", "NA"),
        ("None", None),
        ("null", "a"),
        ("", "b"),
        ("nan", "nan"),
    ]


def test_lines_of_json_may_have_any_keys_and_labels_keep_their_type(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "one", "label": 1},
        {"text": "two", "label": "n/k", "extra": {"a": 1}},
        {"label": 2, "text": "three", "extra": "b"},
        {"other": 1},
    ]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    expected = [("one", 1), ("two", "n/k"), ("three", 2), (None, None)]
    assert read("json", tmp_path / "t.jsonl", label_column="label") == expected
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write("\ufeff" + "\n".join(map(json.dumps, rows)))
    assert read("json", tmp_path / "t.jsonl.gz", label_column="label") == expected


@pytest.mark.parametrize(("line", "why"), [("{", "not JSON"), ("5", "must be a JSON object"), ("[" * 9999, "not JSON")])
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"t\.jsonl \[train\]: line 2: {why}") as raised:
        read("json", tmp_path / "t.jsonl")
    assert "\n" not in str(raised.value)


def test_rows_of_an_array_whose_types_differ_are_told_what_to_do(tmp_path: Path) -> None:
    rows = [{"text": "x " * 30, "label": i} for i in range(3)] + [{"text": {"a": 1}, "label": [1]}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    try:
        read("json", tmp_path / "t.json", label_column="label")
    except DataError as error:
        assert "JSON lines" in str(error) or "cannot be read" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def test_a_csv_with_another_delimiter_is_told_of_the_key_and_the_key_works(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", {"text": ["a cat", "a dog"], "label": [1, 2]}, ";")
    with pytest.raises(DataError, match=r"no such column \(there are: text;label\); if ';' separates them, set data"):
        read("csv", tmp_path / "t.csv")
    assert read("csv", tmp_path / "t.csv", delimiter=";", label_column="label") == [("a cat", "1"), ("a dog", "2")]
    (tmp_path / "u.csv").write_text("text\na cat\na, b, c\n")
    with pytest.raises(DataError, match=r"u\.csv \[train\]: line 3 has 3 fields, the header 1: quote .*delimiter"):
        read("csv", tmp_path / "u.csv")
    (tmp_path / "t.tsv").write_text("text\tlabel\nein Käfer\t1\n", encoding="cp1252")
    assert read("csv", tmp_path / "t.tsv", delimiter="\t", encoding="cp1252") == [("ein Käfer", None)]


FOLDERS = ["run[1]", "my%20p", "feature%2Fx", "a*b", "q?", "{x}"]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", ["csv", "json lines", "parquet"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str, kind: str) -> None:
    path, write = WRITERS[kind]
    folder = tmp_path / name
    folder.mkdir()
    write(folder / f"t-1.{path}", {"text": ["one"]})
    write(folder / f"t-2.{path}", {"text": ["two"]})
    files = [folder / f"t-1.{path}", folder / f"t-2.{path}"]
    assert [text for text, _ in read(path, files)] == ["one", "two"]
    assert [text for text, _ in read(path, folder / f"t-*.{path}")] == ["one", "two"]
    assert sorted(text for text, _ in stream(DatasetConfig(path=str(folder)))) == ["one", "two"]


def test_patterns_are_expanded_below_folders_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a[1]" / "deep").mkdir(parents=True)
    (tmp_path / "a[1]" / "deep" / "x.csv").touch()
    (tmp_path / "a[1]" / "y.csv").touch()
    assert expand("a[1]/*/*.csv", tmp_path) == [tmp_path / "a[1]/deep/x.csv"]
    assert expand("a[[]1]/y.csv", tmp_path) == [tmp_path / "a[1]/y.csv"]
    assert expand("a[1]/none-*.csv", tmp_path) == expand("a[1]/none.csv", tmp_path) == []
    assert expand(f"file://{tmp_path}/a%5B1%5D/y.csv") == [tmp_path / "a[1]/y.csv"]


@pytest.mark.parametrize("path", sorted(FILE_FORMATS))
def test_files_of_every_format_are_found_from_the_folder_of_the_spec(tmp_path: Path, path: str) -> None:
    (tmp_path / "t.data").write_text("x")
    spec = parse_spec(
        {
            "name": "t",
            "data": {"model": "m", "dataset": {"path": path, "data_files": ["t.data"]}, "num_examples": 10_000},
            "sae": [{"type": "topk", "k": 2, "dict_size": 8}],
            "train": {"samples": 10_000},
        },
        folder=tmp_path,
    )
    files = spec.data.dataset.data_files
    assert [str(file) for file in files or ()] == [str(tmp_path / "t.data")]


def test_reading_a_local_file_asks_nobody(tmp_path: Path) -> None:
    """`datasets` counts downloads on a server, of local files too, unless it is told not to."""
    write_parquet(tmp_path / "t.parquet", {"text": ["one"]})
    code = (
        "import os, socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection: ' + str(a))\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from saebench.config import DatasetConfig\n"
        "from saebench.stores.dataset import stream\n"
        f"rows = list(stream(DatasetConfig(path='parquet', data_files={str(tmp_path / 't.parquet')!r})))\n"
        "assert rows == [('one', None)], rows\n"
        "os._exit(0)\n"  # as child_process.py ends: libraries' threads that still hold a stream may abort
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_cache_of_datasets_that_cannot_be_written_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    file = tmp_path / "hf" / "datasets" / "x.lock"

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("saebench.stores.loading._open", refuse)
    write_parquet(tmp_path / "t.parquet", {"text": ["one"]})
    with pytest.raises(DataError, match=r"^.*x\.lock: cannot be written: Permission denied; set HF_HOME to a w"):
        read("parquet", tmp_path / "t.parquet")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_text_may_be_made_of_several_columns(tmp_path: Path, kind: str) -> None:
    path, write = WRITERS[kind]
    write(tmp_path / "t", {"title": ["On owls", "On cats"], "body": ["They fly.", ""], "year": [1999, 2001]})
    found = [text for text, _ in read(path, tmp_path / "t", text="{title} ({year}): {body}")]
    assert found == ["On owls (1999): They fly.", "On cats (2001): "]
    with pytest.raises(DataError, match=r"/t \[train\]: text: author: no such column \(there are: title, body, year\)"):
        read(path, tmp_path / "t", text="{title} by {author}")


def test_columns_may_be_nested(tmp_path: Path) -> None:
    rows = [{"paper": {"title": "Owls", "about": {"topic": "birds"}}, "a.b": 1}, {"paper": None}, {"paper": {}}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [("Owls", "birds"), (None, None), (None, None)]
    assert read("json", tmp_path / "t.jsonl", text_column="paper.title", label_column="paper.about.topic") == expected
    assert read("json", tmp_path / "t.jsonl", text="{paper.title}: {a.b}")[0] == ("Owls: 1", None)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"paper": row["paper"]} for row in rows]), tmp_path / "t")
    assert read("parquet", tmp_path / "t", text_column="paper.title", label_column="paper.about.topic") == expected


@pytest.mark.parametrize("template", ["", "title", "{title", "{}", "{title!r}", "{title:>9}", "{0}{"])
def test_a_template_that_names_no_column_is_refused(template: str) -> None:
    with pytest.raises(
        ValueError, match=r"must name columns in braces|expected '}'|Single '}'|unmatched|single|Single"
    ):
        DatasetConfig(path="csv", data_files="t.csv", text=template)


def test_utf_16_and_gzip_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\nein Käfer\n", encoding="utf-16")
    assert read("csv", tmp_path / "t.csv", encoding="utf-16") == [("ein Käfer", None)]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("text\ta\none\t1\n")
    assert read("csv", tmp_path / "t.csv.gz", delimiter="\t") == [("one", None)]
