"""Parse YAML into a tree of nodes with positions.

Only the events of PyYAML's parser are used: no tag is resolved and no Python object is constructed. A plain scalar
keeps its text, because the meaning of `on`, `1e-3` or `0755` depends on the field (reading.py). Size, depth and aliases
are limited, so that every file is read within a second.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from saebench.errors import SpecError
from saebench.spec.nodes import (
    MAX_DEPTH,
    Items,
    Leaf,
    Node,
    Place,
    Problem,
    Table,
    forbidden_character,
    join,
    plain_value,
    short,
    shown,
)

MAX_BYTES = 64 * 1024
MAX_NODES = 10_000

_NO_CHARACTER = re.compile(r"\\U(?!000[0-9A-Fa-f]|0010)[0-9A-Fa-f]{8}")


def read_text(path: Path) -> str:
    """Return the text of a spec's file, of a pipe, or (-) of the standard input. Raises SpecError for a missing file,
    one that is not UTF-8, or too large."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise SpecError(f"{str(path)!r}: {error}") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path}: too large: a spec has at most {MAX_BYTES // 1024} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Place(str(path), before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise SpecError(f"{place}: byte {data[error.start]:#04x} is not UTF-8") from None


def compose(text: str, file: str) -> tuple[Table, list[Problem]]:
    """Return the tree of a spec's text and the problems of its keys. Raises SpecError for text that has no tree: not
    YAML, too deep, empty. `file` is the name in messages."""
    node, problems = Composer(text, file).document()
    if node is None or (isinstance(node, Leaf) and node.value is None):
        raise SpecError(f"{file}: the file is empty: a spec needs at least name, data, sae and train")
    if not isinstance(node, Table):
        raise SpecError(f"{node.place}: a spec is a mapping (key: value), not {shown(node)}")
    return node, problems


class Composer:
    """Builds nodes from events, and checks the limits while it does."""

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
                    raise self._error(event, "a second document: a spec is a single one; remove what follows")
                if isinstance(event, yaml.NodeEvent):
                    node = self._node(event, "", 1)
        except yaml.MarkedYAMLError as error:
            raise SpecError(self._syntax(error)) from None
        except yaml.reader.ReaderError as error:
            code = ord(error.character) if isinstance(error.character, str) else error.character
            raise SpecError(f"{self._at(error.position)}: character U+{code:04X} is not allowed in YAML") from None
        except (ValueError, OverflowError):  # from chr()
            found = _NO_CHARACTER.search(self._text)
            place = self._at(found.start()) if found else Place(self._file)
            raise SpecError(f"{place}: not YAML: an escape that names no character") from None
        return node, self._problems

    def _syntax(self, error: yaml.MarkedYAMLError) -> str:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not YAML"
        if "'\\t'" in problem:
            problem = "a tab cannot indent or separate, use spaces"
        place = Place(self._file, mark.line + 1, mark.column + 1) if mark else Place(self._file)
        context = f" ({error.context})" if error.context and error.problem else ""
        return f"{place}: not YAML: " + short(" ".join(f"{problem}{context}".split()), 200)

    def _at(self, position: int) -> Place:
        before = self._text[:position]
        return Place(self._file, before.count("\n") + 1, len(before) - before.rfind("\n"))

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
        if rule := forbidden_character(event.value):
            raise self._error(event, rule)
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
        """Apply `<<: *base`: the mapping's own keys win over those of the base."""
        for base in node.items if isinstance(node, Items) else (node,):
            if isinstance(base, Table):
                for name, entry in base.entries.items():
                    entries.setdefault(name, entry)
            else:
                self._problems.append(Problem(base.place, key, "<< takes a mapping or a list of them", shown(base)))
