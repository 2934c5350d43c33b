"""Columns of the data set that are not used in training, joined to the texts of a part by the hash of the text.

The data set is read again, in the way in which the cache read it. A text that it no longer contains has no target. With
precomputed embeddings, a column is a file with a value per row, or a column beside them; rows are joined by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saebench.arrays import column as column_beside
from saebench.arrays import open_embeddings
from saebench.config import DataConfig
from saebench.errors import DataError, UserError
from saebench.latents.corpus import Part
from saebench.latents.ranks import classes_of

Kind = Literal["auto", "class", "number"]
MANY = 20
"""With at least this many different values, a column of whole numbers holds numbers; with fewer, classes."""
MOST_CLASSES = 50
"""Classes that are explained, the most common ones."""
FEWEST = 20
"""Texts with a number that a part needs."""


@dataclass(frozen=True, eq=False)
class Target:
    """A target: membership of a class (0 or 1), or a number; per part the rows that have one."""

    name: str
    """COLUMN, or COLUMN = CLASS."""
    kind: Literal["class", "number"]
    rows: tuple[NDArray[np.int64], ...]
    values: tuple[NDArray[np.float64], ...]


def read_column(data: DataConfig, column: str, parts: Sequence[Part]) -> list[list[Any]]:
    """The column's value for each row of each part; None for a row that has no value or no longer exists. Raises
    DataError if the data set cannot be read or has no such column."""
    from saebench.stores.dataset import stream
    from saebench.stores.texts import Counts, select

    if data.embeddings is not None:
        values = column_beside(column, open_embeddings(data.embeddings), "--target")
        return [[values[row] for row in part.row_numbers] for part in parts]
    dataset = data.dataset.model_copy(update={"label_column": column})
    wanted = {int(h) for part in parts for h in part.hashes.tolist()}
    texts = select(stream(dataset, "--target"), Counts(), data.num_examples, how=data.clean)
    held = {text.hash: text.label for text in texts if text.hash in wanted}
    if not held:
        raise DataError(f"--target {column}: none of the texts that the SAE was judged on is in the data set any more")
    return [[held.get(int(h)) for h in part.hashes.tolist()] for part in parts]


def targets(name: str, columns: Sequence[Sequence[Any]], kind: Kind = "auto") -> tuple[list[Target], list[str]]:
    """The targets in the values of a column, a list per part, and notes on what was left out. Raises UserError for a
    column without classes or numbers to explain."""
    known = [np.flatnonzero([_given(value) for value in column]) for column in columns]
    values = [[column[i] for i in rows.tolist()] for column, rows in zip(columns, known, strict=True)]
    notes = _missing(name, columns, known)
    everything = [value for some in values for value in some]
    if not everything:
        raise UserError(f"--target {name}: no text has a value")
    if len(set(map(str, everything))) == 1:
        raise UserError(f"--target {name}: constant ({everything[0]!r:.60}): nothing to explain")
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in everything)
    if kind == "number" and not numeric:
        odd = next(v for v in everything if not isinstance(v, int | float) or isinstance(v, bool))
        raise UserError(f"--target {name}: {odd!r:.60} is not a number; to treat the values as classes: --as class")
    if kind == "number" or (kind == "auto" and numeric and _continuous(everything)):
        return [_number(name, known, values)], notes
    return _classes(name, columns, notes)


def _given(value: Any) -> bool:
    return value is not None and value == value and value not in (float("inf"), float("-inf"))


def _missing(name: str, columns: Sequence[Sequence[Any]], known: Sequence[NDArray[np.int64]]) -> list[str]:
    absent = sum(len(column) - len(rows) for column, rows in zip(columns, known, strict=True))
    total = sum(map(len, columns))
    return [f"{name}: {absent:,} of {total:,} texts have no value and are left out"] if absent else []


def _continuous(values: Sequence[Any]) -> bool:
    return any(not float(v).is_integer() for v in values) or len(set(values)) >= MANY


def _number(name: str, known: Sequence[NDArray[np.int64]], values: Sequence[Sequence[Any]]) -> Target:
    arrays = tuple(np.array(some, np.float64) for some in values)
    for some, part in zip(arrays, ("training", "measured"), strict=True):
        if len(some) < FEWEST or some.std() == 0:
            what = f"only {len(some)} {part} texts have a number" if len(some) < FEWEST else f"constant on {part} texts"
            raise UserError(f"--target {name}: {what}: nothing to explain (at least {FEWEST}, not all the same)")
    return Target(name, "number", tuple(known), arrays)


def _classes(name: str, columns: Sequence[Sequence[Any]], notes: list[str]) -> tuple[list[Target], list[str]]:
    classes = classes_of(*columns)
    if not classes.names:
        raise UserError(f"--target {name}: no class has at least ten texts and ten texts outside it in both parts")
    names = classes.names[:MOST_CLASSES]
    left = classes.left_out + len(classes.names) - len(names)
    if left:
        notes = [
            *notes,
            f"{name}: {left} classes are left out: rare ones, and those beyond the {MOST_CLASSES} most frequent",
        ]
    found = [
        Target(f"{name} = {one}", "class", classes.rows, tuple(m[:, c].astype(np.float64) for m in classes.members))
        for c, one in enumerate(names)
    ]
    return (found[:1] if len(names) == 2 else found), notes
