"""Scores of a trial and of the other seeds of its point: mean and interval, with the floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.config import DataConfig
from saebench.latents.analysis import Latents
from saebench.latents.corpus import Part, open_entry, open_part
from saebench.latents.floors import FLOORS
from saebench.latents.judge import SAE, SCORES, Judged, Texts, judge
from saebench.latents.ranks import classes_of
from saebench.latents.second import CircularError, is_same_encoder, rows_by_text, second_data
from saebench.runs.paths import cache_dir as default_cache_dir


def judged_with_seeds(
    one: Latents, second: str | None, *, circular: bool, cache_dir: str | Path | None = None, build: bool = False
) -> list[Judged]:
    """Of the trial, then of its other seeds, by seed."""
    cache = default_cache_dir(cache_dir)
    train = open_part(one.trial.config, "train", cache, build=build)
    other = None if second is None else _second(one.part, one.trial.config.data, second, cache, circular=circular)
    classes = classes_of(train.labels or [], one.part.labels or [])
    here, there = train.embeddings(), one.part.embeddings()
    found = []
    for trial in (one.trial, *one.others):
        of_train = Texts(here, trial.codes(train), train.texts)
        found.append(judge(of_train, Texts(there, trial.codes(one.part), one.part.texts, other), classes))
    return found


def _second(part: Part, data: DataConfig, model: str, cache_dir: Path, *, circular: bool) -> NDArray[np.float32]:
    """Return the second encoder's embeddings of the part's texts, from the cache or encoded now."""
    rows = rows_by_text(part, open_entry(second_data(data, model), cache_dir, None, build=True), f"--second {model}")
    if not circular and is_same_encoder(part.embeddings(0, 500), rows[:500]):
        raise CircularError(f"--second {model}")
    return rows


def score_rows(one: Latents, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row per score that all seeds and all floors have: mean over seeds, t interval, and the difference from the best
    floor of the same seed."""
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
    """Return a row per judged latent (per end if they are signed), the most frequent first, with the scores that exist
    per latent."""
    ends = one.trial.ends
    place = {(ends.latent(end), ends.mark(end)): i for i, end in enumerate(judged.latents)}
    rows = []
    for row in one.rows(judged.latents):
        i = place[row["latent"], row.get("end", "")]
        mine: dict[str, Any] = {
            key: row[key] for key in ("trial", "latent", "end", "keywords", "density", "label", "top") if key in row
        }
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
        named = {name: one.trial.ends.name(getattr(match, name)) for name in ("latent", "f1_latent")}
        rows.append({"trial": one.trial.name, **vars(match), **named, "keywords": ", ".join(k.term for k in words)})
    return rows
