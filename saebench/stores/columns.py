"""Text and label of a row: a column, a nested one, or a template over several."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from saebench.config import DatasetConfig, template_fields

Row = Mapping[str, Any]


def value_of(row: Row, name: str) -> Any:
    """Return the value of a column, or of a nested one if the name has dots and is not itself a column; None if it is
    missing."""
    if name in row or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    inner = row.get(first)
    return value_of(inner, rest) if isinstance(inner, Mapping) else None


def text_of(dataset: DatasetConfig, row: Row) -> Any:
    if dataset.text is None:
        return value_of(row, dataset.text_column)
    values = {name: value_of(row, name) for name in template_fields(dataset.text)}
    if all(value is None or value == "" for value in values.values()):
        return None
    pieces = Formatter().parse(dataset.text)
    return "".join(
        before + ("" if name is None or values[name] is None else str(values[name])) for before, name, _, _ in pieces
    )


def label_of(label: Any) -> Any:
    """Return a label; None if a CSV file has nothing between two delimiters."""
    return None if label == "" else label


def columns(dataset: DatasetConfig, label_key: str = "label_column") -> list[tuple[str, str]]:
    """(key of the spec, column) of each column that is read; `label_key` is what named the label column."""
    texts = [("text", name) for name in template_fields(dataset.text)] if dataset.text else []
    found = texts or [("text_column", dataset.text_column)]
    return found + ([(label_key, dataset.label_column)] if dataset.label_column else [])


def wanted(dataset: DatasetConfig) -> list[str]:
    return list(dict.fromkeys(column for _, column in columns(dataset)))
