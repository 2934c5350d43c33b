"""Detect format, encoding, delimiter and columns of a data file. No torch."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from saebench.errors import DataError

ROWS = 1000
"""Rows that are read."""
HEAD = 4 * 2**20
"""Most characters, or bytes, of these rows."""
DELIMITERS = (",", ";", "\t", "|")
_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "text", ".xlsx": "xlsx", ".xls": "xlsx",
}  # fmt: skip
MOST_LABELS = 100
"""A column with more different values is not a label."""
STOPWORDS = {
    "English": {"the", "of", "and", "to", "in", "is", "that", "for", "with", "are"},
    "German": {"der", "die", "und", "das", "ist", "nicht", "ein", "eine", "mit", "von"},
    "French": {"le", "la", "les", "et", "des", "est", "une", "dans", "pour", "que"},
    "Spanish": {"el", "los", "las", "y", "que", "una", "por", "con", "para", "es"},
    "Italian": {"il", "che", "di", "e", "una", "per", "con", "non", "sono", "del"},
    "Portuguese": {"o", "os", "e", "que", "uma", "para", "com", "não", "em", "do"},
    "Dutch": {"de", "het", "een", "van", "en", "dat", "niet", "met", "zijn", "voor"},
}


@dataclass(frozen=True)
class Found:
    """A file and the settings to read it."""

    path: Path
    format: str
    """csv, json, parquet, text; xlsx and folder have to be converted first."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Name -> values of the first rows."""
    delimiter: str | None = None
    """Delimiter of a CSV file, if it is not a comma."""
    encoding: str | None = None
    """Encoding of a text file, if it is not UTF-8."""

    def text_column(self) -> str | None:
        """The column with the longest texts."""
        lengths = {name: _mean_length(values) for name, values in self.columns.items()}
        best = max(lengths, key=lambda name: lengths[name], default=None)
        return best if best is not None and lengths[best] > 0 else None

    def label_columns(self, text: str | None) -> list[str]:
        """Columns whose values repeat enough to be classes: words before numbers, the fewest different values first."""
        different = {name: len(_known(values)) for name, values in self.columns.items() if name != text}
        most = min(MOST_LABELS, len(next(iter(self.columns.values()), [])) // 5)
        numbers = {name: all(map(_is_number, _known(values))) for name, values in self.columns.items()}
        return sorted(
            (name for name, n in different.items() if 2 <= n <= most), key=lambda name: (numbers[name], different[name])
        )


def sniff(path: Path) -> Found:
    """Inspect a file or a folder of text files. Raises DataError if it is missing, empty, or of an unknown format."""
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise DataError(f"{path}: a folder without *.txt files; give a file, or a folder of texts")
        return Found(path, "folder", {"text": [_decoded(file.read_bytes())[0] for file in files[:ROWS]]})
    try:
        raw = _head(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if not raw.strip():
        raise DataError(f"{path}: the file is empty")
    kind = _SUFFIXES.get(_suffix(path)) or _by_content(raw)
    if kind == "parquet":
        return Found(path, kind, _parquet(path))
    if kind == "xlsx":
        return Found(path, kind, _excel(path))
    text, encoding = _decoded(raw, whole=path)
    if kind == "csv":
        delimiter = find_delimiter(text)
        return Found(path, kind, _csv(text, delimiter), None if delimiter == "," else delimiter, encoding)
    if kind == "json":
        return Found(path, kind, _json(path, text), encoding=encoding)
    return Found(path, "text", {"text": list(islice(text.splitlines(), ROWS))}, encoding=encoding)


def rows_of(found: Found) -> list[dict[str, Any]]:
    """Return all rows of an Excel sheet or of a folder (a text per file, with its name), which a sweep cannot read
    directly."""
    if found.format == "folder":
        files = sorted(found.path.rglob("*.txt"))
        return [{"file": str(f.relative_to(found.path)), "text": _decoded(f.read_bytes())[0]} for f in files]
    rows: list[dict[str, Any]] = _read_excel(found.path).to_dict("records")
    return rows


def language(texts: Sequence[Any]) -> str | None:
    """Return the language whose most common words occur in most of these texts; None if no language's do."""
    words = [set(re.findall(r"\w+", str(text).lower())) for text in texts]
    counts = {name: sum(len(stop & found) for found in words) for name, stop in STOPWORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


def find_delimiter(text: str) -> str:
    """Return the delimiter: of the usual characters the one for which most rows have as many fields as the header."""

    def score(delimiter: str) -> tuple[float, int]:
        rows = [row for row in islice(csv.reader(io.StringIO(text), delimiter=delimiter), 100) if row]
        width = len(rows[0])
        return (sum(len(row) == width for row in rows) / len(rows) if width > 1 else 0.0, width)

    try:
        return max(DELIMITERS, key=score)
    except (csv.Error, IndexError):
        return ","


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _head(path: Path) -> bytes:
    """Return the first bytes, unpacked, up to the end of a line."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: Any = gzip.GzipFile(fileobj=file) if packed else file
        raw: bytes = source.read(HEAD)
        if len(raw) == HEAD and not raw.startswith((b"\xff\xfe", b"\xfe\xff", b"PAR1", b"PK")):
            raw = raw[: raw.rfind(b"\n") + 1] or raw
    return raw


def _by_content(raw: bytes) -> str:
    if raw.startswith(b"PAR1"):
        return "parquet"
    if raw.startswith(b"PK"):
        return "xlsx"
    text, _ = _decoded(raw)
    if text.lstrip()[:1] in ("{", "["):
        return "json"
    first = text.split("\n", 1)[0]
    return "csv" if any(mark in first for mark in DELIMITERS[1:]) else "text"


def _decoded(raw: bytes, whole: Path | None = None) -> tuple[str, str | None]:
    """Return text and its encoding (None: UTF-8), which is checked on the rest of the file `whole`, too."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw[: len(raw) // 2 * 2].decode("utf-16", "replace"), "utf-16"
    try:
        text = raw.decode("utf-8-sig")
        if whole is None or _is_utf8(whole):
            return text, None
    except UnicodeDecodeError:
        pass
    return raw.decode("cp1252", "replace"), "cp1252"


def _is_utf8(path: Path) -> bool:
    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _csv(text: str, delimiter: str) -> dict[str, list[Any]]:
    rows = [row for row in islice(csv.reader(io.StringIO(text), delimiter=delimiter), ROWS + 1) if row]
    header, *rest = rows
    return {name: [row[i] for row in rest if i < len(row)] for i, name in enumerate(header)}


def _json(path: Path, text: str) -> dict[str, list[Any]]:
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)[:ROWS]
        else:
            rows = [json.loads(line) for line in islice((line for line in text.splitlines() if line.strip()), ROWS)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON (a list of objects, or an object per line): {error}") from None
    return _by_column([row for row in rows if isinstance(row, dict)])


def _parquet(path: Path) -> dict[str, list[Any]]:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            batch = next(file.iter_batches(ROWS), None)
            return {name: [] for name in file.schema_arrow.names} if batch is None else dict(batch.to_pydict())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


def _excel(path: Path) -> dict[str, list[Any]]:
    frame = _read_excel(path).head(ROWS)
    return {str(name): frame[name].tolist() for name in frame.columns}


def _read_excel(path: Path) -> Any:
    import pandas

    try:
        return pandas.read_excel(path)
    except ImportError as error:
        raise DataError(f"{path}: pandas needs another package to read it ({error}); or save it as CSV") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not an Excel file: {str(error).splitlines()[0]}") from None


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {str(name): [row.get(name) for row in rows] for name in names}


def _mean_length(values: Sequence[Any]) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(map(len, texts)) / len(values) if len(texts) > len(values) / 2 else 0.0


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.,]+", text) is not None


def _known(values: Sequence[Any]) -> set[str]:
    return {str(value) for value in values if value is not None and value != "" and not isinstance(value, float)}
