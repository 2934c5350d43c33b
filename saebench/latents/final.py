"""Scores of latents as metrics of a trial, measured with its last evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from saebench.errors import DataError
from saebench.latents.codes import Codes, offsets_of
from saebench.latents.corpus import MOST_TRAIN, Floats, Part
from saebench.latents.floors import FLOORS
from saebench.latents.judge import SAE as OF_THE_SAE
from saebench.latents.judge import SCORES, Texts, judge
from saebench.latents.ranks import classes_of
from saebench.latents.second import rows_by_text
from saebench.latents.trial import encode_rows

if TYPE_CHECKING:
    from saebench.saes import SAE
    from saebench.stores.entry import CacheEntry

ENTRIES: dict[str, tuple[str, ...]] = {
    "coherence": ("coherence",),
    "example_auroc": ("example_auroc",),
    "label_match": tuple(name for name in SCORES if name.startswith("label_")),
}
"""Entry of `eval.metrics` -> scores of judge.py."""
ABOVE = "_above_floor"
"""Suffix of a score minus the best floor's: the part that training added."""


def final_scores(
    sae: SAE,
    entry: CacheEntry | None,
    part: Literal["validation", "test"],
    wanted: Iterable[str],
    second: CacheEntry | None = None,
) -> dict[str, float]:
    """`eval/SCORE`, `eval/SCORE_above_floor`, and `eval/SCORE_FLOOR` of every floor; empty without the cache (its texts
    and labels are needed), or if no score can be computed. `second`: the same texts under the second encoder, which
    example_auroc needs. Raises DataError if it is not there, or lacks texts."""
    scores = [score for name in wanted for score in ENTRIES.get(name, ())]
    if entry is None or not scores:
        return {}
    train = Part("train", entry, entry.sample_index(MOST_TRAIN))
    there = Part(part, entry, entry.test_index if part == "test" else entry.validation_index)
    labelled = any(score.startswith("label_") for score in scores)
    classes = classes_of(train.labels or [], there.labels or []) if labelled else None
    other = _second_rows(there, second) if "example_auroc" in scores else None
    judged = judge(_texts(sae, train, scores), _texts(sae, there, scores, other), classes, scores)
    values = judged.metrics("eval/")
    for score, value in judged.values[OF_THE_SAE].items():
        values[f"eval/{score}{ABOVE}"] = value - max(judged.values[floor][score] for floor in FLOORS)
    return values


def _second_rows(part: Part, second: CacheEntry | None) -> Floats:
    if second is None:
        raise DataError("the second encoder's embeddings are not in the cache")
    return rows_by_text(part, second, "eval.second_encoder")


def _texts(sae: SAE, part: Part, scores: Iterable[str], second: Floats | None = None) -> Texts:
    rows = part.embeddings()
    values, latents, counts = encode_rows(sae, rows)
    codes = Codes(values, latents, offsets_of(counts), sae.dict_size)
    return Texts(rows, codes, part.texts if "coherence" in scores else None, second)
