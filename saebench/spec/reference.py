"""The grammar of a spec as a page to read (docs/spec.md). Everything in it comes from the fields of config/."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from pydantic.fields import FieldInfo

from saebench.config import FIXED_TRAIN_FIELDS, SAE_CONFIGS, Config, SAEConfig, TrainConfig
from saebench.spec.accepts import accepts, field_type
from saebench.spec.grammar import SweepSpec

_KINDS: dict[type, str] = {int: "whole number", float: "number", bool: "on, off", str: "text", type(None): "null"}
_TOP = ("sae", "train")
"""Sections whose values may be searched: they have no config class of their own in a spec."""


def reference() -> str:
    """Return Markdown: a table per section of a spec, a row per key."""
    return "\n\n".join(_parts()) + "\n"


def _parts() -> Iterator[str]:
    yield from ("## The top", _table(SweepSpec))
    for name in SweepSpec.model_fields:
        model = accepts(field_type(SweepSpec, name)).model
        if model is not None and name not in _TOP:
            yield from _section(name, model)
    shared = [name for name in SAEConfig.model_fields if name != "type"]
    yield from ("## sae", "`type` and one of `dict_size` and `expansion_factor` are required. Every type has:")
    yield _table(SAEConfig, only=shared)
    for kind, config in SAE_CONFIGS.items():
        own = [name for name in config.model_fields if name not in (*shared, "type")]
        yield from (f"### {kind}", _first(config), _table(config, only=own))
    fixed = ", ".join(f"`{name}`" for name in TrainConfig.model_fields if name in FIXED_TRAIN_FIELDS)
    yield from ("## train", f"Searchable but for {fixed}, which have one value.", _table(TrainConfig))


def _section(name: str, model: type[Config]) -> Iterator[str]:
    yield from (f"## {name}", _first(model), _table(model))
    for field in model.model_fields:
        inner = accepts(field_type(model, field)).model
        if inner is not None:
            yield from _section(f"{name}.{field}", inner)


def _first(model: type[Config]) -> str:
    """Return the first paragraph of a class's docstring, on one line."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _table(model: type[Config], only: Container[str] | None = None) -> str:
    rows = [("key", "value", "default", "meaning"), ("---",) * 4]
    for name, field in model.model_fields.items():
        if only is None or name in only:
            meaning = " ".join((field.description or "").split())
            rows.append((f"`{name}`", _kind(field_type(model, name)), _default(field), meaning.replace("|", "\\|")))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _kind(annotation: Any) -> str:
    """Return a description of the values that a field accepts."""
    takes = accepts(annotation)
    if takes.model is not None and not takes.kinds:
        return "a section"
    numbers = takes.kinds - ({int} if float in takes.kinds else set())
    words = [f"`{word}`" for word in takes.words] + [said for kind, said in _KINDS.items() if kind in numbers]
    if takes.item is not None:
        words.append(f"list of: {_kind(takes.item)}")
    if takes.model is not None:
        words.append("a section")
    return ", ".join(words) or "a section"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, Config):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    words = {None: "null", True: "on", False: "off", "": '""'}
    return f"`{words[value] if value is None or (isinstance(value, bool | str) and value in words) else value}`"
