"""YAML as a tree of nodes that know where they stand.

Only the events of PyYAML's parser are used: nothing is resolved by tag and no Python object is ever constructed. A
plain scalar keeps its text, because what `on`, `1e-3` or `0755` mean depends on the field it is given for (reading.py).
Size, depth and aliases are bounded, so that no file takes longer than a moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from saebench.errors import SpecError

MAX_BYTES = 64 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 24
MAX_SHOWN = 50
"""Problems listed before "and N more"."""

_INT = re.compile(r"[-+]?[0-9][0-9_]{0,99}")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]{0,99}\.?[0-9_]{0,99}|\.[0-9][0-9_]{0,99})(?:[eE][-+]?[0-9]{1,4})?")
_SPECIAL = re.compile(r"([-+]?)\.?(inf|nan)(?:inity)?", re.IGNORECASE)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_KEY = re.compile(rf"{_NAME}(?:\.{_NAME}|\[[0-9]{{1,4}}\])*")
_STEP = re.compile(rf"({_NAME})|\[([0-9]+)\]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """Where something stands; lines and columns count from 1, 0 where there are none (an override, a dict)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `place: key: value: rule`."""

    place: Place
    key: str
    rule: str
    value: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.value, self.rule) if part)


def complaint(problems: Sequence[Problem]) -> SpecError:
    """One error with all of them, in the order of the file."""
    found = sorted(set(problems), key=lambda p: (p.place.line, p.place.column, p.key, p.rule))
    lines = [str(problem) for problem in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"... and {len(found) - MAX_SHOWN} more problems")
    return SpecError("\n".join(lines))


@dataclass(frozen=True)
class Leaf:
    """A scalar. `value` is None, a number or text (from Python also a bool); a plain word stays text."""

    place: Place
    value: Any
    text: str | None = None
    """As it was written; None where it comes from Python."""
    plain: bool = True
    """Without quotes."""


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
    """The value as one short line."""
    if isinstance(node, Table):
        text = "{" + ", ".join(node.entries) + "}"
    elif isinstance(node, Items):
        text = "[" + ", ".join(shown(item, limit) for item in node.items[:limit]) + "]"
    elif isinstance(node.value, str):
        text = json.dumps(node.value[: limit + 1], ensure_ascii=False)
    else:
        text = "null" if node.value is None else node.text or str(node.value).lower()
    return _short(text, limit)


def _short(text: str, limit: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def join(key: str, name: str) -> str:
    """The dotted key of an entry of `key`."""
    name = name if name.isidentifier() and len(name) <= 60 else shown(Leaf(Place(""), name), 60)
    return f"{key}.{name}" if key else name


def plain_value(text: str) -> Any:
    """None, a number or the text itself: `010` is ten, `1_000` a thousand, `1e-3` a number, `1:30` and `on` text."""
    if text in _NULL:
        return None
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    special = _SPECIAL.fullmatch(text)
    return float(special[1] + special[2]) if special else text


# --- reading a file --------------------------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[Table, list[Problem]]:
    """The tree of a file and what is wrong with keys in it. Raises SpecError where there is no tree: no file, not
    UTF-8, not YAML, too large, too deep, empty."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise SpecError(f"{str(path)!r}: {error}") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path}: too large: a spec has at most {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Place(str(path), before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise SpecError(f"{place}: byte {data[error.start]:#04x} is not UTF-8") from None
    return compose(text, str(path))


def compose(text: str, file: str) -> tuple[Table, list[Problem]]:
    """`read_file` of text that is at hand."""
    node, problems = _Composer(text, file).document()
    if node is None or (isinstance(node, Leaf) and node.value is None):
        raise SpecError(f"{file}: the file is empty: a spec needs at least name, data, sae and train")
    if not isinstance(node, Table):
        raise SpecError(f"{node.place}: a spec is a mapping (key: value), not {shown(node)}")
    return node, problems


class _Composer:
    """Events -> nodes, with every bound kept while it goes."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._text = text
        self._anchors: dict[str, tuple[Node, int, int]] = {}  # the node, its size, its height
        self._count = 0
        self._deepest = 0
        self._problems: list[Problem] = []

    def document(self) -> tuple[Node | None, list[Problem]]:
        node: Node | None = None
        try:
            self._events = yaml.parse(self._text, Loader=yaml.SafeLoader)
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent) and node is not None:
                    raise self._error(event, "a second document: a spec is one")
                if isinstance(event, yaml.NodeEvent):
                    node = self._node(event, "", 1)
        except yaml.MarkedYAMLError as error:
            raise SpecError(self._syntax(error)) from None
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            place = Place(self._file, before.count("\n") + 1, len(before) - before.rfind("\n"))
            code = ord(error.character) if isinstance(error.character, str) else error.character
            raise SpecError(f"{place}: character U+{code:04X} is not allowed in YAML") from None
        except (ValueError, OverflowError):  # an escape such as "\UFFFFFFFF"
            raise SpecError(f"{self._file}: not YAML: an escape names no character") from None
        return node, self._problems

    def _syntax(self, error: yaml.MarkedYAMLError) -> str:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        if "'\\t'" in problem:
            problem = "a tab cannot indent or separate, use spaces"
        place = Place(self._file, mark.line + 1, mark.column + 1) if mark else Place(self._file)
        context = f" ({error.context})" if error.context and error.problem else ""
        return f"{place}: not YAML: " + _short(" ".join(f"{problem}{context}".split()), 200)

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return Place(self._file, mark.line + 1, mark.column + 1) if mark else Place(self._file)

    def _error(self, event: yaml.Event, rule: str, key: str = "") -> SpecError:
        return SpecError(str(Problem(self._place(event), key, rule)))

    def _node(self, event: yaml.Event, key: str, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, key, depth)
        before, outer = self._count, self._deepest
        self._grow(event, 1, depth)
        self._deepest = depth
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise self._error(event, f"tag {str(tag)[:60]}: tags are not allowed in a spec", key)
        if isinstance(event, yaml.ScalarEvent):
            node: Node = self._leaf(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._items(event, key, depth)
        else:
            node = self._table(event, key, depth)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self._anchors[anchor] = (node, self._count - before, self._deepest - depth)
        self._deepest = max(outer, self._deepest)
        return node

    def _alias(self, event: yaml.AliasEvent, key: str, depth: int) -> Node:
        name = event.anchor or ""
        if name not in self._anchors:
            raise self._error(event, f"*{name[:60]}: no anchor of that name is complete above it", key)
        node, size, height = self._anchors[name]
        self._grow(event, size, depth + height)
        self._deepest = max(self._deepest, depth + height)
        return node

    def _grow(self, event: yaml.Event, size: int, depth: int) -> None:
        self._count += size
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested more than {MAX_DEPTH} deep")
        if self._count > MAX_NODES:
            raise self._error(event, f"more than {MAX_NODES:,} values (aliases counted as often as they are used)")

    def _leaf(self, event: yaml.ScalarEvent) -> Leaf:
        odd = _UNPRINTABLE.search(event.value)
        if odd:
            raise self._error(event, f"character U+{ord(odd[0]):04X} is not allowed")
        plain = event.style is None and event.tag is None
        value = plain_value(event.value) if plain else event.value
        return Leaf(self._place(event), value, event.value, plain)

    def _items(self, event: yaml.Event, key: str, depth: int) -> Items:
        items: list[Node] = []
        for inner in self._events:
            if isinstance(inner, yaml.SequenceEndEvent):
                break
            items.append(self._node(inner, f"{key}[{len(items)}]", depth + 1))
        return Items(self._place(event), tuple(items))

    def _table(self, event: yaml.Event, key: str, depth: int) -> Table:
        entries: dict[str, tuple[Place, Node]] = {}
        merged: list[Node] = []
        for inner in self._events:
            if isinstance(inner, yaml.MappingEndEvent):
                break
            name = self._node(inner, key, depth + 1)
            text = name.text if isinstance(name, Leaf) else None
            value = self._node(next(self._events), join(key, text or "?"), depth + 1)
            if text is None:
                self._problems.append(Problem(name.place, key, "a key must be text", shown(name)))
            elif text == "<<":
                merged.append(value)
            elif text in entries:
                first = entries[text][0].line
                self._problems.append(Problem(name.place, join(key, text), f"given twice (first on line {first})"))
            else:
                entries[text] = (name.place, value)
        for node in merged:
            self._merge(entries, node, join(key, "<<"))
        return Table(self._place(event), entries)

    def _merge(self, entries: dict[str, tuple[Place, Node]], node: Node, key: str) -> None:
        """`<<: *base`: keys of its own win over those of the base."""
        for base in node.items if isinstance(node, Items) else (node,):
            if isinstance(base, Table):
                for name, entry in base.entries.items():
                    entries.setdefault(name, entry)
            else:
                self._problems.append(Problem(base.place, key, "<< takes a mapping or a list of them", shown(base)))


# --- other ways in ---------------------------------------------------------------------------------------------------


def from_python(value: Any, label: str, depth: int = 1) -> Node:
    """Plain Python data as nodes, for a spec that is written in Python."""
    place = Place(label)
    if depth > MAX_DEPTH:
        raise SpecError(f"{place}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise SpecError(str(Problem(place, "", "a key must be text", repr(name)[:60])))
        return Table(place, {name: (place, from_python(item, label, depth + 1)) for name, item in value.items()})
    if isinstance(value, list | tuple):
        return Items(place, tuple(from_python(item, label, depth + 1) for item in value))
    if value is None or isinstance(value, bool | int | float | str):
        return Leaf(place, value)
    raise SpecError(
        str(Problem(place, "", "must be a mapping, a list, text, a number, a bool or None", repr(value)[:60]))
    )


def override(root: Table, setting: str) -> Table:
    """`root` with `a.b[0].c=value` applied; the value is YAML. Raises SpecError that names the override."""
    place = Place(f"--set {_short(setting, 80)}")
    key, equals, text = setting.partition("=")
    if not equals:
        raise SpecError(f"{place}: write KEY=VALUE, such as train.samples=1e5")
    if len(text) > MAX_BYTES:
        raise SpecError(f"{place}: too large")
    node, problems = _Composer(text, str(place)).document()
    if problems:
        raise complaint(problems)
    value = _moved(node if node is not None else Leaf(place, None, ""), place)
    changed = _put(root, tuple(_steps(key.strip(), place)), value, "")
    assert isinstance(changed, Table)
    return changed


def _steps(key: str, place: Place) -> Iterator[str | int]:
    if not _KEY.fullmatch(key):
        raise SpecError(f"{place}: {key[:60]!r} is not a key such as train.lr or sae[1].k")
    for step in _STEP.finditer(key):
        yield step[1] or int(step[2])


def _moved(node: Node, place: Place) -> Node:
    if isinstance(node, Table):
        return Table(place, {name: (place, _moved(value, place)) for name, (_, value) in node.entries.items()})
    if isinstance(node, Items):
        return Items(place, tuple(_moved(item, place) for item in node.items))
    return replace(node, place=place)


def _put(node: Node, steps: tuple[str | int, ...], value: Node, key: str) -> Node:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, int):
        if not isinstance(node, Items):
            raise SpecError(str(Problem(value.place, key, "is not a list", shown(node))))
        if step >= len(node.items):
            raise SpecError(str(Problem(value.place, f"{key}[{step}]", f"there are only {len(node.items)} entries")))
        changed = _put(node.items[step], rest, value, f"{key}[{step}]")
        return Items(node.place, (*node.items[:step], changed, *node.items[step + 1 :]))
    if isinstance(node, Leaf) and node.value is None:
        node = Table(value.place)
    if not isinstance(node, Table):
        raise SpecError(str(Problem(value.place, key, f'has no key "{step}"', shown(node))))
    below = node.entries[step][1] if step in node.entries else Table(value.place)
    return Table(node.place, {**node.entries, step: (value.place, _put(below, rest, value, join(key, step)))})
