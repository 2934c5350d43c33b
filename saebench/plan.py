"""spec -> strata -> points -> trials, before anything runs and without torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from saebench.config import DEAD_WINDOW, SAE_CONFIGS, TrainConfig, TrialConfig, default_eval_every, marks
from saebench.errors import DataError, SpecError
from saebench.hub import width_of
from saebench.response import Axis
from saebench.spec import Arm, Range, Scalar, SweepSpec, Value, choices, options
from saebench.spec.accepts import rule_of
from saebench.spec.draft import Draft
from saebench.spec.rules import check
from saebench.spec.strata import axis_names, cross, label, stratum_id

Choices = tuple[Scalar, ...]
PRUNE_SHARE = 0.2
"""Share of the budget before which no trial is pruned; the default of `prune.warmup`.

Measured on the full learning curves of 208 points in 16 strata (experiments/early_signal and experiments/pruning):
Spearman(FVU here, final FVU) is 0.83 on average in the former (0.60 at a tenth, 0.94 at half). Median with two startup
trials keeps a point within 1% of the best in 84 to 98% of random orders, and at 25 or 35% in no more of them; nearly
all lost points are jumprelu's, whose best points look average until late."""
LEAST_REFINED = 3
"""Least number of drawn points of a stratum for a refinement; with fewer, nothing can be fitted."""


@dataclass(frozen=True)
class Stratum:
    """Trials that may be compared with each other: one search, one Optuna study.

    `axes`, `fixed` and `space` are flat: fields of the SAE and of training together, whose names are disjoint.
    """

    id: str
    """"topk-k16-n3072"; "topk-k16-x8" while the width of the embeddings is not known."""
    type: str
    axes: dict[str, Scalar]
    """Axes that define the stratum: type, and by default the sparsity parameter and the width."""
    fixed: dict[str, Scalar]
    """Fields that the spec fixes besides the axes."""
    space: dict[str, Choices | Range]
    """Searched fields; every tuple has at least two choices."""
    points: int
    """Target number of points, including those already drawn."""
    refine: int = 0
    """Most refinements around the best point; 0 if no range is searched."""
    grid: tuple[dict[str, Scalar], ...] | None = None
    """All points of the grid sampler; None for other samplers."""

    @property
    def ranges(self) -> tuple[Axis, ...]:
        """The ranges that are searched, in the order of the space."""
        return tuple(
            Axis(name, value.low, value.high, value.log, value.integer, value.step)
            for name, value in self.space.items()
            if isinstance(value, Range)
        )


