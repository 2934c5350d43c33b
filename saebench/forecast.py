"""The cost of a plan, in counts, and warnings about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from saebench.config import SAE_CONFIGS
from saebench.plan import Plan, Stratum, cardinality
from saebench.runs.board import Board
from saebench.runs.state import Row
from saebench.runs.tags import Tag
from saebench.spec import Range, options
from saebench.spec.strata import WIDTH, label
from saebench.sweep_config import TPE_STARTUP, PruneConfig


@dataclass(frozen=True)
class Work:
    """Upper bounds: nothing is pruned and every refinement is needed. Counts only; the time depends on the machine."""

    trials: int
    """Number of trials, including refinements and the seeds that compare."""
    train_examples: int
    """Embeddings trained on, over all trials."""
    eval_examples: int
    """Embeddings evaluated on the validation part, over all trials and marks."""
    train_flops: float | None
    """FLOPs of the SAEs' matrix products, without AuxK and the optimiser. None if d_in is unknown."""
    texts: int
    """Texts to encode, once for the whole sweep (in every trial if `data.cache` is off)."""
    embedding_bytes: int | None
    """Size of the embeddings in the cache."""
    sae_bytes: int | None
    """Size of the SAEs in the sweep's directory."""
    copied_bytes: int | None
    """Size of the SAEs copied to MLflow (`tracking.log_sae`), without logged models."""


def work(plan: Plan) -> Work:
    """Return the largest cost of the plan."""
    data = plan.spec.data
    flops: float | None = None
    if plan.d_in is not None:
        flops = sum(flops_per_example(s, plan.d_in) * plan.trials_of(s) * plan.samples for s in plan.strata)
    copied = {"all": None, "best": 1, "none": 0}[plan.spec.tracking.log_sae]
    return Work(
        trials=plan.n_trials,
        train_examples=plan.n_trials * plan.samples,
        eval_examples=plan.n_trials
        * (
            len(plan.marks()) * round(data.num_examples * data.parts.validation)
            + round(data.num_examples * data.parts.test)
        ),
        train_flops=flops,
        texts=data.num_examples,
        embedding_bytes=None
        if plan.d_in is None
        else data.num_examples * plan.d_in * {"float32": 4, "float16": 2}[data.dtype],
        sae_bytes=_weights(plan, None),
        copied_bytes=_weights(plan, copied),
    )


def _weights(plan: Plan, each: int | None) -> int | None:
    """Return the bytes of `each` SAEs per stratum, or of all: two matrices in float32; vectors are not counted."""
    if plan.d_in is None:
        return None
    d_in = plan.d_in
    return sum(
        2 * 4 * d_in * _width(s, d_in) * (plan.trials_of(s) if each is None else min(each, plan.trials_of(s)))
        for s in plan.strata
    )


def _width(stratum: Stratum, d_in: int) -> int:
    """Return the largest dict_size."""
    found = {**stratum.fixed, **stratum.axes}
    widths = options("dict_size", found.get("dict_size") or stratum.space.get("dict_size"))
    factors = options("expansion_factor", found.get("expansion_factor") or stratum.space.get("expansion_factor"))
    return int(max([w for w in widths if w] + [round(f * d_in) for f in factors if f]))


def flops_per_example(stratum: Stratum, d_in: int) -> float:
    """Return the FLOPs per training example at the stratum's widest and densest point."""
    found = {**stratum.fixed, **stratum.axes}
    k = max(option or 0 for option in options("k", found.get("k") or stratum.space.get("k")))
    return SAE_CONFIGS[stratum.type].flops_per_example(d_in, _width(stratum, d_in), k)


REFINEMENTS = 2
"""Return the usual number of refinements of a stratum."""


def trials_left(plan: Plan, states: Iterable[Row]) -> int:
    """Return how many trials are still to start, estimated from the existing ones: points to draw, the usual number of
    refinements, and the other seeds of the chosen points. The live view and `saebench status` both use it."""
    known: dict[str, list[Row]] = {}
    for state in states:
        known.setdefault(state.stratum, []).append(state)
    return sum(_left(plan, stratum, known.get(stratum.id, [])) for stratum in plan.strata)


