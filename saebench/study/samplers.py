"""How points are drawn: distributions, the sequence that strata share, and Optuna's samplers."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict
from decimal import Decimal
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler

from saebench.errors import SpecError
from saebench.plan import Plan, Stratum, cardinality
from saebench.spec import Range, Scalar
from saebench.study.units import from_unit
from saebench.sweep_config import TPE_STARTUP, SearchConfig

_SMALL = 100_000
"""Largest finite space that is listed to find an unused point."""


def distributions(stratum: Stratum) -> dict[str, BaseDistribution]:
    """The stratum's space as Optuna's distributions."""
    return {name: _distribution(value) for name, value in stratum.space.items()}


def _distribution(value: tuple[Scalar, ...] | Range) -> BaseDistribution:
    if not isinstance(value, Range):
        return CategoricalDistribution([encode(choice) for choice in value])
    if value.integer:
        return IntDistribution(int(value.low), _top(value), log=value.log, step=int(value.step or 1))
    return FloatDistribution(value.low, _top(value), log=value.log, step=value.step)


def _top(value: Range) -> Any:
    """The last value that the steps reach; Optuna warns if that is not `high`."""
    if value.step is None:
        return value.high
    low, high, step = (Decimal(str(number)) for number in (value.low, value.high, value.step))
    return (int if value.integer else float)(low + (high - low) // step * step)


def encode(choice: Scalar) -> bool | int | float | str | None:
    """A choice as Optuna stores it: a list (of `groups`) becomes text."""
    return json.dumps(choice) if isinstance(choice, tuple) else choice


def decode(stratum: Stratum, params: Mapping[str, Any]) -> dict[str, Scalar]:
    """Optuna's params as values of our fields."""
    return {name: _decoded(space, params[name]) for name, space in stratum.space.items()}


def _decoded(space: tuple[Scalar, ...] | Range, value: Any) -> Scalar:
    if not isinstance(space, Range):
        return {encode(choice): choice for choice in space}[value]
    if space.integer or space.step is None:
        return int(value) if space.integer else float(value)
    low, step = Decimal(str(space.low)), Decimal(str(space.step))
    return float(low + round((Decimal(str(value)) - low) / step) * step)  # 0.3, not 0.30000000000000004


def suggest(trial: optuna.trial.Trial, space: Mapping[str, BaseDistribution]) -> None:
    """Suggest every parameter of the space at once: the sampler must see them when it draws the next trials, or it
    proposes nearly the same again."""
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
        elif isinstance(distribution, FloatDistribution):
            trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def is_adaptive(search: SearchConfig, drawn: int) -> bool:
    """Return whether the sampler draws the next point, after `drawn` ones, from the results of earlier points."""
    return drawn >= {"tpe": TPE_STARTUP, "cmaes": 1}.get(search.sampler, math.inf)


def make_sampler(search: SearchConfig, stratum: Stratum, drawn: int) -> BaseSampler:
    """Return Optuna's sampler for the next point of a stratum, of whose study it has `drawn` trials.

    Its seed follows from the space, `search.seed` and `drawn`, so that a resumed sweep draws the same points, and
    strata that search the same space draw alike.
    """
    fresh = zlib.crc32(f"{space_key(stratum)}:{search.seed}:{drawn}".encode())
    if search.sampler == "cmaes":
        from saebench.study.cma import CmaEs  # its package is an extra

        return CmaEs(fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=fresh, n_startup_trials=TPE_STARTUP, constant_liar=True)


def space_key(stratum: Stratum) -> str:
    """Return what is the same for all strata that search the same space."""
    return json.dumps({name: _described(value) for name, value in sorted(stratum.space.items())})


