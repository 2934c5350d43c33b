"""The scores of a trial and their floors: which rows are read, which latents are sampled, where results go.

Words, thresholds of floors and the latents of labels are chosen on training rows; everything is measured on the texts
of another part. Every SAE of a sweep is judged on the same number of latents, spaced evenly by density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.latents import scores
from saebench.latents.codes import Codes
from saebench.latents.ends import unfolded
from saebench.latents.facts import facts_of, sample_by_density
from saebench.latents.floors import FLOORS, floor
from saebench.latents.ranks import Classes
from saebench.latents.words import count_terms

SAMPLE = 300
"""Latents that are judged."""
SAE = "sae"
SCORES = ("coherence", "example_auroc", "label_auroc", "label_f1", "label_found", "label_purity")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Texts:
    """The data of one part that the scores need."""

    rows: Floats
    codes: Codes
    texts: Sequence[str] | None
    second: Floats | None = None
    """Embeddings of the same texts under the second encoder."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Scores of the SAE and of the floors."""

    values: dict[str, dict[str, float]]
    """SAE or a name of FLOORS -> score -> mean over latents (classes)."""
    latents: list[int]
    """The latents of the SAE that were sampled; of codes with both signs, their ends (ends.py), as in `matches`."""
    coherence: NDArray[np.float64] | None
    """Values per sampled latent."""
    examples: scores.ExampleScores | None
    matches: list[scores.Match]

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """`coherence`, `coherence_random`, `coherence_raw`, `coherence_pca`, and likewise the others."""
        return {
            f"{prefix}{name}{'' if who == SAE else f'_{who}'}": value
            for who, some in self.values.items()
            for name, value in some.items()
        }


def judge(
    train: Texts, test: Texts, classes: Classes | None, wanted: Sequence[str] = SCORES, sample: int = SAMPLE
) -> Judged:
    """The wanted scores of an SAE and of every floor. `classes`: of the labels of train and test. A score that cannot
    be computed (no texts, no labels, no second encoder, no latent that fires often enough) is missing for all. Of codes
    with both signs each end of a latent is judged for itself."""
    if any((part.codes.values < 0).any() for part in (train, test)):
        train, test = (replace(part, codes=unfolded(part.codes)) for part in (train, test))
    facts = facts_of(train.codes)
    latents = list(sample_by_density(facts, sample, scores.FEWEST))
    if not latents:
        return Judged({SAE: {}}, [], None, None, [])
    judging = _Judging(train, test, classes, wanted)
    found = judging.of(train.codes, test.codes, latents)
    values = {SAE: found.values}
    for name in FLOORS if found.values else ():
        rates = facts.density[facts.live]
        few, many = floor(name, train.rows, facts.density[latents]), floor(name, train.rows, rates)
        judged = judging.of(few.codes(train.rows), few.codes(test.rows), range(len(few.directions)), labels=False)
        measured = judged.values
        if found.matches:
            labels = scores.label_match(many.codes(train.rows), many.codes(test.rows), judging.classes_of_both)
            measured = measured | labels.values()
        values[name] = {key: measured[key] for key in found.values if key in measured}
    return Judged(values, latents, found.coherence, found.examples, found.matches)


@dataclass(frozen=True, eq=False)
class _One:
    values: dict[str, float]
    coherence: NDArray[np.float64] | None
    examples: scores.ExampleScores | None
    matches: list[scores.Match]


class _Judging:
    """Compute what the SAE and all floors share; terms are counted once."""

    def __init__(self, train: Texts, test: Texts, classes: Classes | None, wanted: Sequence[str]) -> None:
        self._train, self._test, self._classes, self._wanted = train, test, classes, wanted
        words = "coherence" in wanted and train.texts is not None and test.texts is not None
        self._terms = count_terms(train.texts or [], longest=1, fewest=scores.FEWEST) if words else None
        self._there = None
        if self._terms is not None and self._terms.names:
            self._there = count_terms(test.texts or [], vocabulary=self._terms.names)

    @property
    def classes_of_both(self) -> Classes:
        if self._classes is None:
            raise ValueError("no classes")
        return self._classes

    def of(self, train: Codes, test: Codes, latents: Sequence[int], *, labels: bool = True) -> _One:
        values: dict[str, float] = {}
        coherence = self._coherence(train, latents) if self._terms is not None else None
        if coherence is not None and np.isfinite(coherence).any():
            values["coherence"] = float(np.nanmean(coherence))
        examples = None
        if "example_auroc" in self._wanted and self._test.second is not None and len(latents):
            examples = scores.example_auroc(test, latents, self._test.second)
            if np.isfinite(examples.overall).any():
                values["example_auroc"] = float(np.nanmean(examples.overall))
        matches: list[scores.Match] = []
        if labels and self._classes is not None and any(name.startswith("label") for name in self._wanted):
            matched = scores.label_match(train, test, self._classes)
            matches = matched.matches
            values |= {name: value for name, value in matched.values().items() if name in self._wanted}
        return _One(values, coherence, examples, matches)

    def _coherence(self, train: Codes, latents: Sequence[int]) -> NDArray[np.float64]:
        if self._terms is None or self._there is None:
            return np.full(len(latents), np.nan)
        return scores.coherence(scores.top_words(train, self._terms, latents), self._there)


def table(judged: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """Rows (trial, score, value, and the same of each floor), for scores that have their floors."""
    rows = []
    for trial, one in judged.items():
        for name in SCORES:
            if name in one.values[SAE] and all(name in one.values.get(f, {}) for f in FLOORS):
                floors = {f: one.values[f][name] for f in FLOORS}
                value = one.values[SAE][name]
                rows.append(
                    {"trial": trial, "score": name, "value": value, **floors, "above": value - max(floors.values())}
                )
    return rows
