"""Read texts from a file one by one: lines, JSON lines, CSV or Parquet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saebench.errors import UserError


def read_texts(file: Path, column: str) -> Iterator[str]:
    """Yield the texts of a file in constant memory; `column`: for files with columns. Raises UserError with the
    line."""
    if str(file) == "-":
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    reader = READERS.get(file.suffix.lower(), _lines)
    try:
        for number, value in enumerate(reader(file, column), 1):
            if value is not None and not isinstance(value, str):
                raise UserError(f"{file}: row {number}: {column}: {type(value).__name__}, expected a text")
            yield value or ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _lines(file: Path, _: str) -> Iterator[Any]:
    with file.open(encoding="utf-8") as opened:
        yield from (line.rstrip("\r\n") for line in opened)


def _json_lines(file: Path, column: str) -> Iterator[Any]:
    with file.open(encoding="utf-8") as opened:
        for number, line in enumerate(opened, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file}:{number}: not JSON: {error}") from error
            if isinstance(row, str):
                yield row
            elif isinstance(row, dict) and column in row:
                yield row[column]
            else:
                raise UserError(f"{file}:{number}: no key {column!r}; --column names another")


def _parquet(file: Path, column: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        _check(file, column, opened.schema_arrow.names)
        for batch in opened.iter_batches(batch_size=4096, columns=[column]):
            yield from batch.column(0).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _csv(file: Path, column: str) -> Iterator[Any]:
    import csv

    csv.field_size_limit(1 << 30)
    with file.open(encoding="utf-8", newline="") as opened:
        rows = csv.DictReader(opened)
        _check(file, column, list(rows.fieldnames or []))
        try:
            yield from (row[column] for row in rows)
        except csv.Error as error:
            raise UserError(f"{file}: line {rows.line_num}: {error}") from error


def _check(file: Path, column: str, there: list[str]) -> None:
    if column not in there:
        raise UserError(f"{file}: no column {column!r} (there are: {', '.join(there) or 'none'}); --column names one")


READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
}
"""Suffix -> reader; any other file has a text on each line."""
