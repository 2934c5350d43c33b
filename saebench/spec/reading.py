"""Nodes -> typed values, field by field of config.py: what a field accepts and what it refuses is declared there once.

The type of the field decides what a plain word means: `off` is False for `cache` and text for `prompt`, `1e5` is a
hundred thousand for `samples` and a commit for `revision`. Every function appends to `problems` and goes on.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from saebench.config import Config
from saebench.spec.grammar import Range, Value
from saebench.spec.source import MAX_SHOWN, Items, Leaf, Node, Place, Problem, Table, join, shown


class _Bad:
    """Marks a value that could not be read; its problem is on the list."""


BAD: Final = _Bad()
LARGEST = 2**53
"""Largest whole number that every reader of JSON keeps exact."""
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})


class Reader:
    """Collects problems, and the node of every value read, by dotted key."""

    def __init__(self, root: Node) -> None:
        self.problems: list[Problem] = []
        self.nodes: dict[str, Node] = {"": root}

    def complain(self, place: Place, key: str, rule: str, value: str = "") -> _Bad:
        self.problems.append(Problem(place, key, rule, value))
        return BAD

    def refuse(self, node: Node, key: str, rule: str) -> _Bad:
        """`complain` about a value, which is shown."""
        return self.complain(node.place, key, rule, shown(node))

    # --- mappings ----------------------------------------------------------------------------------------------------

    def table(self, node: Node, key: str) -> Table | None:
        """The node if it is a mapping; null, as a section whose lines are all commented out, is an empty one."""
        self.nodes[key] = node
        if isinstance(node, Table):
            return node
        if isinstance(node, Leaf) and node.value is None:
            return Table(node.place)
        self.refuse(node, key, "must be a mapping (key: value)")
        return None

    def broken(self, key: str, rule: str) -> None:
        """Complain by key, at its value; at what it lies in, where it is not written out."""
        inside = key
        while inside not in self.nodes:
            inside = inside[: max(inside.rfind("."), inside.rfind("["), 0)]
        node = self.nodes[inside]
        simple = isinstance(node, Leaf) or (isinstance(node, Items) and all(isinstance(i, Leaf) for i in node.items))
        self.complain(node.place, key, rule, shown(node) if simple and inside == key else "")

    def unknown(self, place: Place, key: str, name: str, known: Iterable[str], hint: str = "") -> None:
        hint = hint or (did_you_mean(name, known) if len(self.problems) < MAX_SHOWN else "")
        self.complain(place, join(key, name), "unknown key" + (f" ({hint})" if hint else ""))

    def section(self, model: type[Config], node: Node, key: str, skip: Iterable[str] = ()) -> Any:
        """An instance of `model`. Where something is wrong, what could be read, with defaults for the rest: enough to
        look for further problems, no more."""
        before = len(self.problems)
        table = self.table(node, key)
        values: dict[str, Any] = {}
        for name, (place, value) in (table.entries if table else {}).items():
            if name in skip:
                continue
            if name not in model.model_fields:
                self.unknown(place, key, name, model.model_fields)
                continue
            read = self.field(model, name, value, join(key, name))
            if read is not BAD:
                values[name] = read
        self.missing(model, table, key)
        return model(**values) if len(self.problems) == before else model.model_construct(**values)

    def missing(self, model: type[Config], table: Table | None, key: str) -> None:
        """Complain about required fields that a mapping lacks."""
        for name, field in model.model_fields.items():
            if table and field.is_required() and name not in table.entries:
                self.complain(table.place, join(key, name), "is missing")

    def field(self, model: type[Config], name: str, node: Node, key: str) -> Any:
        """One value for one field."""
        annotation = field_type(model, name)
        inner = accepts(annotation).model
        if inner is not None:
            return self.section(inner, node, key)
        return self.value(annotation, node, key)

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, annotation: Any, node: Node, key: str) -> Any:
        """The node as a value of this type that meets its constraints; BAD otherwise."""
        takes = accepts(annotation)
        self.nodes[key] = node
        if isinstance(node, Items) and takes.item is not None:
            items = [self.value(takes.item, item, f"{key}[{i}]") for i, item in enumerate(node.items)]
            if any(item is BAD for item in items):
                return BAD
            value: Any = tuple(items)
        else:
            value = takes.scalar(node) if isinstance(node, Leaf) else BAD
            if value is BAD:
                return self.refuse(node, key, takes.rule(node))
        try:
            return adapter(annotation).validate_python(value)
        except ValidationError as error:
            return self.refuse(node, key, rule_of(error))

    def searchable(self, model: type[Config], name: str, node: Node, key: str) -> Value | _Bad:
        """A fixed value, a list of choices or a range, each value checked against the field."""
        annotation = field_type(model, name)
        takes = accepts(annotation)
        self.nodes[key] = node
        if isinstance(node, Table):
            return self.range(annotation, node, key)
        if isinstance(node, Items) and (takes.item is None or any(isinstance(item, Items) for item in node.items)):
            return self.choices(annotation, node, key)
        found: Value | _Bad = self.value(annotation, node, key)
        return found

    def choices(self, annotation: Any, node: Items, key: str) -> Value | _Bad:
        if not node.items:
            return self.refuse(node, key, "a list of choices needs at least one")
        values = [self.value(annotation, item, f"{key}[{i}]") for i, item in enumerate(node.items)]
        for i, value in enumerate(values):
            if value is not BAD and value in values[:i]:
                self.refuse(node.items[i], f"{key}[{i}]", "is in the list twice")
                values[i] = BAD
        return BAD if any(value is BAD for value in values) else tuple(values)

    def range(self, annotation: Any, node: Table, key: str) -> Value | _Bad:
        takes = accepts(annotation)
        if not takes.numeric:
            return self.refuse(node, key, f"{takes.rule(node)}: only numbers have ranges")
        before = len(self.problems)
        for name, (place, _) in node.entries.items():
            if name not in ("low", "high", "log", "step"):
                self.unknown(place, key, name, ("low", "high", "log", "step"))
        bounds: dict[str, Any] = {}
        for name in ("low", "high"):
            if name not in node.entries:
                self.complain(node.place, join(key, name), "is missing: a range has low and high")
            else:
                bounds[name] = self.value(takes.bound, node.entries[name][1], join(key, name))
                if bounds[name] is not BAD:
                    checked = self.value(annotation, node.entries[name][1], join(key, name))
                    bounds[name] = checked
        log = self.value(bool, node.entries["log"][1], join(key, "log")) if "log" in node.entries else False
        step = None
        if "step" in node.entries and not _is_null(node.entries["step"][1]):
            step = self.value(takes.bound, node.entries["step"][1], join(key, "step"))
        if len(self.problems) > before:
            return BAD
        found = Range(bounds["low"], bounds["high"], log, step)
        rule = _range_rule(found)
        return self.refuse(node, key, rule) if rule else found


def _is_null(node: Node) -> bool:
    return isinstance(node, Leaf) and node.value is None


def _range_rule(found: Range) -> str | None:
    """What is wrong with the range as a whole."""
    low, high, step = found.low, found.high, found.step
    if low >= high:
        return f"low must be below high, but {low:g} >= {high:g}"
    if found.log and low <= 0:
        return f"a log range needs low above 0, not {low:g}"
    if step is None:
        return None
    if found.log:
        return "a range has log or step, not both"
    if step <= 0 or step > high - low:
        return f"step must be above 0 and at most high - low, not {step:g}"
    steps = (high - low) / step
    if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
        return f"high - low must be a multiple of step, but {high - low:g} is {steps:g} steps of {step:g}"
    return None


# --- what a field accepts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accepts:
    """The shape of a field's type, as far as YAML can tell shapes apart."""

    kinds: frozenset[type] = frozenset()
    """bool, int, float, str, NoneType."""
    words: tuple[str, ...] = ()
    """The words of a Literal."""
    item: Any = None
    """Type of the items, of a list."""
    model: type[Config] | None = None

    @property
    def bound(self) -> Any:
        """Type of the ends of a range."""
        return float if float in self.kinds else int

    @property
    def numeric(self) -> bool:
        return bool(self.kinds & {int, float})

    def scalar(self, leaf: Leaf) -> Any:
        """The leaf as one of the accepted types, before constraints; BAD where it is none."""
        value = leaf.value
        if value is None:
            return None if type(None) in self.kinds else BAD
        if bool in self.kinds and (isinstance(value, bool) or (leaf.plain and leaf.text in _words(leaf))):
            return value if isinstance(value, bool) else leaf.text is not None and leaf.text.lower() in _TRUE
        if isinstance(value, bool):
            return BAD
        if isinstance(value, int | float) and self.numeric:
            return self._numeric(value)
        text = leaf.text if leaf.text is not None else value
        return text if text in self.words or (str in self.kinds and isinstance(text, str)) else BAD

    def _numeric(self, value: int | float) -> Any:
        if not math.isfinite(value):
            return BAD
        if float in self.kinds:
            return float(value) if abs(value) < 1e300 else BAD
        return int(value) if value == int(value) and abs(value) <= LARGEST else BAD

    def rule(self, node: Node) -> str:
        """What the field accepts, in words; with a suggestion where the value is a misspelt word."""
        value = node.value if isinstance(node, Leaf) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and self.numeric:
            if not math.isfinite(value) or abs(value) >= 1e300:
                return "must be finite"
            if float not in self.kinds and abs(value) > LARGEST:
                return f"must be at most {LARGEST}"
        kinds = [*(words for kind, words in _IN_WORDS.items() if kind in self.kinds), _one_of(self.words)]
        if {int, float} <= self.kinds:
            kinds.remove(_IN_WORDS[int])
        kinds += ["a list"] * (self.item is not None) + ["null"] * (type(None) in self.kinds)
        hint = did_you_mean(value, self.words) if isinstance(value, str) else ""
        if isinstance(value, str) and isinstance(node, Leaf) and not node.plain and node.text is not None and not hint:
            hint = "it is in quotes, which make it text" * bool(self.kinds & {int, float, bool})
        return "must be " + " or ".join(kind for kind in kinds if kind) + (f" ({hint})" if hint else "")


