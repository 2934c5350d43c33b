"""A spec as far as it could be read, which is what the rules look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saebench.config import TrainConfig
from saebench.spec.grammar import Arm, SweepSpec, Value, options


@dataclass(frozen=True)
class Draft:
    """A spec as far as it could be read; `arms` with their place in the list."""

    spec: SweepSpec
    arms: tuple[tuple[int, Arm], ...]
    d_in: int | None = None
    """Width of the embeddings, where it is known without loading the model."""
    unread: frozenset[str] = frozenset()
    """Keys with problems: defaults may stand in their place, and mean nothing."""

    def get(self, *path: str) -> Any:
        """A value of the spec; None where it was not read."""
        key = ".".join(path)
        if any(bad == key or bad.startswith((f"{key}.", f"{key}[")) for bad in self.unread) and len(path) > 1:
            return None
        found: Any = self.spec
        for name in path:
            found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
        return found

    def train(self, name: str) -> tuple[Any, ...]:
        """Every value that a field of `train` can take, nulls and unread ones left out."""
        if name in self.spec.train or any(bad.startswith(f"train.{name}") for bad in self.unread):
            return given(name, self.get("train", name))
        if any(bad.startswith("train.") and bad[6:] not in TrainConfig.model_fields for bad in self.unread):
            return ()  # this field may be what a misspelt key means
        return given(name, TrainConfig.model_fields[name].default)


Found = Iterator[tuple[str, str]]


def given(name: str, value: Value) -> tuple[Any, ...]:
    """Every value that a field can take, nulls left out."""
    return tuple(option for option in options(name, value) if option is not None)


def at(key: str, value: Value, option: Any) -> str:
    """The key of one choice."""
    return f"{key}[{value.index(option)}]" if isinstance(value, tuple) and option in value else key