def _left(plan: Plan, stratum: Stratum, states: list[Row]) -> int:
    seeds = plan.spec.seeds
    first = [s for s in states if s.seed == seeds[0]]
    drawn = [s for s in first if Tag.REFINED not in s.search]
    failed = sum(s.state == "failed" for s in drawn)
    extra = max(1, stratum.points // 4) if stratum.space and stratum.grid is None else 0
    draws = max(0, stratum.points + min(failed, extra) - len(drawn))
    newest = max((int(s.search.get(Tag.CHOICE, 0)) for s in states), default=0)
    compared = [s for s in states if s.seed != seeds[0] and int(s.search.get(Tag.CHOICE, 0)) == newest]
    if plan.spec.replicate == "all":
        points = sum(s.state != "failed" for s in first) + draws
        return draws + max(0, points * (len(seeds) - 1) - sum(s.seed != seeds[0] for s in states))
    refinements = 0 if compared else max(0, min(REFINEMENTS, stratum.refine) - (len(first) - len(drawn)))
    return draws + refinements + max(0, len(seeds) - 1 - len(compared))


def advice(plan: Plan) -> list[str]:
    """Return warnings about a plan that is valid but probably not intended."""
    rules = (_search, _comparison, _pruner, _idle_keys, _seeds, without_kernels)
    return list(dict.fromkeys(line for rule in rules for line in rule(plan)))


def _search(plan: Plan) -> Iterator[str]:
    search = plan.spec.search
    for stratum in plan.strata:
        size, asked = cardinality(stratum.space), search.points
        if search.sampler == "grid":
            return
        if not stratum.space:
            if asked not in (None, 1):
                yield f"{stratum.type}: nothing is searched, so a stratum has 1 point, not search.points: {asked}"
        elif asked is None:
            yield f"search.points is not given: 1 point a stratum, though {', '.join(stratum.space)} can be searched"
        elif size < asked:
            yield f"{stratum.type}: only {size:.0f} different points in a stratum, not {asked}; grid tries each once"
        elif search.sampler == "tpe" and stratum.points <= TPE_STARTUP:
            yield (
                f"tpe learns after the first {TPE_STARTUP} points of a stratum and there are {stratum.points}: "
                "it draws what qmc draws"
            )
        elif search.sampler == "cmaes" and stratum.points < 2 * (4 + int(3 * math.log(len(stratum.space)))):
            yield f"cmaes learns from generations of points, and {stratum.points} points are hardly two: use qmc"


def _comparison(plan: Plan) -> Iterator[str]:
    """Warn if a pruner would compare trials of different sparsity: denser codes reconstruct better."""
    for stratum in plan.strata:
        searched = [name for name in SAE_CONFIGS[stratum.type].sparsity if name in stratum.space]
        if searched and plan.spec.prune.pruner not in ("none", "pareto"):
            yield (
                f"{stratum.type}: {searched[0]} differs inside a stratum, so {plan.spec.prune.pruner} compares "
                "trials of different sparsity: add it to search.strata, or use prune.pruner: pareto"
            )


def _pruner(plan: Plan) -> Iterator[str]:
    prune = plan.spec.prune
    if prune.pruner == "none":
        return
    for stratum in plan.strata:
        first = plan.prune_from(stratum)
        if first >= plan.samples:
            yield f"{stratum.id}: {prune.pruner} never acts: warm-up, ramps and the first dead window last to the end"
            continue
        if prune.warmup is not None and plan.mark_after(prune.warmup) < first:
            yield (
                f"{stratum.id}: first verdict at {first:,} examples, not at prune.warmup: lr warm-up, penalty ramp and "
                "the first dead window come first"
            )
        needed = {"median": prune.startup_trials + 1, "threshold": 1}.get(prune.pruner, 2)
        if stratum.points < needed:
            yield (
                f"{prune.pruner} never acts in strata of {stratum.points} points: it needs {needed} "
                f"(prune.startup_trials: {prune.startup_trials})"
                if prune.pruner == "median"
                else f"{prune.pruner} never acts in strata of {stratum.points} point: it compares at least two"
            )


def without_kernels(plan: Plan) -> Iterator[str]:
    """Warn if numba cannot be imported and some arm runs on its kernels: pursuits, and others with refine."""
    swept = [{**s.space, **s.fixed, **s.axes}.get("refine") for s in plan.strata]
    if not any(SAE_CONFIGS[s.type].pursues for s in plan.strata) and all(values in (None, 0) for values in swept):
        return
    try:
        import numba  # noqa: F401  not find_spec: an installed numba may refuse the NumPy beside it
    except ImportError as error:
        yield f"numba: {error}: on a CPU omp and refine run in torch, six times as long: pip install numba"


_OWNERS = {
    "startup_trials": ("median",),
    "reduction_factor": ("asha", "hyperband"),
    "upper": ("threshold",),
    "lower": ("threshold",),
    "margin": ("pareto",),
}


def _idle_keys(plan: Plan) -> Iterator[str]:
    prune = plan.spec.prune
    for name, owners in _OWNERS.items():
        if prune.pruner not in owners and getattr(prune, name) != PruneConfig.model_fields[name].default:
            yield f"prune.{name} has no effect: it belongs to {' and '.join(owners)}, not to {prune.pruner}"


def _seeds(plan: Plan) -> Iterator[str]:
    if len(plan.spec.seeds) == 1 and len(plan.strata) > 1:
        yield "one seed: differences between strata will have no interval over seeds"


def describe_space(stratum: Stratum) -> str:
    """Return what a stratum searches, in short: "lr 0.0003..0.01 log, batch_size 1024|2048"."""
    return ", ".join(f"{name} {_describe(value)}" for name, value in stratum.space.items()) or "nothing"


def _describe(value: Range | tuple[object, ...]) -> str:
    if isinstance(value, tuple):
        return "|".join("null" if item is None else str(item) for item in value)
    step = f" step {value.step:g}" if value.step is not None else ""
    return f"{value.low:g}..{value.high:g}" + (" log" if value.log else "") + step


# --- for the screen --------------------------------------------------------------------------------------------------


def empty_board(plan: Plan) -> Board:
    """Return the board of a sweep before its first trial."""
    search = plan.spec.search
    names = dict.fromkeys(name for stratum in plan.strata for name in stratum.space)
    return Board(
        plan.spec.name,
        objective=search.objective,
        maximize=search.direction == "maximize",
        cells={stratum.id: _cell(stratum) for stratum in plan.strata},
        searched=tuple(names),
    )


def _cell(stratum: Stratum) -> tuple[str, str]:
    """Return arm and sparsity of a stratum; other axes except the width belong to the arm."""
    axes = {name: value for name, value in stratum.axes.items() if name not in (*WIDTH, "type") and value is not None}
    level = next((name for name in SAE_CONFIGS[stratum.type].sparsity if name in axes), None)
    more = [
        str(value) if name == "control" else f"{name}={label(value)}" for name, value in axes.items() if name != level
    ]
    arm = f"{stratum.type} ({', '.join(more)})" if more else stratum.type
    return arm, f"{level}={label(axes[level])}" if level else ""
