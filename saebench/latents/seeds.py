"""Scores of a trial and of the other seeds of its point: mean and interval, beside the floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.errors import UserError
from saebench.latents.analysis import Latents
from saebench.latents.corpus import Part, open_entry, open_part
from saebench.latents.floors import FLOORS
from saebench.latents.judge import SAE, SCORES, Judged, Texts, judge
from saebench.latents.ranks import classes_of
from saebench.latents.trial import TrainedSAE
from saebench.runs.paths import cache_dir as default_cache_dir

CIRCULAR = 0.98
"""Correlation of pairwise cosines above which two encoders are one."""


def judged_with_seeds(
    one: Latents, second: str | None, *, circular: bool, cache_dir: str | Path | None = None, build: bool = False
) -> list[Judged]:
    """Of the trial, then of its other seeds, by seed."""
    cache = default_cache_dir(cache_dir)
    train = open_part(one.trial.config, "train", cache, build=build)
    other = None if second is None else second_rows(one.part, one.trial, second, cache, circular=circular)
    classes = classes_of(train.labels or [], one.part.labels or [])
    here, there = train.embeddings(), one.part.embeddings()
    found = []
    for trial in (one.trial, *one.others):
        of_train = Texts(here, trial.codes(train), train.texts)
        found.append(judge(of_train, Texts(there, trial.codes(one.part), one.part.texts, other), classes))
    return found


def second_rows(
    part: Part, trial: TrainedSAE, model: str, cache_dir: Path, *, circular: bool = False
) -> NDArray[np.float32]:
    """Embeddings of the part's texts by a second encoder, out of the cache or encoded now. Raises UserError where it is
    the encoder that the SAE was trained on."""
    data = trial.config.data
    also = data.model_copy(update={"model": model, "revision": None, "prompt": None, "max_seq_length": None})
    entry = open_entry(also, cache_dir, None, build=True)
    places = {int(h): i for i, h in enumerate(entry.hashes.tolist())}
    index = np.array([places.get(int(h), -1) for h in part.hashes.tolist()], np.int64)
    if (index < 0).any():
        raise UserError(f"--second {model}: {int((index < 0).sum()):,} of the texts are not in the data set any more")
    order = np.argsort(index)
    rows = np.empty((len(index), entry.d_in), np.float32)
    rows[order] = entry.read(index[order])
    if not circular and is_same_encoder(part.embeddings(0, 500), rows[:500]):
        raise UserError(
            f"--second {model}: gives the embeddings that the SAE was trained on; texts that fire any direction of "
            "them lie close together in them, so that the score would say nothing. Name another encoder "
            "(--circular-anyway: score all the same)"
        )
    return rows


def is_same_encoder(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Whether two encoders give (nearly) the same cosines between texts: a copy in another folder, in other precision,
    or rotated, is the same encoder."""
    if len(a) < 3:
        return bool(a.shape == b.shape and np.allclose(a, b, atol=1e-3))
    places = np.triu_indices(len(a), 1)
    cosines = np.stack([(u @ u.T)[places] for u in (_unit(a), _unit(b))])
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(np.asarray(np.corrcoef(cosines))[0, 1] > CIRCULAR)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))


def score_rows(one: Latents, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row per score that all seeds and all floors have: mean over seeds, t interval, and by how much it is above the
    best floor of the same seed."""
    rows = []
    for score in SCORES:
        if not all(score in j.values[who] for j in judged for who in (SAE, *FLOORS) if who in j.values):
            continue
        if not all(set(FLOORS) <= j.values.keys() for j in judged):
            continue
        values = np.array([j.values[SAE][score] for j in judged])
        floors = {f: np.array([j.values[f][score] for j in judged]) for f in FLOORS}
        row = {"trial": one.trial.name, "stratum": one.trial.config.stratum, "score": score, "seeds": len(judged)}
        row |= _interval(values, "value") | {f: float(some.mean()) for f, some in floors.items()}
        row |= _interval(values - np.max(list(floors.values()), axis=0), "above")
        rows.append(row | ({"deciles": _deciles(judged)} if score == "example_auroc" else {}))
    return rows


def _deciles(judged: Sequence[Judged]) -> list[float]:
    """Mean AUROC of the texts of each tenth against the silent ones, the strongest tenth first, over latents that fire
    on ten texts or more, and seeds; empty without such latents."""
    tenths = np.concatenate([one.examples.deciles for one in judged if one.examples is not None])
    whole = tenths[np.isfinite(tenths).all(axis=1)]
    return [round(float(value), 4) for value in whole.mean(axis=0)] if len(whole) else []


def judged_rows(one: Latents, judged: Judged) -> list[dict[str, Any]]:
    """A row per latent that was judged, the most frequent first, for the scores that latents have."""
    place = {latent: i for i, latent in enumerate(judged.latents)}
    rows = []
    for row in one.rows(judged.latents):
        i = place[row["latent"]]
        mine = {key: row[key] for key in ("trial", "latent", "keywords", "density", "label", "top")}
        if judged.coherence is not None:
            mine["coherence"] = float(judged.coherence[i])
        if judged.examples is not None:
            mine["example_auroc"] = float(judged.examples.overall[i])
        rows.append(mine)
    return rows


def _interval(values: NDArray[np.float64], name: str) -> dict[str, float]:
    """Mean and 95% t interval; NaN bounds for one value."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {name: mean, f"{name}_low": math.nan, f"{name}_high": math.nan}
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def label_rows(one: Latents, judged: Judged) -> list[dict[str, Any]]:
    """A row per label."""
    place = {latent: i for i, latent in enumerate(one.live.tolist())}
    rows = []
    for match in judged.matches:
        words = one.keywords[place[match.latent]] if match.latent in place else []
        rows.append({"trial": one.trial.name, **vars(match), "keywords": ", ".join(k.term for k in words)})
    return rows
