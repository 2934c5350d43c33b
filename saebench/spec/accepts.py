"""The values that a field's type accepts, as a check and as a sentence for messages."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from saebench.config import Config
from saebench.spec.nodes import Leaf, Node, plain_value


class Bad:
    """Marks a value that could not be read; the list of problems has the reason."""


BAD: Final = Bad()
LARGEST = 2**53
"""Largest whole number that every JSON parser keeps exact."""
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})


@dataclass(frozen=True)
class Accepts:
    """The kinds of YAML values that a field's type accepts."""

    kinds: frozenset[type] = frozenset()
    """bool, int, float, str, NoneType."""
    words: tuple[str, ...] = ()
    """The values of a Literal."""
    item: Any = None
    """Type of the items of a list."""
    model: type[Config] | None = None

    @property
    def bound(self) -> Any:
        """Type of the ends of a range."""
        return float if float in self.kinds else int

    @property
    def numeric(self) -> bool:
        return bool(self.kinds & {int, float})

    def scalar(self, leaf: Leaf) -> Any:
        """Return the leaf as one of the accepted types, before constraints; BAD if it is of no accepted type."""
        value = leaf.value
        if value is None:
            return None if type(None) in self.kinds else BAD
        if bool in self.kinds and (isinstance(value, bool) or (leaf.plain and leaf.text in _words(leaf))):
            return value if isinstance(value, bool) else leaf.text is not None and leaf.text.lower() in _TRUE
        if isinstance(value, bool):
            return BAD
        if isinstance(value, str) and leaf.text is None:
            value = self._as_loaded(value)
        if isinstance(value, int | float) and self.numeric:
            return self._numeric(value)
        text = leaf.text if leaf.text is not None else value
        return text if text in self.words or (str in self.kinds and isinstance(text, str)) else BAD

    def _as_loaded(self, text: str) -> Any:
        """Return text from Python, as a number if the field accepts only numbers: `yaml.safe_load` reads 3e-4 as
        "3e-4"."""
        if not self.numeric or str in self.kinds or text in self.words:
            return text
        value = plain_value(text)
        return text if value is None else value

    def _numeric(self, value: int | float) -> Any:
        if not math.isfinite(value):
            return BAD
        if float in self.kinds:
            return float(value) if abs(value) < 1e300 else BAD
        return int(value) if value == int(value) and abs(value) <= LARGEST else BAD

    def rule(self, node: Node) -> str:
        """Return what the field accepts as a sentence, with a suggestion if the value is a misspelt word."""
        value = node.value if isinstance(node, Leaf) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and self.numeric:
            if not math.isfinite(value) or abs(value) >= 1e300:
                return "must be finite"
            if float not in self.kinds and abs(value) > LARGEST:
                return f"must be at most {LARGEST}"
        kinds = [*(words for kind, words in _IN_WORDS.items() if kind in self.kinds), _one_of(self.words)]
        if {int, float} <= self.kinds:
            kinds.remove(_IN_WORDS[int])
        numbers = " such as [0, 1, 2]" * (self.item is int)  # seeds: 3 may mean three of them
        kinds += [f"a list{numbers}"] * (self.item is not None)
        kinds += [f"a mapping with {', '.join(self.model.model_fields)}"] if self.model is not None else []
        kinds += ["null"] * (type(None) in self.kinds)
        hint = did_you_mean(value, self.words) if isinstance(value, str) else ""
        if isinstance(value, str) and isinstance(node, Leaf) and not node.plain and node.text is not None and not hint:
            hint = "it is in quotes, which make it text" * bool(self.kinds & {int, float, bool})
        return "must be " + " or ".join(kind for kind in kinds if kind) + (f" ({hint})" if hint else "")


_IN_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "on or off", str: "text"}


def _words(leaf: Leaf) -> tuple[str, ...]:
    """Return the spellings of the leaf's text that YAML 1.1 reads as booleans: on, On, ON."""
    text = leaf.text or ""
    return (text,) if text.lower() in _TRUE | _FALSE and text in (text.lower(), text.upper(), text.capitalize()) else ()


def _one_of(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return quoted[0] if len(quoted) == 1 else "one of " + ", ".join(quoted) if quoted else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean "k"?`, or "" if no known name is close."""
    known = list(known)
    close = get_close_matches(name.lower(), known, 1, 0.6) if len(name) <= 40 else []
    if not close and len(name) == 2 and name[0] == name[1] and name[0] in known:
        close = [name[0]]
    return f'did you mean "{close[0]}"?' if close else ""


def field_type(model: type[Config], name: str) -> Any:
    """Return the type of a field with its constraints."""
    field = model.model_fields[name]
    metadata = tuple(field.metadata)
    return Annotated[field.annotation, *metadata] if metadata else field.annotation


@lru_cache(maxsize=512)
def accepts(annotation: Any) -> Accepts:
    """Return the kinds of values that a type accepts."""
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
    """Return pydantic's validator of a type."""
    return TypeAdapter(annotation)


_RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "value_error": "{error}",
}


def rule_of(error: ValidationError) -> str:
    """Return pydantic's first error in the wording of our rules."""
    first = error.errors(include_url=False, include_input=False)[0]
    rule = _RULES.get(first["type"])
    return rule.format(**first.get("ctx", {})) if rule else first["msg"][:1].lower() + first["msg"][1:]
