"""`--set KEY=VALUE`: replace a value in the tree, or add one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from saebench.errors import SpecError
from saebench.spec.nodes import Items, Leaf, Node, Place, Problem, Table, complaint, join, short, shown
from saebench.spec.source import MAX_BYTES, Composer

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_KEY = re.compile(rf"{_NAME}(?:\.{_NAME}|\[[0-9]{{1,4}}\])*")
_STEP = re.compile(rf"({_NAME})|\[([0-9]+)\]")


def override(root: Table, setting: str) -> Table:
    """Return `root` with `a.b[0].c=value` applied; the value is YAML. Raises SpecError that names the override."""
    place = Place(f"--set {short(setting, 80)}")
    key, equals, text = setting.partition("=")
    if not equals:
        raise SpecError(f"{place}: write KEY=VALUE, such as train.samples=1e5")
    if len(text) > MAX_BYTES:
        raise SpecError(f"{place}: too large: at most {MAX_BYTES // 1024} KiB")
    node, problems = Composer(text, str(place)).document()
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