@dataclass(frozen=True)
class Plan:
    """A spec with its strata. Equal specs and equal `d_in` give equal plans, ids included."""

    spec: SweepSpec
    d_in: int | None
    """Width of the embeddings; None if it is known only after loading the model."""
    strata: tuple[Stratum, ...]
    cache_key: str | None = None
    second_key: str | None = None
    """Key of the cache entry that every trial trains on; None before there is one."""

    @property
    def n_points(self) -> int:
        """Points of all strata."""
        return sum(stratum.points for stratum in self.strata)

    @property
    def n_trials(self) -> int:
        """Upper bound on the trials: every refinement, and the other seeds of the chosen points (or of all)."""
        return sum(self.trials_of(stratum) for stratum in self.strata)

    def trials_of(self, stratum: Stratum) -> int:
        """Upper bound on the trials of one stratum."""
        tried = stratum.points + stratum.refine
        return tried + (1 if self.spec.replicate == "chosen" else tried) * (len(self.spec.seeds) - 1)

    @cached_property
    def eval_every(self) -> int:
        """Examples between two evaluations: the spec's value, else a twentieth of the budget, but at least one
        batch."""
        samples, given = self.samples, self.spec.train.get("eval_every")
        return (
            given
            if isinstance(given, int)
            else max(default_eval_every(samples), min(_highest(self.spec, "batch_size"), samples))
        )

    def check_corpus(self, num_train: int) -> None:
        """Raises DataError if the training texts do not fill the largest batch of any trial."""
        largest = _highest(self.spec, "batch_size")
        if num_train < largest:
            raise DataError(f"train.batch_size: {largest:,}: {num_train:,} training texts do not fill one batch")

    @property
    def samples(self) -> int:
        """Examples each trial trains on."""
        value = self.spec.train["samples"]
        assert isinstance(value, int)
        return value

    def marks(self) -> tuple[int, ...]:
        """Examples seen at which every trial evaluates and may be stopped."""
        return self._marks

    @cached_property
    def _marks(self) -> tuple[int, ...]:
        return marks(TrainConfig(samples=self.samples, eval_every=self.eval_every))

    def trial(self, stratum: Stratum, params: Mapping[str, Scalar], seed: int, number: int) -> TrialConfig:
        """The trial of one point and one seed, with dict_size and eval_every filled in.

        Raises SpecError for an invalid point (k >= dict_size), ValueError if `d_in` is unknown."""
        values: dict[str, Any] = {**stratum.fixed, **stratum.axes, **params}
        sae = {name: values.pop(name) for name in SAE_CONFIGS[stratum.type].model_fields if name in values}
        factor = sae.pop("expansion_factor", None)
        if factor is not None:
            if self.d_in is None:
                raise ValueError("the width of the embeddings is not known yet: make_plan(spec, d_in)")
            sae["dict_size"] = round(factor * self.d_in)
        for name in ("k", "target_l0"):
            if sae.get(name) is not None and sae[name] >= sae["dict_size"]:
                raise SpecError(f"{stratum.id}: {name}: {sae[name]:g}: must be below dict_size, {sae['dict_size']}")
        spec = self.spec
        try:
            return TrialConfig(
                sweep=spec.name,
                number=number,
                stratum=stratum.id,
                point=self.point_id(stratum, params),
                seed=seed,
                data=spec.data,
                sae=SAE_CONFIGS[stratum.type](**sae),
                train=TrainConfig(**{**values, "eval_every": self.eval_every}),
                extra_metrics=spec.eval.metrics if spec.eval.extra == "final" else (),
                second_encoder=spec.eval.second_encoder,
                second_key=self.second_key,
                cache_key=self.cache_key,
            )
        except ValidationError as error:
            raise SpecError(f"{stratum.id}: {rule_of(error)}") from None

    def point_id(self, stratum: Stratum, params: Mapping[str, Scalar]) -> str:
        """Ten hex digits that identify a point without its seed."""
        point = {name: label(value) for name, value in {**stratum.fixed, **params}.items()}
        return hashlib.sha256(json.dumps([stratum.id, sorted(point.items())]).encode()).hexdigest()[:10]

    def enqueued(self, stratum: Stratum) -> tuple[dict[str, Scalar], ...]:
        """The searched values of the points of `search.enqueue` that belong to the stratum: those whose other values
        equal the stratum's. A searched parameter that such a point leaves out is drawn by the sampler."""
        own = {**{n: f.default for n, f in _fields(stratum.type).items()}, **stratum.fixed, **stratum.axes}
        found = []
        for point in self.spec.search.enqueue:
            rest = {name: value for name, value in point.items() if name not in stratum.space}
            params = {name: _inside(stratum.space[name], value) for name, value in point.items() if name not in rest}
            if None not in params.values() and all(name in own and own[name] == rest[name] for name in rest):
                found.append({name: inside[0] for name, inside in params.items() if inside})
        return tuple(found)

    def prune_from(self, stratum: Stratum) -> int:
        """Examples at the first mark at which a trial may be stopped: `prune.warmup` (null: a fifth of the budget), but
        never before the lr warm-up, the ramp of the penalty and the first dead window are over; `samples` if there is
        no such mark."""
        texts = self.spec.data.num_examples * (1 - self.spec.data.parts.total)
        window = _maximum(stratum, "dead_after") or min(texts, DEAD_WINDOW)
        ramps = max(_maximum(stratum, "warmup") or 0, _maximum(stratum, "sparsity_warmup") or 0) * self.samples
        given = self.spec.prune.warmup
        floor = max(ramps, window, PRUNE_SHARE * self.samples if given is None else given)
        return self.mark_after(floor)

    def mark_after(self, samples: float) -> int:
        """The first mark at which `samples` examples were seen; the last mark if there is no such mark."""
        return self._marks[min(bisect_left(self._marks, samples), len(self._marks) - 1)]

    def rungs(self, stratum: Stratum) -> tuple[int, ...]:
        """Examples at the rungs of asha and hyperband: the marks at `prune_from` times the powers of the reduction
        factor, without the end."""
        target, found = self.prune_from(stratum), []
        while target < self.samples:
            mark = self.mark_after(target)
            if mark < self.samples and mark not in found:
                found.append(mark)
            target *= self.spec.prune.reduction_factor
        return tuple(found)


