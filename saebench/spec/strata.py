"""Strata: all combinations of the levels at which trials may be compared fairly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.spec.grammar import Arm, Range, Scalar, SweepSpec, Value, choices, options

WIDTH = ("dict_size", "expansion_factor")
_LABELS = {"k": "k", "dict_size": "n", "expansion_factor": "x", "target_l0": "l0_", "control": ""}


def axis_names(spec: SweepSpec, arm: Arm) -> tuple[str, ...]:
    """Return the axes of an arm besides its type. By default the sparsity parameter and the width; else those of
    `search.strata` that the arm has, where `dict_size` and `expansion_factor` both mean the one that it sets."""
    if spec.search.strata is None:
        wanted: tuple[str | None, ...] = (arm.sparsity, arm.width, "control")
    else:
        wanted = (*(arm.width if name in WIDTH else name for name in spec.search.strata), "control")
    known = SAE_CONFIGS[arm.type].model_fields.keys() | TrainConfig.model_fields.keys()
    names = (name for name in wanted if name is not None and name != "type" and name in known)
    return tuple(name for name in dict.fromkeys(names) if setting(spec, arm, name) is not None)


def setting(spec: SweepSpec, arm: Arm, name: str) -> Value:
    """Return the spec's value of a field of the arm or of `train`; the default if the spec does not set it."""
    if name in SAE_CONFIGS[arm.type].model_fields:
        return arm.options(name)
    return spec.train[name] if name in spec.train else TrainConfig.model_fields[name].default


def levels(name: str, value: Value) -> tuple[Scalar, ...]:
    """Return the levels of an axis. A range has no levels (rules.py refuses it)."""
    if isinstance(value, Range):
        return ()
    found: tuple[Any, ...] = choices(name, value) or (value,)
    return found


def refusal(spec: SweepSpec, arm: Arm, point: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (parameter, rule) that keeps a point of `search.enqueue` out of all strata of an arm; None if it belongs
    to one. A searched parameter that it leaves out is drawn."""
    axes = axis_names(spec, arm)
    known = SAE_CONFIGS[arm.type].model_fields.keys() | TrainConfig.model_fields.keys()
    for name, value in point.items():
        if name not in known:
            return name, f"has no {name}"
        if name == "type":
            if value != arm.type:
                return name, "is of another type"
            continue
        given = setting(spec, arm, name)
        allowed = levels(name, given) if name in axes else options(name, given)
        if isinstance(given, Range):
            if not isinstance(value, int | float) or not given.low <= value <= given.high:
                return name, f"{name} {value} is outside {given.low:g}..{given.high:g}"
            if given.integer and value != int(value):
                return name, f"{name} {value} is not a whole number"
        elif value not in allowed:
            listed = ", ".join(label(option) for option in allowed)
            return name, f"{name} is {listed}, not {value}" if len(
                allowed
            ) == 1 else f"{name} {value} must be one of {listed}"
    return None


_MOST_STRATA = 1_000
"""Strata of an arm that are looked through."""


def too_many_enqueued(spec: SweepSpec, arm: Arm) -> str:
    """Say which stratum of the arm has more points in `search.enqueue` than `search.points`, so that the last would
    never be tried; "" if none."""
    fits = [point for point in spec.search.enqueue if refusal(spec, arm, point) is None]
    most = spec.search.points or 1
    if len(fits) <= most:
        return ""
    for axes in itertools.islice(cross(spec, arm), _MOST_STRATA):
        own = [point for point in fits if all(point.get(name, value) == value for name, value in axes.items())]
        different = {frozenset((n, v) for n, v in point.items() if _is_searched(spec, arm, n, axes)) for point in own}
        if len(different) > most:
            return f"has {len(different)} points for {stratum_id(axes)}, where search.points is {most}: raise it"
    return ""


def _is_searched(spec: SweepSpec, arm: Arm, name: str, axes: Mapping[str, Scalar]) -> bool:
    if name in axes:
        return False
    given = setting(spec, arm, name)
    return isinstance(given, Range) or len(options(name, given)) > 1


def count(spec: SweepSpec, arm: Arm) -> int:
    """Return the number of strata of the arm, without listing them."""
    return math.prod(len(levels(name, setting(spec, arm, name))) for name in axis_names(spec, arm))


def cross(spec: SweepSpec, arm: Arm, d_in: int | None = None) -> Iterator[dict[str, Scalar]]:
    """Yield the axes of every stratum of an arm; the width as dict_size if `d_in` is known."""
    names = axis_names(spec, arm)
    for combination in itertools.product(*(levels(name, setting(spec, arm, name)) for name in names)):
        axes: dict[str, Scalar] = {"type": arm.type, **dict(zip(names, combination, strict=True))}
        factor = axes.get("expansion_factor")
        if d_in is not None and isinstance(factor, int | float):
            axes = {("dict_size" if k == "expansion_factor" else k): v for k, v in axes.items()}
            axes["dict_size"] = round(factor * d_in)
        yield axes


def stratum_id(axes: dict[str, Scalar]) -> str:
    """Return an id such as "topk-k16-n3072", valid in file names, study names and tags."""
    parts = [str(axes["type"])]
    parts += [f"{_LABELS.get(k, k + '_')}{label(v)}" for k, v in axes.items() if k != "type"]
    return "-".join(parts)


def label(value: Scalar) -> str:
    """Return a value as short text: 16.0 is 16, True is on."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "_".join(label(item) for item in value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
