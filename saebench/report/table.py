"""One table of a report: raw numbers in a DataFrame, and the format of its columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[Any, Any]
ENDED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Column:
    """`show` formats a row's cell; without it, the value under `key`."""

    key: str
    title: str
    show: Callable[[Row], str] | None = None
    drop: int = 0
    """In a narrow terminal, the columns with the highest number are left out first; 0: never."""
    long: int = 24
    """Characters of a cell up to which other columns make room for it."""

    def text(self, row: Row) -> str:
        return self.show(row) if self.show else plain(row.get(self.key))


@dataclass(frozen=True)
class Table:
    """`frame` has all raw numbers; `columns` define which are printed and how."""

    name: str
    title: str
    frame: DataFrame
    columns: tuple[Column, ...]
    note: str = ""

    def rows(self) -> list[Row]:
        return [dict(row) for row in self.frame.to_dict("records")]


def make(name: str, title: str, rows: Sequence[Row], columns: Sequence[Column], note: str = "") -> Table:
    """A table of these rows; a column that is empty throughout is not shown."""
    keys = list(dict.fromkeys([*(key for row in rows for key in row), *(c.key for c in columns)]))
    shown = [c for c in columns if not rows or any(c.text(row) not in ("", "-") for row in rows)]
    return Table(name, title, pd.DataFrame(rows, columns=keys), tuple(shown), note)


def missing(value: Any) -> bool:
    """None, NaN or pandas' NA."""
    return value is None or value is pd.NA or value != value


def plain(value: Any) -> str:
    """Return four significant digits for a float, a dash for a missing value."""
    if missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if not value.is_integer() or abs(value) >= 1e6 else f"{value:.0f}"
    return str(value)


def decimals(key: str, digits: int) -> Callable[[Row], str]:
    """Show `key` with so many decimals."""
    return lambda row: f"{row[key]:.{digits}f}" if row.get(key) is not None and math.isfinite(row[key]) else "-"


def plus_minus(mean: str, high: str, digits: int = 4) -> Callable[[Row], str]:
    """Show a symmetric interval as "0.4556 ± 0.0069", the mean alone if there is no interval."""

    def show(row: Row) -> str:
        if not math.isfinite(row[mean]):
            return "-"
        half = row[high] - row[mean]
        return f"{row[mean]:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")

    return show


def counted(states: Iterable[Any]) -> Row:
    """Count the trials by how they ended; all others are unfinished."""
    texts = [str(state) for state in states]
    counts: Row = {state: texts.count(state) for state in ENDED}
    return counts | {"unfinished": len(texts) - sum(counts.values())}


def number_of(count: int, noun: str, nouns: str = "") -> str:
    """For example 1 trial, 2 trials."""
    return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"


def trial_counts(row: Row) -> str:
    """In words, without the zeros: 6 complete, 2 pruned."""
    return ", ".join(f"{row[state]} {state}" for state in (*ENDED, "unfinished") if row.get(state)) or "none"


def short_counts(row: Row) -> str:
    """For example 6/2/0, and (+1) if one is unfinished."""
    more = f" (+{row['unfinished']})" if row.get("unfinished") else ""
    return "/".join(str(row.get(state, 0)) for state in ENDED) + more


def percentage(value: float) -> str:
    """For example 1.2%; a dash for NaN."""
    return f"{100 * value:.1f}%" if value is not None and math.isfinite(value) else "-"


def signed(value: float) -> str:
    """With its sign: -4.1%."""
    return f"{value:+.1f}%" if math.isfinite(value) else "-"


def signed_span(low: str, high: str, mean: str = "") -> Callable[[Row], str]:
    """Show an interval as "-5.2% to -3.0%", with its mean as "-4.1% (-5.2 to -3.0)"."""

    def show(row: Row) -> str:
        if not math.isfinite(row[low]):
            return signed(row[mean]) if mean else "-"
        if mean:
            return f"{signed(row[mean])} ({row[low]:+.1f} to {row[high]:+.1f})"
        return f"{signed(row[low])} to {signed(row[high])}"

    return show


def p_value(value: float) -> str:
    """Three decimals, or "< 0.001"."""
    return "-" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
