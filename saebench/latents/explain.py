"""Which latents are related to a target: ranked on training rows, measured on others, compared with other seeds.

A class is ranked by AUROC (its distance from 1/2), a number by Pearson's correlation with the activation, both on
training rows alone. The best ones also get their rank of entry into an L1-regularised regression, and their effect is
measured on the other part: AUROC with DeLong's interval and the p of Mann and Whitney, or the correlation with
Fisher's. p is corrected by Holm over all effects that are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.ends import Ends
from saebench.latents.neighbours import SAME, nearest_by_cosine
from saebench.latents.ranks import auroc, ranked, some_rows
from saebench.latents.targets import Target

MOST = 10
"""Latents reported per target."""
CANDIDATES = 100
"""Latents that the regression chooses from."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """The relation of one latent to one target."""

    target: str
    latent: int
    kind: str
    """auroc or correlation: the measure in `ranked` and `effect`."""
    ranked: float
    """The measure on training rows."""
    effect: float
    low: float
    high: float
    """95% interval of the effect."""
    p: float
    p_holm: float
    inside: float
    """Share of the class (of the texts above the median number) on which the latent fires."""
    outside: float
    """The share of the other texts."""
    path: int | None
    """Rank of its entry into the regression, from 1; None: never."""
    matched: int = 0
    """Other seeds that have the latent (cosine above 0.7)."""
    confirmed: int = 0
    """Number of these seeds whose latent has an effect in the same direction on the same texts."""


def explain(train: Codes, test: Codes, targets: Sequence[Target], most: int = MOST) -> list[Effect]:
    """Return the `most` best latents of every target, by rank, with Holm's correction over all of them."""
    found = [effect for target in targets for effect in _of(train, test, target, most)]
    return [replace(e, p_holm=p) for e, p in zip(found, holm([e.p for e in found]), strict=True)]


def _of(train: Codes, test: Codes, target: Target, most: int) -> list[Effect]:
    here, there = (some_rows(codes, rows) for codes, rows in zip((train, test), target.rows, strict=True))
    y, truth = target.values
    score = _auroc(here, y) if target.kind == "class" else _correlations(here, y)
    middle = 0.5 if target.kind == "class" else 0.0
    strength = np.where(np.isfinite(score), np.abs(score - middle), -1.0)
    order = np.lexsort((np.arange(len(score)), -strength))
    order = order[strength[order] > 0]
    path = entry_order(here, order[:CANDIDATES], y)
    effects = []
    for latent in order[:most].tolist():
        x = column(there, latent)
        value, low, high, p = _class_effect(x, truth) if target.kind == "class" else _number_effect(x, truth)
        inside = truth > 0.5 if target.kind == "class" else truth > np.median(truth)
        share_in, share_out = float((x[inside] != 0).mean()), float((x[~inside] != 0).mean())
        kind = "auroc" if target.kind == "class" else "correlation"
        effects.append(
            Effect(target.name, latent, kind, float(score[latent]), value, low, high, p, p, share_in, share_out,
                   path.get(latent))
        )  # fmt: skip
    return effects


def _auroc(codes: Codes, y: Array) -> Array:
    found: Array = auroc(ranked(codes), (y > 0.5)[:, None])[:, 0]
    return found


def _correlations(codes: Codes, y: Array) -> Array:
    """Pearson's correlation of every latent with y; NaN for a constant latent."""
    matrix = codes.matrix().astype(np.float64)
    n, centred = len(y), y - y.mean()
    mean = np.asarray(matrix.sum(axis=0)).ravel() / n
    square = np.asarray((matrix * matrix).sum(axis=0)).ravel() / n - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (matrix.T @ centred) / n / (np.sqrt(np.maximum(square, 0)) * y.std())
    return np.where(square > 1e-15, found, np.nan)


def column(codes: Codes, latent: int) -> Array:
    """(rows,) the activations of one latent."""
    return np.asarray(codes.matrix()[:, [latent]].toarray(), np.float64).ravel()


