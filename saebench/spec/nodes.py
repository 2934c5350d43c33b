"""Nodes of a spec's tree with their positions, and problems that name the position."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from saebench.errors import SpecError
from saebench.escape import CONTROLS

MAX_DEPTH = 24
MAX_SHOWN = 50
"""Problems listed before "and N more"."""

_INT = re.compile(r"[-+]?[0-9][0-9_]{0,99}")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]{0,99}\.?[0-9_]{0,99}|\.[0-9][0-9_]{0,99})(?:[eE][-+]?[0-9]{1,4})?")
_SPECIAL = re.compile(r"([-+]?)\.?(inf|nan)(?:inity)?", re.IGNORECASE)
_FORBIDDEN = re.compile(rf"(?!\r)[{CONTROLS}\ud800-\udfff]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True)
class Place:
    """A position; lines and columns count from 1, and are 0 for an override or a dict."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One problem of a spec: `place: key: value: rule`."""

    place: Place
    key: str
    rule: str
    value: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.value, self.rule) if part)


def complaint(problems: Sequence[Problem]) -> SpecError:
    """Return one error that lists all problems, in the order of the file."""
    found = sorted(set(problems), key=lambda p: (p.place.line, p.place.column, p.key, p.rule))
    lines = [str(problem) for problem in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"... and {len(found) - MAX_SHOWN} more problems")
    return SpecError("\n".join(lines))


@dataclass(frozen=True)
class Leaf:
    """A scalar. `value` is None, a number or text (from Python also a bool); an unquoted word stays text."""

    place: Place
    value: Any
    text: str | None = None
    """The text as written; None if the value comes from Python."""
    plain: bool = True
    """Whether it was written without quotes."""


@dataclass(frozen=True)
class Items:
    """A list."""

    place: Place
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Table:
    """A mapping: key -> (place of the key, value)."""

    place: Place
    entries: dict[str, tuple[Place, Node]] = field(default_factory=dict)


Node = Leaf | Items | Table


def shown(node: Node, limit: int = 60) -> str:
    """Return the value as one short line."""
    if isinstance(node, Table):
        text = "{" + ", ".join(node.entries) + "}"
    elif isinstance(node, Items):
        text = "[" + ", ".join(shown(item, limit) for item in node.items[:limit]) + "]"
    elif isinstance(node.value, str):
        text = json.dumps(node.value[: limit + 1], ensure_ascii=False)
    else:
        text = "null" if node.value is None else node.text or str(node.value).lower()
    return short(text, limit)


def short(text: str, limit: int) -> str:
    """Return one printable line of at most `limit` characters."""
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def join(key: str, name: str) -> str:
    """Return the dotted key of an entry of `key`."""
    name = name if name.isidentifier() and len(name) <= 60 else shown(Leaf(Place(""), name), 60)
    return f"{key}.{name}" if key else name


def plain_value(text: str) -> Any:
    """Return None, a number or the text itself: `010` is ten, `1_000` a thousand, `1e-3` a number, `1:30` and `on`
    text."""
    if text in _NULL:
        return None
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    special = _SPECIAL.fullmatch(text)
    return float(special[1] + special[2]) if special else text


def forbidden_character(text: str) -> str:
    """Return a message about the first forbidden character in `text` (a control character, half of a surrogate pair),
    else "". Such characters could control a terminal, or reorder text, wherever a name or description is shown."""
    found = _FORBIDDEN.search(text)
    return f"character U+{ord(found[0]):04X} is not allowed: remove it" if found else ""


def from_python(value: Any, label: str, depth: int = 1, key: str = "") -> Node:
    """Return plain Python data as nodes, for a spec written in Python. NumPy's scalars and arrays, ranges and paths are
    converted. Raises SpecError with the key of a value of any other type."""
    place = Place(label)
    if depth > MAX_DEPTH:
        raise SpecError(f"{place}: nested more than {MAX_DEPTH} deep")
    value = _plain(value)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise SpecError(str(Problem(place, key, "a key must be text", repr(name)[:60])))
        items = {name: from_python(item, label, depth + 1, join(key, name)) for name, item in value.items()}
        return Table(place, {name: (place, item) for name, item in items.items()})
    if isinstance(value, list | tuple):
        return Items(place, tuple(from_python(item, label, depth + 1, f"{key}[{i}]") for i, item in enumerate(value)))
    if isinstance(value, int) and abs(value) > 10**100:
        raise SpecError(str(Problem(place, key, "a number of more than 100 digits")))
    if isinstance(value, str) and (rule := forbidden_character(value)):
        raise SpecError(str(Problem(place, key, rule, short(json.dumps(value), 60))))
    if value is None or isinstance(value, bool | int | float | str):
        return Leaf(place, value)
    raise SpecError(
        str(Problem(place, key, "must be a mapping, a list, text, a number, a bool or None", repr(value)[:60]))
    )


def _plain(value: Any) -> Any:
    """Return `value` as plain data: convert NumPy's and pandas' scalars and arrays by `tolist`, ranges and paths."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, range):
        return list(value)
    if type(value).__module__.partition(".")[0] in ("numpy", "pandas") and hasattr(value, "tolist"):
        return value.tolist()
    return value
