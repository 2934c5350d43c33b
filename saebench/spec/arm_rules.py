"""Rules of the arms and of the search over them; see rules.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from saebench.config import FIXED_TRAIN_FIELDS, SAE_CONFIGS, TrainConfig, nested_widths
from saebench.spec import strata
from saebench.spec.accepts import did_you_mean
from saebench.spec.draft import Draft, Found, at, given
from saebench.spec.grammar import Arm, Range, Value, choices, is_list_field, options

MAX_STRATA = 2_000
MAX_TRIALS = 100_000


def _widths(draft: Draft) -> Found:
    """A code must be sparse: the sparsity parameter must be below the width."""
    for i, arm in draft.arms:
        value = arm.options(arm.width)
        width = min((_dict_size(arm.width, w, draft.d_in) for w in given(arm.width, value)), default=math.inf)
        if width < 1:
            yield f"sae[{i}].{arm.width}", f"gives dict_size 0 for embeddings of width {draft.d_in}"
            continue
        for name in ("k", "target_l0"):
            chosen = arm.params.get(name)
            highest = max(given(name, chosen), default=0)
            if highest >= width:
                derived = f" ({arm.width} x embeddings of width {draft.d_in})" if arm.width != "dict_size" else ""
                yield (
                    at(f"sae[{i}].{name}", chosen, highest),
                    f"must be below dict_size, but {highest:g} >= {width:g}{derived}",
                )


def _levels(draft: Draft) -> Found:
    """Each nested level of an SAE that has `groups` must add at least one latent."""
    for i, arm in draft.arms:
        nested = "groups" in SAE_CONFIGS[arm.type].model_fields
        widths = given(arm.width, arm.options(arm.width)) if nested else ()
        for groups in options("groups", arm.options("groups")) if widths else ():
            for width in widths:
                size = _dict_size(arm.width, width, draft.d_in)
                if 1 <= size < math.inf and not _nested(groups, int(size)):
                    key = at(f"sae[{i}].{arm.width}", arm.params.get(arm.width), width)
                    yield key, f"too few latents for groups {list(groups)}: one level gets none"
                    break


def _nested(groups: tuple[float, ...], dict_size: int) -> bool:
    try:
        return bool(nested_widths(groups, dict_size))
    except ValueError:
        return False


def _dict_size(name: str, value: float, d_in: int | None) -> float:
    if name == "dict_size":
        return value
    return math.inf if d_in is None else round(value * d_in)


def _nulls(draft: Draft) -> Found:
    for i, arm in draft.arms:
        for name in (*strata.WIDTH, *SAE_CONFIGS[arm.type].sparsity, "control"):
            value = arm.params.get(name)
            if isinstance(value, tuple) and None in value:
                yield at(f"sae[{i}].{name}", value, None), "null cannot be a stratum level; split this arm in two"


def _axes(draft: Draft) -> Found:
    """search.strata must name fields that exist and that have levels."""
    named = draft.get("search", "strata")
    fields = {name for _, arm in draft.arms for name in SAE_CONFIGS[arm.type].model_fields}
    known = sorted(fields | TrainConfig.model_fields.keys() - FIXED_TRAIN_FIELDS)
    for i, name in enumerate(named or ()):
        if name in FIXED_TRAIN_FIELDS:
            yield f"search.strata[{i}]", "is the same for every trial"
        elif name not in known and draft.arms:
            hint = did_you_mean(name, known)
            yield f"search.strata[{i}]", "no arm has this parameter" + (f" ({hint})" if hint else "")
        if name in named[:i]:
            yield f"search.strata[{i}]", "is in the list twice"
    if named is not None and "type" not in named:
        yield "search.strata", 'must name "type": arms of different types have different parameters'
    for key, name, value in _searched(draft, axes=True):
        if isinstance(value, Range):
            yield key, f"{name} is a stratum axis, so it takes a value or a list{_INSTEAD if named is None else ''}"


_INSTEAD = "; to search it, leave it out of search.strata"


def _searched(draft: Draft, axes: bool) -> Iterator[tuple[str, str, Value]]:
    """Yield (key, field, value) of the fields that are axes (`axes`), or of those that are searched in a stratum."""
    for i, arm in draft.arms:
        names = strata.axis_names(draft.spec, arm)
        yield from ((f"sae[{i}].{n}", n, v) for n, v in arm.params.items() if (n in names) == axes)
    everywhere = {name for _, arm in draft.arms for name in strata.axis_names(draft.spec, arm)}
    yield from ((f"train.{n}", n, v) for n, v in draft.spec.train.items() if (n in everywhere) == axes)


def _sampler(draft: Draft) -> Found:
    """Each searched field must be one that the sampler can draw."""
    sampler = draft.get("search", "sampler")
    for key, name, value in _searched(draft, axes=False):
        listed = choices(name, value)
        if sampler == "grid" and isinstance(value, Range):
            yield key, "grid crosses lists, and a range is not a list: give a list, or set search.sampler to qmc or tpe"
        if sampler == "cmaes" and listed is not None and len(listed) > 1:
            yield (
                key,
                "cmaes searches ranges only, a list has no covariance: fix it, add it to search.strata or use tpe",
            )
        elif is_list_field(name) and listed is not None and len(listed) > 1:
            yield key, f"{name} can differ only between strata: add it to search.strata"
    if sampler == "grid" and draft.get("search", "points") is not None:
        yield "search.points", "grid has as many points as its lists give: leave points out"
    if sampler == "grid" and draft.get("search", "enqueue"):
        yield "search.enqueue", "grid tries every point anyway: leave enqueue out"


def _size(draft: Draft) -> Found:
    """Limit the number of strata and trials: a sweep of a million trials is a list too many, not an intention."""
    n_strata = sum(strata.count(draft.spec, arm) for _, arm in draft.arms)
    if n_strata > MAX_STRATA:
        yield "sae", f"the axes give {n_strata:,} strata; at most {MAX_STRATA:,}"
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
    """Two arms must not share a stratum: they would be two searches in one study."""
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
    differ = [n for n in names if n not in (*strata.WIDTH, *SAE_CONFIGS[arm.type].sparsity)]
    if not differ:
        return "write them as one arm, with lists"
    return f"add {' and '.join(differ)}, in which they differ, to search.strata"


ARM_RULES = (_widths, _levels, _nulls, _axes, _sampler, _size, _same_stratum)
