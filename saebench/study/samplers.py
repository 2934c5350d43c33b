"""How points are drawn: distributions and samplers for one stratum."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import warnings
import zlib
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler

from saebench.errors import SpecError
from saebench.plan import Plan, Stratum, cardinality
from saebench.spec import Range, Scalar
from saebench.sweep_config import SearchConfig

TPE_STARTUP = 10
"""Points that TPE draws at random before it learns; below that many per stratum qmc covers the space better."""
_SMALL = 100_000
"""Points up to which a finite space is listed to find one that is still untried."""


def distributions(stratum: Stratum) -> dict[str, BaseDistribution]:
    """The stratum's space in Optuna's words."""
    return {name: _distribution(value) for name, value in stratum.space.items()}


def _distribution(value: tuple[Scalar, ...] | Range) -> BaseDistribution:
    if not isinstance(value, Range):
        return CategoricalDistribution([encode(choice) for choice in value])
    if value.integer:
        return IntDistribution(int(value.low), _top(value), log=value.log, step=int(value.step or 1))
    return FloatDistribution(value.low, _top(value), log=value.log, step=value.step)


def _top(value: Range) -> Any:
    """The last value that the steps reach; Optuna warns where that is not `high`."""
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
    """Give `trial` every parameter of the space at once: the trials that are asked for next must see them, or the
    sampler proposes nearly the same again."""
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
        elif isinstance(distribution, FloatDistribution):
            trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def make_sampler(search: SearchConfig, study: str, drawn: int) -> BaseSampler:
    """The sampler for the next point of `study`, of which Optuna has `drawn` trials.

    Its seed follows from the stratum's id, `search.seed` and `drawn`, so that a sweep that was stopped and resumed
    draws what it would have drawn, not its first points again. (QMC counts in the study; its seed only scrambles.)
    The sweep's name, the study's up to "/", has no part in it: with and without pruning, the same points are drawn.
    """
    stratum = study.partition("/")[2]
    seed = zlib.crc32(f"{stratum}:{search.seed}".encode())
    fresh = zlib.crc32(f"{stratum}:{search.seed}:{drawn}".encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "tpe":
                return TPESampler(seed=fresh, n_startup_trials=TPE_STARTUP, constant_liar=True)
            case "qmc":
                random_sampler = RandomSampler(seed=fresh)
                return QMCSampler(
                    scramble=True, seed=seed, independent_sampler=random_sampler, warn_independent_sampling=False
                )
            case "cmaes":
                from saebench.study.cma import CmaEs  # its package is an extra

                return CmaEs(fresh)
            case _:
                return RandomSampler(seed=fresh)  # the grid is expanded by us; Optuna's would count failures as done


def check_sampler(plan: Plan) -> None:
    """Raises SpecError for a sampler that is not installed, and for a space that it cannot draw from."""
    if plan.spec.search.sampler != "cmaes":
        return
    if importlib.util.find_spec("cmaes") is None:
        raise SpecError("search.sampler: cmaes: needs a package of that name: pip install 'saebench[cmaes]'")
    for stratum in plan.strata:
        if listed := [name for name, value in stratum.space.items() if not isinstance(value, Range)]:
            raise SpecError(
                f"{stratum.id}: {', '.join(listed)}: cmaes moves through ranges and knows no choices; "
                "give a range, one value, a stratum axis (search.strata), or another sampler"
            )


def is_small(stratum: Stratum) -> bool:
    """Can all points of the space be listed?"""
    return cardinality(stratum.space) <= _SMALL


def untried(plan: Plan, stratum: Stratum, tried: Collection[str], seed: int) -> dict[str, Scalar] | None:
    """A point of a finite space, at random among those whose id is not in `tried`; None where none is left, or where
    the space is too large to be listed (then a sampler hardly ever draws a point twice)."""
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
