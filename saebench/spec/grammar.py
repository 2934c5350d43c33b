"""The types of a parsed spec: arms, values and ranges, around the sections of config/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_origin

from pydantic import Field

from saebench.config import SAE_CONFIGS, Config, DataConfig
from saebench.sweep_config import BudgetConfig, EvalConfig, PruneConfig, RunConfig, SearchConfig, TrackingConfig

Scalar = bool | int | float | str | tuple[float, ...] | None
"""One value of a field; the tuple is for `groups`, the only field whose value is a list."""


@dataclass(frozen=True)
class Range:
    """Everything from `low` to `high`, both included; of an integer field where both are ints."""

    low: int | float
    high: int | float
    log: bool = False
    """Drawn uniformly in the logarithm."""
    step: int | float | None = None
    """Only low + i * step."""

    @property
    def integer(self) -> bool:
        """Whether the range contains only whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = tuple[Scalar, ...]
Value = Scalar | Choices | Range


class Arm(Config):
    """One entry of `sae:`. `params` has only those fields of SAE_CONFIGS[type] that the spec sets."""

    type: str
    """Architecture."""
    params: dict[str, Value]
    """Field -> fixed value, choices or range."""

    @property
    def sparsity(self) -> str | None:
        """The parameter that sets the arm's sparsity."""
        return next((name for name in SAE_CONFIGS[self.type].sparsity if self.params.get(name) is not None), None)

    @property
    def width(self) -> str:
        """The parameter that sets the arm's width."""
        return "dict_size" if self.params.get("dict_size") is not None else "expansion_factor"

    def options(self, name: str) -> Value:
        """Return the value of a parameter; the default if the spec does not set it."""
        return self.params[name] if name in self.params else SAE_CONFIGS[self.type].model_fields[name].default


class SweepSpec(Config):
    """A sweep. Made by `load_spec` or `parse_spec`, which check it; relative paths in it are resolved."""

    name: str
    """Name of the sweep and of its directory: letters, digits, dots, dashes and underscores."""
    description: str = ""
    """The question that the sweep is to answer."""
    data: DataConfig
    """Texts and encoder."""
    sae: tuple[Arm, ...]
    """The arms: SAE types and their parameters."""
    train: dict[str, Value]
    """Budget and optimiser; fields of TrainConfig, most of which can be searched."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initialisation and data order, the same for all arms. The first one searches and chooses a point per
    stratum, the others measure that point. --extend can add more."""
    replicate: Literal["chosen", "all"] = "chosen"
    """Points that the seeds after the first measure: the chosen point of every stratum, or all points."""
    search: SearchConfig = SearchConfig()
    """How points are drawn and refined."""
    prune: PruneConfig = PruneConfig()
    """When a trial is stopped before its end."""
    run: RunConfig = RunConfig()
    """Where and how trials run."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics and SAEs are recorded."""
    eval: EvalConfig = EvalConfig()
    """Additional metrics, and how the verdict uses them."""
    budget: BudgetConfig = Field(default=BudgetConfig())
    """Limits that end the sweep; it can be resumed."""

    def plain(self) -> dict[str, Any]:
        """Return the spec as plain data (JSON-able), with every default written out; `parse_spec` reads it back."""
        found: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            found[name] = value.model_dump(mode="json") if isinstance(value, Config) else value
        found["sae"] = [{"type": arm.type, **_plain_values(arm.params)} for arm in self.sae]
        found["train"] = _plain_values(self.train)
        found["seeds"] = list(self.seeds)
        return found


def _plain_values(values: Mapping[str, Value]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Value) -> Any:
    if isinstance(value, Range):
        return {
            "low": value.low,
            "high": value.high,
            **({"log": True} if value.log else {}),
            **({"step": value.step} if value.step is not None else {}),
        }
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def is_list_field(name: str) -> bool:
    """Return whether one value of an SAE's field is a list, so that only a list of lists gives choices."""
    found = [config.model_fields[name] for config in SAE_CONFIGS.values() if name in config.model_fields]
    return any(get_origin(field.annotation) is tuple for field in found)


def choices(name: str, value: Value) -> Choices | None:
    """Return the choices of a field; None if its value is fixed or a range."""
    if not isinstance(value, tuple):
        return None
    return value if not is_list_field(name) or isinstance(value[0], tuple) else None


def options(name: str, value: Value) -> tuple[Any, ...]:
    """Return every value that the field can take; of a range, its two ends."""
    if isinstance(value, Range):
        return (value.low, value.high)
    return choices(name, value) or (value,)
