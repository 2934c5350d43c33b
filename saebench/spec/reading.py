"""Convert nodes to typed values by the fields of config/, the only declaration of what a field accepts.

The field's type determines how an unquoted word is read: `off` is False for `cache` and text for `prompt`, `1e5` is a
hundred thousand for `samples` and a commit for `revision`. Functions append to `problems` and continue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from saebench.config import Config
from saebench.spec.accepts import BAD, Bad, accepts, adapter, did_you_mean, field_type, rule_of
from saebench.spec.grammar import Range, Value
from saebench.spec.nodes import MAX_SHOWN, Items, Leaf, Node, Place, Problem, Table, join, shown
from saebench.spec.synonyms import synonym_hint


class Reader:
    """Collects problems, and the node of every value read, by dotted key."""

    def __init__(self, root: Node) -> None:
        self.problems: list[Problem] = []
        self.nodes: dict[str, Node] = {"": root}

    def complain(self, place: Place, key: str, rule: str, value: str = "") -> Bad:
        self.problems.append(Problem(place, key, rule, value))
        return BAD

    def refuse(self, node: Node, key: str, rule: str) -> Bad:
        """Do `complain` about a node, and show its value."""
        return self.complain(node.place, key, rule, shown(node))

    # --- mappings ----------------------------------------------------------------------------------------------------

    def table(self, node: Node, key: str) -> Table | None:
        """Return the node if it is a mapping; read null (a section with all lines commented out) as an empty one."""
        self.nodes[key] = node
        if isinstance(node, Table):
            return node
        if isinstance(node, Leaf) and node.value is None:
            return Table(node.place)
        self.refuse(node, key, "must be a mapping (key: value)")
        return None

    def broken(self, key: str, rule: str) -> None:
        """Complain about a key at the position of its value, or of the enclosing section if it is not written out."""
        inside = key
        while inside not in self.nodes:
            inside = inside[: max(inside.rfind("."), inside.rfind("["), 0)]
        node = self.nodes[inside]
        simple = isinstance(node, Leaf) or (isinstance(node, Items) and all(isinstance(i, Leaf) for i in node.items))
        self.complain(node.place, key, rule, shown(node) if simple and inside == key else "")

    def unknown(self, place: Place, key: str, name: str, known: Iterable[str], hint: str = "") -> None:
        hint = hint or synonym_hint(name) or (did_you_mean(name, known) if len(self.problems) < MAX_SHOWN else "")
        self.complain(place, join(key, name), "unknown key" + (f" ({hint})" if hint else ""))

    def section(self, model: type[Config], node: Node, key: str, skip: Iterable[str] = ()) -> Any:
        """Return an instance of `model`. If there are problems, it has the readable values, and defaults for the rest:
        only good for finding further problems."""
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
        if len(self.problems) == before:
            try:
                return model(**values)
            except ValidationError as error:  # a rule between its fields
                self.complain(table.place if table else node.place, key, rule_of(error))
        return model.model_construct(**values)

    def missing(self, model: type[Config], table: Table | None, key: str) -> None:
        """Complain about required fields that a mapping lacks."""
        if table is None:
            return
        fields = model.model_fields
        left_out = {name for name, (_, node) in table.entries.items() if name in fields and _is_null(node)}
        given = [name for name in table.entries if name not in left_out or fields[name].is_required()]
        for name in model.required(given):
            self.complain(table.place, join(key, name), "is missing")

    def field(self, model: type[Config], name: str, node: Node, key: str) -> Any:
        """Return one value for one field."""
        annotation = field_type(model, name)
        takes = accepts(annotation)
        if takes.model is not None and (isinstance(node, Table) or not takes.kinds):
            return self.section(takes.model, node, key)
        return self.value(annotation, node, key)

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, annotation: Any, node: Node, key: str) -> Any:
        """Return the node as a value of this type that meets its constraints; BAD otherwise."""
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

    def searchable(self, model: type[Config], name: str, node: Node, key: str) -> Value | Bad:
        """Return a fixed value, a list of choices or a range, each value checked against the field."""
        annotation = field_type(model, name)
        takes = accepts(annotation)
        self.nodes[key] = node
        if isinstance(node, Table):
            return self.range(annotation, node, key)
        if isinstance(node, Items) and (takes.item is None or any(isinstance(item, Items) for item in node.items)):
            return self.choices(annotation, node, key)
        found: Value | Bad = self.value(annotation, node, key)
        return found

    def choices(self, annotation: Any, node: Items, key: str) -> Value | Bad:
        if not node.items:
            return self.refuse(node, key, "a list of choices needs at least one")
        values = [self.value(annotation, item, f"{key}[{i}]") for i, item in enumerate(node.items)]
        for i, value in enumerate(values):
            if value is not BAD and value in values[:i]:
                self.refuse(node.items[i], f"{key}[{i}]", "is in the list twice")
                values[i] = BAD
        return BAD if any(value is BAD for value in values) else tuple(values)

    def range(self, annotation: Any, node: Table, key: str) -> Value | Bad:
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
                bounds[name] = self._bound(annotation, node.entries[name][1], join(key, name))
        log = self.value(bool, node.entries["log"][1], join(key, "log")) if "log" in node.entries else False
        step = None
        if "step" in node.entries and not _is_null(node.entries["step"][1]):
            step = self.value(takes.bound, node.entries["step"][1], join(key, "step"))
        if len(self.problems) > before:
            return BAD
        found = Range(bounds["low"], bounds["high"], log, step)
        rule = _range_rule(found)
        return self.refuse(node, key, rule) if rule else found

    def _bound(self, annotation: Any, node: Node, key: str) -> Any:
        """Return an end of a range: a number that the field accepts, never null."""
        read = self.value(accepts(annotation).bound, node, key)
        return read if read is BAD else self.value(annotation, node, key)


def _is_null(node: Node) -> bool:
    return isinstance(node, Leaf) and node.value is None


def _range_rule(found: Range) -> str | None:
    """Return the rule that the range as a whole breaks; None if it is valid."""
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
