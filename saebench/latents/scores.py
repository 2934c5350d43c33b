"""Scores of interpretability that need no LLM. Each is a mean over latents, and each has floors (floors.py).

coherence      Do the ten best words of a latent occur in the same texts? Mean NPMI over pairs of words, on texts that
were not
               used to pick them (Bouma 2009; Lau et al. 2014).
example_auroc  Do the texts that fire a latent look alike to a second encoder? Firing texts against silent ones, scored
               by the mean cosine to the other firing texts (Paulo and Belrose 2025, arXiv:2507.08473), per decile.
label_match    Is there a latent for each label? The latent with the best AUROC (F1) of a class on training rows,
               measured on other texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.facts import DECILES, ByLatent, decile_of
from saebench.latents.keywords import keywords
from saebench.latents.neighbours import unit
from saebench.latents.ranks import Classes, auroc, auroc_of, f1, ranked, some_rows
from saebench.latents.words import Terms

WORDS = 10
"""Words of a latent whose pairs are judged."""
FEWEST = 5
"""Texts that must fire a latent before it is judged."""
HIGH = 0.9
"""AUROC above which a class has a latent."""
PURITY = 10
"""Number of top texts for the purity."""

Array = NDArray[np.float64]


# --- coherence -------------------------------------------------------------------------------------------------------


def top_words(codes: Codes, terms: Terms, latents: Sequence[int]) -> list[list[str]]:
    """The WORDS best words of each latent."""
    return [[k.term for k in some] for some in keywords(codes, terms, latents, WORDS, words=1)]


def npmi(together: Array, expected: Array, texts: int) -> Array:
    """Normalised pointwise mutual information of two words that are together in `together` of `texts` texts, where
    `expected` are expected by chance:

        ln((together + 1) / (expected + 1)) / -ln((together + 1) / (texts + 1))

    1 for words that always occur together, 0 by chance, negative for words that avoid each other. The added ones make
    rare words neutral: two that never meet although less than one text was expected are no evidence (without the ones
    they would count as -1, and the most frequent words would be the most coherent).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log((together + 1) / (expected + 1)) / -np.log((together + 1) / (texts + 1))
    return np.where(together >= texts, 1.0, value)


def coherence(words: Sequence[Sequence[str]], texts: Terms) -> Array:
    """(latents,) mean NPMI over the pairs of words of each latent; NaN for a latent with fewer than two. `texts` holds
    these words in texts that were not used to pick them."""
    place = {name: i for i, name in enumerate(texts.names)}
    count, by_word, n = texts.frequency(), texts.matrix.astype(np.float64).tocsc(), max(texts.texts, 1)
    found = np.full(len(words), np.nan)
    for i, some in enumerate(words):
        if len(some) < 2:
            continue
        chosen = [place[word] for word in some]
        sub, (first, second) = by_word[:, chosen], np.triu_indices(len(some), 1)
        together = (sub.T @ sub).toarray()[first, second]
        found[i] = npmi(together, count[chosen][first] * count[chosen][second] / n, n).mean()
    return found


# --- example AUROC ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """AUROC of firing texts against silent ones under another encoder."""

    overall: Array
    """(latents,)."""
    deciles: Array
    """(latents, 10) of the firing texts of each tenth, the strongest first; NaN if fewer than ten texts fire."""


def example_auroc(codes: Codes, latents: Sequence[int], embeddings: NDArray[np.float32]) -> ExampleScores:
    """`embeddings` (rows, d) of the same texts by the second encoder. A text's score is its mean cosine to the texts
    that fire the latent, itself left out."""
    rows, by_latent = unit(embeddings), ByLatent(codes)
    overall, deciles = np.full(len(latents), np.nan), np.full((len(latents), DECILES), np.nan)
    for i, latent in enumerate(latents):
        firing, _ = by_latent.firing(latent)
        if len(firing) < 2 or len(firing) == codes.rows:
            continue
        total = rows[firing].sum(0, dtype=np.float64)
        score = rows @ total.astype(np.float32)
        mine = (score[firing].astype(np.float64) - 1.0) / (len(firing) - 1)
        silent = np.sort(np.delete(score, firing)).astype(np.float64) / len(firing)
        overall[i] = auroc_of(mine, silent)
        tenth = decile_of(len(firing))
        for d in range(1, DECILES + 1):
            deciles[i, d - 1] = auroc_of(mine[tenth == d], silent)
    return ExampleScores(overall, deciles)


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """The best latent of a class, chosen on training rows, with its scores on other texts."""

    label: str
    latent: int
    auroc: float
    f1: float
    f1_latent: int
    purity: float
    """Share of the class among the texts that fire the latent most (PURITY of them, or all that fire it if fewer)."""
    members: int


@dataclass(frozen=True)
class LabelScores:
    """A match per class, and their means."""

    matches: list[Match] = field(default_factory=list)

    def values(self) -> dict[str, float]:
        """Empty without classes."""
        if not self.matches:
            return {}
        return {
            "label_auroc": float(np.mean([m.auroc for m in self.matches])),
            "label_f1": float(np.mean([m.f1 for m in self.matches])),
            "label_found": float(np.mean([m.auroc > HIGH for m in self.matches])),
            "label_purity": float(np.mean([m.purity for m in self.matches])),
        }


def label_match(train: Codes, test: Codes, classes: Classes) -> LabelScores:
    """`classes` of the labels of the rows of both, in this order."""
    if not classes.names or not len(classes.members[0]):
        return LabelScores()
    train, test = (some_rows(codes, rows) for codes, rows in zip((train, test), classes.rows, strict=True))
    here, there = classes.members
    chosen = np.nanargmax(np.nan_to_num(auroc(ranked(train), here), nan=0.0), axis=0)
    by_f1 = np.argmax(f1(train, here), axis=0)
    area, rule, by_latent = auroc(ranked(test), there), f1(test, there), ByLatent(test)
    matches = []
    for c, name in enumerate(classes.names):
        rows, _ = by_latent.firing(int(chosen[c]))
        purity = float(there[rows[:PURITY], c].mean()) if len(rows) else 0.0
        found = Match(name, int(chosen[c]), float(area[chosen[c], c]), float(rule[by_f1[c], c]), int(by_f1[c]), purity,
                      int(there[:, c].sum()))  # fmt: skip
        matches.append(found)
    return LabelScores(matches)