_IN_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "on or off", str: "text"}


def _words(leaf: Leaf) -> tuple[str, ...]:
    """The spellings of the leaf's text that YAML 1.1 knows as booleans: on, On, ON."""
    text = leaf.text or ""
    return (text,) if text.lower() in _TRUE | _FALSE and text in (text.lower(), text.upper(), text.capitalize()) else ()


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return quoted[0] if len(quoted) == 1 else "one of " + ", ".join(quoted) if quoted else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean "k"?`, or nothing."""
    known = list(known)
    close = get_close_matches(name.lower(), known, 1, 0.6) if len(name) <= 40 else []
    if not close and len(name) == 2 and name[0] == name[1] and name[0] in known:
        close = [name[0]]
    return f'did you mean "{close[0]}"?' if close else ""


def field_type(model: type[Config], name: str) -> Any:
    """The type of a field with its constraints."""
    return _field_type(model.model_fields[name])


def _field_type(field: FieldInfo) -> Any:
    metadata = tuple(field.metadata)
    return Annotated[field.annotation, *metadata] if metadata else field.annotation


@lru_cache(maxsize=512)
def accepts(annotation: Any) -> Accepts:
    """The shape of a type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return accepts(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _union([accepts(part) for part in get_args(annotation)])
    if origin is Literal:
        return Accepts(words=get_args(annotation))
    if origin in (tuple, list):
        return Accepts(item=get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return Accepts(model=annotation)
    return Accepts(frozenset({annotation}))


def _union(parts: list[Accepts]) -> Accepts:
    return Accepts(
        frozenset().union(*(part.kinds for part in parts)),
        words=tuple(word for part in parts for word in part.words),
        item=next((part.item for part in parts if part.item is not None), None),
        model=next((part.model for part in parts if part.model is not None), None),
    )


@lru_cache(maxsize=512)
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """pydantic's check of a type."""
    return TypeAdapter(annotation)


_RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "value_error": "{error}",
}


def rule_of(error: ValidationError) -> str:
    """pydantic's first complaint as a rule of ours."""
    first = error.errors(include_url=False, include_input=False)[0]
    rule = _RULES.get(first["type"])
    return rule.format(**first.get("ctx", {})) if rule else first["msg"][:1].lower() + first["msg"][1:]
