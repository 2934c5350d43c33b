"""Rules that hold between the fields of a spec. Each yields (key, rule); all are asked, whatever was wrong before.

A draft may lack what could not be read: then the rules about it say nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from saebench.config import EVAL_METRICS, FIXED_TRAIN_FIELDS, SAE_CONFIGS, SPARSITY_PARAMETERS, TrainConfig
from saebench.spec import strata
from saebench.spec.grammar import LIST_FIELDS, Arm, Range, SweepSpec, Value, choices, options
from saebench.spec.reading import did_you_mean

MAX_STRATA = 2_000
MAX_TRIALS = 100_000
MAX_MARKS = 10_000
LARGEST_SEED = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
            return _given(name, self.get("train", name))
        return _given(name, TrainConfig.model_fields[name].default)


Found = Iterator[tuple[str, str]]


def _given(name: str, value: Value) -> tuple[Any, ...]:
    return tuple(option for option in options(name, value) if option is not None)


def _at(key: str, value: Value, option: Any) -> str:
    """The key of one choice."""
    return f"{key}[{value.index(option)}]" if isinstance(value, tuple) and option in value else key


def check(draft: Draft) -> list[tuple[str, str]]:
    """All that is wrong."""
    return [found for rule in RULES for found in rule(draft)]


# --- one section -----------------------------------------------------------------------------------------------------


def _name_is_a_directory(draft: Draft) -> Found:
    name = draft.get("name")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        yield "name", "must be letters, digits, dots, dashes and underscores, at most 100, a letter or digit first"


def _seeds(draft: Draft) -> Found:
    seeds = draft.get("seeds")
    if seeds == ():
        yield "seeds", "needs at least one seed"
    for i, seed in enumerate(seeds or ()):
        if not 0 <= seed <= LARGEST_SEED:
            yield f"seeds[{i}]", f"must be between 0 and {LARGEST_SEED}"
        if seed in seeds[:i]:
            yield f"seeds[{i}]", "is in the list twice"


def _devices(draft: Draft) -> Found:
    devices = draft.get("run", "devices")
    if devices == ():
        yield "run.devices", "needs at least one device; cpu is a word, not an empty list"
    for i, device in enumerate(devices if isinstance(devices, tuple) else ()):
        if isinstance(device, int) and device < 0:
            yield f"run.devices[{i}]", "must be at least 0"
        if device in devices[:i]:
            yield f"run.devices[{i}]", "is in the list twice"


def _corpus(draft: Draft) -> Found:
    examples, holdout = draft.get("data", "num_examples"), draft.get("data", "holdout")
    if not isinstance(examples, int) or not isinstance(holdout, float):
        return
    if examples * holdout < 1:
        yield "data.num_examples", f"a hold-out of {holdout:g} of {examples} texts is less than one text"
    largest = max(draft.train("batch_size"), default=0)
    if examples * (1 - holdout) < largest:
        yield (
            "data.num_examples",
            f"about {examples * (1 - holdout):.0f} texts to train on are less than one batch of {largest}",
        )


def _budget(draft: Draft) -> Found:
    limit, samples = draft.get("budget", "samples"), draft.get("train", "samples")
    if isinstance(limit, int) and isinstance(samples, int) and limit < samples:
        yield "budget.samples", f"is less than one trial takes (train.samples: {samples})"


def _schedule(draft: Draft) -> Found:
    samples, every = draft.get("train", "samples"), draft.get("train", "eval_every")
    warmup, decay = max(draft.train("warmup"), default=0), max(draft.train("decay"), default=0)
    if warmup + decay > 1 + 1e-9:
        yield (
            "train.warmup" if "warmup" in draft.spec.train else "train.decay",
            f"warmup and decay can reach {warmup:g} + {decay:g} of the run, which is more than all of it",
        )
    if not isinstance(samples, int):
        return
    largest = max(draft.train("batch_size"), default=0)
    if samples < largest:
        yield "train.samples", f"must be at least one batch, which is {largest}"
    if isinstance(every, int):
        if every > samples:
            yield "train.eval_every", f"must be at most train.samples, which is {samples}"
        elif every < largest <= samples:
            yield "train.eval_every", f"must be at least one batch, which is {largest}"
        elif samples / every > MAX_MARKS:
            yield "train.eval_every", f"makes {samples // every:,} evaluations per trial; at most {MAX_MARKS:,}"


def _prune(draft: Draft) -> Found:
    pruner, warmup = draft.get("prune", "pruner"), draft.get("prune", "warmup")
    samples, lower, upper = draft.get("train", "samples"), draft.get("prune", "lower"), draft.get("prune", "upper")
    if isinstance(warmup, int) and isinstance(samples, int) and warmup >= samples:
        yield "prune.warmup", f"must be below train.samples, which is {samples}: nothing could be stopped early"
    if pruner == "threshold" and lower is None and upper is None:
        yield "prune.pruner", "needs prune.lower or prune.upper"
    if lower is not None and upper is not None and lower >= upper:
        yield "prune.lower", f"must be below prune.upper, which is {upper:g}"


def _objective(draft: Draft) -> Found:
    objective, direction = draft.get("search", "objective"), draft.get("search", "direction")
    final = [f"eval/{name}" for name in draft.get("eval", "metrics") or () if draft.get("eval", "extra") == "final"]
    if not isinstance(objective, str):
        return
    if objective in final:
        if draft.get("prune", "pruner") != "none":
            yield "search.objective", "is measured only at the end of a trial: set prune.pruner to none"
        better: str | None = "maximize"
    elif objective in EVAL_METRICS:
        better = EVAL_METRICS[objective]
    else:
        known = [*EVAL_METRICS, *final]
        hint = did_you_mean(objective, known)
        yield "search.objective", "is not a metric of this sweep" + (f" ({hint})" if hint else f": {', '.join(known)}")
        return
    if better is not None and direction != better:
        yield "search.objective", f"is better when it is {_COMPARATIVE[better]}: set search.direction to {better}"


_COMPARATIVE = {"minimize": "smaller", "maximize": "larger"}


def _extra_metrics(draft: Draft) -> Found:
    metrics = draft.get("eval", "metrics") or ()
    for i, metric in enumerate(metrics):
        if metric in metrics[:i]:
            yield f"eval.metrics[{i}]", "is in the list twice"
    if "probing" in metrics and draft.get("data", "dataset") and not draft.get("data", "dataset", "label_column"):
        yield _at("eval.metrics", metrics, "probing"), "needs the classes: set data.dataset.label_column"


# --- arms ------------------------------------------------------------------------------------------------------------


def _widths(draft: Draft) -> Found:
    """A code must be sparse: what sets its sparsity lies below the width."""
    for i, arm in draft.arms:
        value = arm.options(arm.width)
        width = min((_dict_size(arm.width, w, draft.d_in) for w in _given(arm.width, value)), default=math.inf)
        if width < 1:
            yield f"sae[{i}].{arm.width}", f"gives dict_size 0 for embeddings of width {draft.d_in}"
            continue
        for name in ("k", "target_l0"):
            given = arm.params.get(name)
            highest = max(_given(name, given), default=0)
            if highest >= width:
                derived = f" ({arm.width} x embeddings of width {draft.d_in})" if arm.width != "dict_size" else ""
                yield (
                    _at(f"sae[{i}].{name}", given, highest),
                    f"must be below dict_size, but {highest:g} >= {width:g}{derived}",
                )


def _dict_size(name: str, value: float, d_in: int | None) -> float:
    if name == "dict_size":
        return value
    return math.inf if d_in is None else round(value * d_in)


def _nulls(draft: Draft) -> Found:
    for i, arm in draft.arms:
        for name in (*strata.WIDTH, *SPARSITY_PARAMETERS[arm.type]):
            value = arm.params.get(name)
            if isinstance(value, tuple) and None in value:
                yield _at(f"sae[{i}].{name}", value, None), "is no level: use two arms"


def _axes(draft: Draft) -> Found:
    """search.strata names fields that there are and that have levels."""
    given = draft.get("search", "strata")
    fields = {name for _, arm in draft.arms for name in SAE_CONFIGS[arm.type].model_fields}
    known = sorted(fields | TrainConfig.model_fields.keys() - FIXED_TRAIN_FIELDS)
    for i, name in enumerate(given or ()):
        if name in FIXED_TRAIN_FIELDS:
            yield f"search.strata[{i}]", "is the same for every trial"
        elif name not in known and draft.arms:
            hint = did_you_mean(name, known)
            yield f"search.strata[{i}]", "is a parameter of no arm" + (f" ({hint})" if hint else "")
        if name in given[:i]:
            yield f"search.strata[{i}]", "is in the list twice"
    if given is not None and "type" not in given:
        yield "search.strata", 'must name "type": arms of different types have different parameters'
    for key, name, value in _searched(draft, axes=True):
        if isinstance(value, Range):
            yield key, f"{name} is a stratum axis, so it takes a value or a list{_INSTEAD if given is None else ''}"


_INSTEAD = "; to search it, leave it out of search.strata"


def _searched(draft: Draft, axes: bool) -> Iterator[tuple[str, str, Value]]:
    """(key, field, value) of what the spec gives as an axis, or as what is searched inside a stratum."""
    for i, arm in draft.arms:
        names = strata.axis_names(draft.spec, arm)
        yield from ((f"sae[{i}].{n}", n, v) for n, v in arm.params.items() if (n in names) == axes)
    everywhere = {name for _, arm in draft.arms for name in strata.axis_names(draft.spec, arm)}
    yield from ((f"train.{n}", n, v) for n, v in draft.spec.train.items() if (n in everywhere) == axes)


def _sampler(draft: Draft) -> Found:
    """What each sampler can draw."""
    sampler = draft.get("search", "sampler")
    for key, name, value in _searched(draft, axes=False):
        listed = choices(name, value)
        if sampler == "grid" and isinstance(value, Range):
            yield key, "grid crosses lists, and a range has no end: give a list, or set search.sampler to qmc or tpe"
        if sampler == "cmaes" and listed is not None and len(listed) > 1:
            yield (
                key,
                "cmaes searches ranges only, a list has no covariance: fix it, add it to search.strata or use tpe",
            )
        elif name in LIST_FIELDS and listed is not None and len(listed) > 1:
            yield key, f"{name} can differ only between strata: add it to search.strata"
    if sampler == "grid" and draft.get("search", "points") is not None:
        yield "search.points", "grid has as many points as its lists give: leave points out"
    if sampler == "grid" and draft.get("search", "enqueue"):
        yield "search.enqueue", "grid tries every point anyway: leave enqueue out"


def _size(draft: Draft) -> Found:
    """Nobody means a sweep of a million trials; a list too many does."""
    n_strata = sum(strata.count(draft.spec, arm) for _, arm in draft.arms)
    if n_strata > MAX_STRATA:
        yield "sae", f"the axes cross to {n_strata:,} strata; at most {MAX_STRATA:,}"
        return
    trials = 0
    for _, arm in draft.arms:
        points = draft.get("search", "points") or 1
        if draft.get("search", "sampler") == "grid":
            free = {**draft.spec.train, **arm.params}
            axes = strata.axis_names(draft.spec, arm)
            points = math.prod(len(choices(k, v) or ("",)) for k, v in free.items() if k not in axes)
        trials += strata.count(draft.spec, arm) * points * len(draft.get("seeds") or ("",))
    if trials > MAX_TRIALS:
        yield "sae", f"strata x points x seeds are {trials:,} trials; at most {MAX_TRIALS:,}"


def _same_stratum(draft: Draft) -> Found:
    """Two arms that meet in one stratum would be two searches in one study."""
    if sum(strata.count(draft.spec, arm) for _, arm in draft.arms) > MAX_STRATA:
        return
    seen: dict[str, tuple[int, Arm]] = {}
    for i, arm in draft.arms:
        if arm.sparsity is None and draft.get("search", "strata") is None:
            continue
        ids = Counter(strata.stratum_id(axes) for axes in strata.cross(draft.spec, arm, draft.d_in))
        twice = next((name for name, times in ids.items() if times > 1), None)
        if twice:
            yield f"sae[{i}]", f"gives the stratum {twice} twice"
        shared = next((name for name in ids if name in seen), None)
        if shared:
            j, other = seen[shared]
            yield f"sae[{i}]", f"gives the stratum {shared}, as sae[{j}] does: {_remedy(arm, other)}"
        seen.update(dict.fromkeys(ids, (i, arm)))


def _remedy(arm: Arm, other: Arm) -> str:
    names = [n for n in (arm.params | other.params) if arm.options(n) != other.options(n)]
    differ = [n for n in names if n not in (*strata.WIDTH, *SPARSITY_PARAMETERS[arm.type])]
    if not differ:
        return "write them as one arm, with lists"
    return f"add {' and '.join(differ)}, in which they differ, to search.strata"


RULES: tuple[Callable[[Draft], Found], ...] = (
    _name_is_a_directory,
    _seeds,
    _devices,
    _corpus,
    _budget,
    _schedule,
    _prune,
    _objective,
    _extra_metrics,
    _widths,
    _nulls,
    _axes,
    _sampler,
    _size,
    _same_stratum,
)
