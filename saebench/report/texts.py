"""Counts of the texts: size of each part, texts left out or cut, leaks from training to test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saebench.report.sources import Source
from saebench.report.table import Column, Row, Table, make, percentage
from saebench.runs.corpus import sentences

PARTS = {"num_train": "training texts", "num_validation": "validation texts", "num_test": "test texts"}
"""Count in the lock -> its description."""


def texts(sources: Sequence[Source]) -> Table:
    """A row per count that a sweep's lock has; the note has its sentences."""
    rows = [{"sweep": source.name} | row for source in sources for row in _rows(source.lock)]
    columns = [
        Column("sweep", "sweep", drop=2), Column("what", "texts"),
        Column("count", "count", lambda r: f"{r['count']:,}"),
        Column("of", "of", lambda r: f"{r['of']:,}" if r["of"] else ""),
        Column("share", "share", lambda r: percentage(r["share"]), drop=1),
    ]  # fmt: skip
    said = [text for source in sources for text in sentences(_data(source.lock))]
    note = "".join(f"{text[0].upper()}{text[1:]}. " for text in dict.fromkeys(said)).strip()
    missing = "These counts are in the sweep's directory, which is not on this machine."
    return make("texts", "Texts and leaks", rows, columns, note or ("" if rows else missing))


def _data(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid counts in the lock's `data`."""
    data = lock.get("data")
    return {key: value for key, value in data.items() if _is_count(value)} if isinstance(data, dict) else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _rows(lock: Mapping[str, Any]) -> Iterator[Row]:
    data = _data(lock)
    parts = {key: lock[key] for key in PARTS if type(lock.get(key)) is int}
    total, read = sum(parts.values()), data.get("read", 0)
    for key, count in parts.items():
        yield _row(PARTS[key], count, total)
    for what, key, of in (
        ("equal to an earlier text", "duplicate", read),
        ("empty", "empty", read),
        ("not text", "non_string", read),
        (f"nearly equal to an earlier text (cosine above {data.get('deduplicate', 0):g})", "near_duplicate", read),
        ("cut at the encoder's limit", "truncated", total),
        ("validation: same embedding as a training text", "equal_validation", parts.get("num_validation", 0)),
        ("test: same embedding as a training text", "equal_test", parts.get("num_test", 0)),
        (f"test: a training text above cosine {data.get('near_above', 0):g}", "near_test", data.get("near_test_of", 0)),
    ):
        if key in data:
            yield _row(what, data[key], of)


def _row(what: str, count: int, of: int) -> Row:
    return {"what": what, "count": count, "of": of, "share": count / of if of else float("nan")}
