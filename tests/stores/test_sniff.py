"""What people's files are taken for; the reader of a sweep then reads the same texts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saebench.config import DatasetConfig
from saebench.errors import DataError
from saebench.stores.dataset import stream
from saebench.stores.sniff import Found, language, rows_of, sniff

TEXTS = [f"Größe {i}: naïve owls, “quoted”; or not" for i in range(40)]
LABELS = ["bird", "fish"] * 20
FRAME = pd.DataFrame({"id": range(40), "Abstract": TEXTS, "kind": LABELS, "year": [2000 + i % 4 for i in range(40)]})


def csv(sep: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda path: FRAME.to_csv(path, sep=sep, index=False, encoding=encoding)


def packed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_packed(path: Path) -> None:
        write(path.with_suffix(".plain"))
        path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))

    return write_packed


def lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in FRAME.to_dict("records")))


CASES: list[tuple[str, Callable[[Path], None], str, str | None, str | None]] = [
    ("a.csv", csv(","), "csv", None, None),
    ("a.csv", csv(";"), "csv", ";", None),
    ("a.tsv", csv("\t"), "csv", "\t", None),
    ("a.csv", csv("|", "utf-8-sig"), "csv", "|", None),
    ("a.csv", csv(";", "cp1252"), "csv", ";", "cp1252"),
    ("a.csv", csv(",", "utf-16"), "csv", None, "utf-16"),
    ("a.csv.gz", packed(csv(";")), "csv", ";", None),
    ("a.jsonl", lines, "json", None, None),
    ("a.jsonl.gz", packed(lines), "json", None, None),
    ("a.json", lambda path: path.write_text(json.dumps(FRAME.to_dict("records"))), "json", None, None),  # type: ignore[arg-type, return-value]
    ("a.parquet", lambda path: FRAME.to_parquet(path), "parquet", None, None),
    ("export", lambda path: FRAME.to_parquet(path), "parquet", None, None),
    ("export", csv(";"), "csv", ";", None),
    ("export", lines, "json", None, None),
]


@pytest.mark.parametrize(("name", "write", "kind", "delimiter", "encoding"), CASES)
def test_files_are_known_and_read_as_they_were_meant(
    tmp_path: Path, name: str, write: Callable[[Path], None], kind: str, delimiter: str | None, encoding: str | None
) -> None:
    file = tmp_path / name
    write(file)
    found = sniff(file)
    assert (found.format, found.delimiter, found.encoding) == (kind, delimiter, encoding)
    assert list(found.columns) == ["id", "Abstract", "kind", "year"]
    assert found.text_column() == "Abstract"
    assert found.label_columns("Abstract") == ["kind", "year"], "words before numbers"
    dataset = DatasetConfig(
        path=kind, data_files=str(file), text_column="Abstract", delimiter=delimiter, encoding=encoding
    )
    assert [text for text, _ in stream(dataset)] == TEXTS


def test_a_byte_far_down_decides_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.stores.sniff.HEAD", 1000)
    rows = ["text", *(f"only ascii in line {i}" for i in range(500)), "caf\xe9"]
    (tmp_path / "a.csv").write_bytes("\n".join(rows).encode("cp1252"))
    assert sniff(tmp_path / "a.csv").encoding == "cp1252"


def test_plain_texts_and_a_folder_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one owl\nanother\n")
    assert sniff(tmp_path / "a.txt") == Found(tmp_path / "a.txt", "text", {"text": ["one owl", "another"]})
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_bytes("Größe".encode("cp1252"))
    (folder / "sub" / "c.txt").write_text("two\nlines")
    assert rows_of(sniff(folder)) == [{"file": "b.txt", "text": "Größe"}, {"file": "sub/c.txt", "text": "two\nlines"}]


def test_a_sheet_is_read_by_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK...")
    monkeypatch.setattr(pd, "read_excel", lambda path: FRAME)  # noqa: ARG005 - its signature
    found = sniff(tmp_path / "a.xlsx")
    assert (found.format, found.text_column(), len(rows_of(found))) == ("xlsx", "Abstract", 40)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b" \n\n", "the file is empty"),
        ("a.parquet", b"PAR1 no", "not a Parquet file"),
        ("a.jsonl", b"{no", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        sniff(tmp_path / name)
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        sniff(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"a folder without \*\.txt"):
        sniff(tmp_path)


@pytest.mark.parametrize(
    ("texts", "spoken"),
    [
        (["the owl is in the tree and of the night"], "English"),
        (["die Eule ist nicht mit dem Baum und der Nacht"], "German"),
        (["la chouette est dans les arbres et pour une nuit"], "French"),
        (["4 7 1"], None),
    ],
)
def test_the_language(texts: list[Any], spoken: str | None) -> None:
    assert language(texts) == spoken