def make_plan(
    spec: SweepSpec, d_in: int | None = None, cache_key: str | None = None, second_key: str | None = None
) -> Plan:
    """The plan of a spec. `d_in` is the width of the embeddings, looked up without loading the model if it is not
    given; `cache_key` names their cache entry, `second_key` that of `eval.second_encoder`. Raises SpecError if the spec
    does not fit that width."""
    d_in = d_in if d_in is not None else width_of(spec.data)
    problems = check(Draft(spec, tuple(enumerate(spec.sae)), d_in))
    if problems:
        raise SpecError("\n".join(f"{spec.name}: {key}: {rule}" for key, rule in problems))
    strata = tuple(stratum for arm in spec.sae for stratum in _strata(spec, arm, d_in))
    return Plan(spec, d_in, strata, cache_key, second_key)


def cardinality(space: Mapping[str, Choices | Range]) -> float:
    """How many different points a space has; infinite with a continuous range."""
    return math.prod(len(value) if isinstance(value, tuple) else _steps(value) for value in space.values())


def _steps(value: Range) -> float:
    step = value.step if value.step is not None else 1 if value.integer else None
    return math.inf if step is None else round((value.high - value.low) / step) + 1


def _strata(spec: SweepSpec, arm: Arm, d_in: int | None) -> Iterator[Stratum]:
    axes_names = axis_names(spec, arm)
    fixed: dict[str, Scalar] = {}
    space: dict[str, Choices | Range] = {}
    for name, value in {**arm.params, **spec.train}.items():
        listed = choices(name, value)
        if name in axes_names:
            continue
        if isinstance(value, Range):
            space[name] = value
        elif listed is not None and len(listed) > 1:
            space[name] = listed
        else:
            fixed[name] = options(name, value)[0]
    grid = tuple(_grid(space)) if spec.search.sampler == "grid" else None
    points = len(grid) if grid is not None else int(min(spec.search.points or 1, cardinality(space)))
    ranges = grid is None and any(isinstance(v, Range) for v in space.values())
    refine = spec.search.refine if ranges and points >= LEAST_REFINED else 0
    refine = int(min(refine, cardinality(space) - points))
    for axes in cross(spec, arm, d_in):
        yield Stratum(stratum_id(axes), arm.type, axes, fixed, space, points, refine, grid)


def _grid(space: Mapping[str, Choices | Range]) -> Iterator[dict[str, Scalar]]:
    lists = [value for value in space.values() if isinstance(value, tuple)]
    for combination in itertools.product(*lists):
        yield dict(zip(space, combination, strict=True))


def _fields(kind: str) -> dict[str, Any]:
    return {**TrainConfig.model_fields, **SAE_CONFIGS[kind].model_fields}


def _maximum(stratum: Stratum, name: str) -> float | None:
    """Return the largest value of a field in the stratum; None if it has no value."""
    value: Value = None
    for values in (stratum.space, stratum.axes, stratum.fixed):
        value = values.get(name, value)
    if value is None and name in _fields(stratum.type):
        value = _fields(stratum.type)[name].default
    return max((o for o in options(name, value) if isinstance(o, int | float)), default=None)


def _highest(spec: SweepSpec, name: str) -> int:
    value = spec.train.get(name, TrainConfig.model_fields[name].default)
    return max(o for o in options(name, value) if isinstance(o, int))


def _inside(space: Choices | Range, value: Scalar) -> tuple[Scalar] | None:
    """Return the value in the type of the space (16 as 16.0, say), or None if it lies outside."""
    if isinstance(space, tuple):
        return next(((choice,) for choice in space if choice == value), None)
    if not isinstance(value, int | float) or not space.low <= value <= space.high:
        return None
    if not space.integer:
        return (float(value),)
    return (int(value),) if value == int(value) else None