def entry_order(codes: Codes, latents: NDArray[np.int64], y: Array) -> dict[int, int]:
    """Return latent -> rank in which its coefficient leaves 0 on the lasso's path, on standardised activations."""
    from sklearn.linear_model import lars_path_gram

    if not len(latents):
        return {}
    x = np.asarray(codes.matrix()[:, latents].toarray(), np.float64)
    spread = x.std(0)
    kept = np.flatnonzero(spread > 0)
    x = (x[:, kept] - x[:, kept].mean(0)) / spread[kept]
    z = (y - y.mean()) / y.std()
    _, active, _ = lars_path_gram(
        x.T @ z, x.T @ x, n_samples=len(y), method="lasso", max_iter=4 * MOST, copy_X=False, copy_Gram=False
    )
    return {int(latents[kept[j]]): place for place, j in enumerate(dict.fromkeys(active), 1)}


def _class_effect(x: Array, y: Array) -> tuple[float, float, float, float]:
    """(AUROC, low, high, p)."""
    from scipy.stats import mannwhitneyu

    a, b = x[y > 0.5], x[y <= 0.5]
    area, low, high = delong(a, b)
    if np.unique(x).size < 2:
        return area, low, high, 1.0
    return area, low, high, float(mannwhitneyu(a, b, method="asymptotic").pvalue)


def delong(a: Array, b: Array) -> tuple[float, float, float]:
    """AUROC of scores a above scores b and its 95% interval (DeLong et al. 1988)."""
    sorted_a, sorted_b = np.sort(a), np.sort(b)
    above = (np.searchsorted(sorted_b, a, "left") + np.searchsorted(sorted_b, a, "right")) / (2 * len(b))
    below = 1 - (np.searchsorted(sorted_a, b, "left") + np.searchsorted(sorted_a, b, "right")) / (2 * len(a))
    area = float(above.mean())
    half = 1.959964 * float(np.sqrt(above.var(ddof=1) / len(a) + below.var(ddof=1) / len(b)))
    return area, max(0.0, area - half), min(1.0, area + half)


def _number_effect(x: Array, y: Array) -> tuple[float, float, float, float]:
    """(correlation, low, high, p)."""
    from scipy.stats import pearsonr

    if x.std() == 0 or y.std() == 0:
        return 0.0, -1.0, 1.0, 1.0
    found = pearsonr(x, y)
    low, high = found.confidence_interval(0.95)
    return float(found.statistic), float(low), float(high), float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: never smaller than p, never falling in the order of p."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    out = np.empty(len(values))
    out[order] = np.minimum(steps, 1.0)
    return [float(value) for value in out]


def confirm(
    effects: Sequence[Effect], decoder: NDArray[np.float32], targets: Mapping[str, Target],
    others: Sequence[tuple[NDArray[np.float32], Codes]], *, signed: bool = False,
) -> list[Effect]:  # fmt: skip
    """Return the effects with the counts over other seeds; `others`: decoder rows and codes of the measured texts of
    each seed. `signed`: another seed's latent may be the opposite of ours, in decoder row and activations."""
    counted = list(effects)
    for rows, codes in others:
        ends = Ends(len(rows), signed)
        near = nearest_by_cosine(decoder[[e.latent for e in effects]], ends.directions(rows), 1)
        for i, effect in enumerate(effects):
            if not near.value[i, 0] > SAME:
                continue
            target = targets[effect.target]
            end, y = int(near.index[i, 0]), target.values[1]
            x = ends.sign(end) * column(some_rows(codes, target.rows[1]), ends.latent(end))
            agrees = _direction(x, y, target.kind) * direction_of(effect) > 0
            counted[i] = replace(
                counted[i], matched=counted[i].matched + 1, confirmed=counted[i].confirmed + int(agrees)
            )
    return counted


def _direction(x: Array, y: Array, kind: str) -> float:
    value = _class_effect(x, y)[0] - 0.5 if kind == "class" else _number_effect(x, y)[0]
    return float(np.sign(value))


def direction_of(effect: Effect) -> float:
    """1 if the latent's activation is higher inside (or grows with the number), -1 if it is lower, 0 if neither."""
    return float(np.sign(effect.effect - (0.5 if effect.kind == "auroc" else 0.0)))
