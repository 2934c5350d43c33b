"""The readable part of a spec, which the rules check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saebench.config import TrainConfig
from saebench.spec.grammar import Arm, SweepSpec, Value, options


@dataclass(frozen=True)
class Draft:
    """The readable part of a spec; `arms` with their index in the list."""

    spec: SweepSpec
    arms: tuple[tuple[int, Arm], ...]
    d_in: int | None = None
    """Width of the embeddings, if known without loading the model."""
    unread: frozenset[str] = frozenset()
    """Keys with problems: their values here may be defaults, which rules must not check."""

    def get(self, *path: str) -> Any:
        """Return a value of the spec; None if it could not be read."""
        key = ".".join(path)
        if any(bad == key or bad.startswith((f"{key}.", f"{key}[")) for bad in self.unread) and len(path) > 1:
            return None
        found: Any = self.spec
        for name in path:
            found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
        return found

    def train(self, name: str) -> tuple[Any, ...]:
        """Return every value that a field of `train` can take, without nulls and unreadable values."""
        if name in self.spec.train or any(bad.startswith(f"train.{name}") for bad in self.unread):
            return given(name, self.get("train", name))
        if any(bad.startswith("train.") and bad[6:] not in TrainConfig.model_fields for bad in self.unread):
            return ()  # a misspelt key may mean this field
        return given(name, TrainConfig.model_fields[name].default)


Found = Iterator[tuple[str, str]]


def given(name: str, value: Value) -> tuple[Any, ...]:
    """Return every value that a field can take, without nulls."""
    return tuple(option for option in options(name, value) if option is not None)


def at(key: str, value: Value, option: Any) -> str:
    """Return the key of one choice."""
    return f"{key}[{value.index(option)}]" if isinstance(value, tuple) and option in value else key