def _described(value: tuple[Scalar, ...] | Range) -> Any:
    return asdict(value) if isinstance(value, Range) else list(value)


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def shared_point(plan: Plan, stratum: Stratum, index: int) -> dict[str, Scalar]:
    """Return the `index`-th point of the sequence that all strata of the sweep share.

    A parameter with the same range or choices gets the same values in every stratum that searches it: arms try the same
    settings of common parameters, so that no arm is luckier. The sequence is Halton's, scrambled by `search.seed`; of
    the sampler `random`, independent uniform draws.
    """
    dims, seed = _dimensions(plan), plan.spec.search.seed
    found = {}
    for name, value in stratum.space.items():
        dim = dims.index(_dimension(name, value))
        if plan.spec.search.sampler == "random" or dim >= len(_PRIMES):
            share = random.Random(f"{seed}:{dim}:{index}").random()
        else:
            share = _scrambled(_PRIMES[dim], index, f"{seed}:{dim}")
        found[name] = _at_share(value, share)
    return found


def _dimensions(plan: Plan) -> list[str]:
    """Return every searched parameter of the sweep, the most common first: these get the bases with the best
    coverage."""
    counted = Counter(_dimension(name, value) for stratum in plan.strata for name, value in stratum.space.items())
    return [name for name, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


def _dimension(name: str, value: tuple[Scalar, ...] | Range) -> str:
    return f"{name}:{json.dumps(_described(value))}"


def _scrambled(base: int, index: int, key: str) -> float:
    """The radical inverse of `index` with every digit permuted at random."""
    share, factor = 0.0, 1.0 / base
    for position in range(math.ceil(32 / math.log2(base))):
        index, digit = divmod(index, base)
        share, factor = share + _permuted(base, key, position)[digit] * factor, factor / base
    return share


@lru_cache(maxsize=1 << 12)
def _permuted(base: int, key: str, position: int) -> list[int]:
    digits = list(range(base))
    random.Random(f"{key}:{position}").shuffle(digits)
    return digits


def _at_share(value: tuple[Scalar, ...] | Range, share: float) -> Scalar:
    """The value at a share of a range, or of a list of choices."""
    if not isinstance(value, Range):
        return value[min(int(share * len(value)), len(value) - 1)]
    distribution = _distribution(value)
    return _decoded(value, from_unit(distribution, share))


def check_sampler(plan: Plan) -> None:
    """Raises SpecError for a sampler that is not installed, and for a space that it cannot draw from."""
    if plan.spec.search.sampler != "cmaes":
        return
    if importlib.util.find_spec("cmaes") is None:
        raise SpecError("search.sampler: cmaes: needs a package of that name: pip install 'saebench[cmaes]'")
    for stratum in plan.strata:
        if listed := [name for name, value in stratum.space.items() if not isinstance(value, Range)]:
            raise SpecError(
                f"{stratum.id}: {', '.join(listed)}: cmaes cannot draw from choices; "
                "give a range, one value, a stratum axis (search.strata), or another sampler"
            )


def is_small(stratum: Stratum) -> bool:
    """Return whether all points of the space can be listed."""
    return cardinality(stratum.space) <= _SMALL


def untried(plan: Plan, stratum: Stratum, tried: Collection[str], seed: int) -> dict[str, Scalar] | None:
    """A point of a finite space, at random among those whose id is not in `tried`; None if none is left, or if the
    space is too large to be listed (then a sampler hardly ever draws a point twice)."""
    if not is_small(stratum):
        return None
    lists = [_listed(value) for value in stratum.space.values()]
    points = [dict(zip(stratum.space, values, strict=True)) for values in itertools.product(*lists)]
    left = [point for point in points if plan.point_id(stratum, point) not in tried]
    return random.Random(seed).choice(left) if left else None


def _listed(value: tuple[Scalar, ...] | Range) -> list[Scalar]:
    if not isinstance(value, Range):
        return list(value)
    low, step = Decimal(str(value.low)), Decimal(str(value.step or 1))
    count = math.floor((Decimal(str(value.high)) - low) / step) + 1
    return [(int if value.integer else float)(low + i * step) for i in range(count)]
