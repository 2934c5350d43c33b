"""CMA-ES over the ranges of a stratum, its state computed from the complete trials each time.

Optuna's own sampler keeps its state as a pickle in the attributes of trials and loads it at every draw; a journal is
a file that may come from anywhere, and loading a pickle runs what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cmaes
import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from saebench.study.units import from_unit, to_unit

STEP = 1 / 6
"""First standard deviation, as a share of each range; the first mean is its middle."""


class CmaEs(BaseSampler):
    """Hansen's CMA-ES: each full generation of complete trials, in order of number, moves the distribution.

    The state is a function of the complete trials and the seed, so a resumed sweep draws the same points. The first
    point is drawn at random, as with Optuna's sampler.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - Optuna's signature
    ) -> dict[str, BaseDistribution]:
        return {
            name: distribution
            for name, distribution in optuna.search_space.intersection_search_space(_complete(study)).items()
            if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.single()
        }

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - Optuna's signature
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        optimizer = _optimizer(study, search_space, self._seed)
        return {
            name: from_unit(distribution, share)
            for (name, distribution), share in zip(search_space.items(), optimizer.ask(), strict=True)
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _optimizer(study: optuna.Study, space: dict[str, BaseDistribution], seed: int) -> cmaes.CMA:
    """The distribution after every full generation."""
    dims = len(space)
    bounds = np.tile([0.0, 1.0], (dims, 1))
    optimizer = cmaes.CMA(np.full(dims, 0.5), STEP, bounds=bounds, n_max_resampling=10 * dims, seed=seed)
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    results = [(_shares(space, trial), sign * trial.values[0]) for trial in _complete(study)]
    size = optimizer.population_size
    for first in range(0, len(results) - size + 1, size):
        optimizer.tell(results[first : first + size])
    return optimizer


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    """By number: the order in which they were drawn, whatever the order in which they ended."""
    trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.number)


def _shares(space: dict[str, BaseDistribution], trial: FrozenTrial) -> NDArray[np.float64]:
    return np.array([to_unit(distribution, trial.params[name]) for name, distribution in space.items()])
