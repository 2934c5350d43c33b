"""k-sparse probing: how well k latents predict a label, compared with k raw dimensions and k principal components.

Per class (the most common ones, one against the rest): choose on training rows the k features whose means differ most
between the class and the rest, and fit a logistic regression on them that weighs both sides the same. On the test part,
measure the area under its ROC curve, and its balanced accuracy: the mean of the shares it gets right of the class and
of the rest. Both are 0.5 by chance, however rare the class; the mean over classes is what is returned. The procedure is
that of Gurnee et al. (arXiv:2305.01610) and SAEBench (arXiv:2503.09532), which measure accuracy on balanced samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.metrics import PROBED_LATENTS

CLASSES = 8
"""Maximum number of classes."""
FEWEST = 10
"""Fewest examples of a class, and of the rest, in each part."""
TRAIN_ROWS, TEST_ROWS = 4_000, 2_000
RAW, PCA = "_raw", "_pca"
"""Suffixes of the baselines' keys."""

Array = np.ndarray[Any, Any]
Features = Tensor | Callable[[], Iterable[Tensor]]
"""(N, width), or a function that iterates over it in chunks of rows, from the first row at each call."""


def probing(
    train: Mapping[str, Features],
    train_labels: Sequence[Any],
    test: Mapping[str, Features],
    test_labels: Sequence[Any],
) -> dict[str, float]:
    """Return `eval/probing_auc_k{k}{suffix}` and `eval/probing_accuracy_k{k}{suffix}` for k in 1, 5, 20 and each
    suffix -> features (N, width) of train and test; `..._all_raw` for a probe on every raw dimension.

    Rows without a label are ignored. Returns {} if fewer than two classes have enough examples in both parts. Raises
    ValueError for labels that are lists. Of features in chunks, only class means and the columns that some probe reads
    are kept in memory.
    """
    known, test_known = _known(train_labels), _known(test_labels)
    labels, truth = np.array(train_labels, dtype=object)[known], np.array(test_labels, dtype=object)[test_known]
    classes = _classes(labels, truth)
    if len(classes) < 2:
        return {}
    here, there = _places(labels, classes, known), _places(truth, classes, test_known)
    values = {}
    for suffix, features in train.items():
        gaps = class_gaps(features, here)
        sizes = {f"k{k}": k for k in PROBED_LATENTS} | ({"all": gaps.shape[1]} if suffix == RAW else {})
        orders = strongest(gaps, max(sizes.values()))
        used = np.unique(orders)
        rows, others = _columns(features, used)[known], _columns(test[suffix], used)[test_known]
        scores = []
        for c, order in enumerate(orders):
            columns, positive, true = np.searchsorted(used, order), here[c][known], there[c][test_known]
            scores.append(
                [_probe(rows[:, columns[:k]], positive, others[:, columns[:k]], true) for k in sizes.values()]
            )
        for name, (auc, accuracy) in zip(sizes, np.mean(scores, axis=0).tolist(), strict=True):
            values[f"eval/probing_auc_{name}{suffix}"] = auc
            values[f"eval/probing_accuracy_{name}{suffix}"] = accuracy
    return values


def _places(labels: Array, classes: list[Any], known: Array) -> Array:
    """Return a mask (classes + 1, N) bool of the rows of each class; the last one is that of rows without a label."""
    found = np.zeros((len(classes) + 1, len(known)), dtype=bool)
    found[:-1, known] = np.array([labels == c for c in classes])
    found[-1] = ~known
    return found


def _chunks(features: Features) -> Iterable[Tensor]:
    return [features] if isinstance(features, Tensor) else features()


def _columns(features: Features, columns: Array) -> Array:
    """Return the given columns as (N, len(columns)) float64."""
    index = torch.from_numpy(columns)
    return np.concatenate([chunk[:, index.to(chunk.device)].cpu().double().numpy() for chunk in _chunks(features)])


def principal_components(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of both on the principal components of train (N, d), the strongest first."""
    mean = train.double().mean(0)
    centred = train.double() - mean
    directions = torch.linalg.eigh(centred.t() @ centred).eigenvectors.flip(1)[:, : len(train)]
    return centred @ directions, (test.double() - mean) @ directions


def class_gaps(features: Features, places: Array) -> Array:
    """Return (classes, width) float64: how much the mean of each feature differs between a class and the other labelled
    rows. places (classes + 1, N): mask of each class; the last one, of rows without a label, is ignored."""
    masks, start, sums = torch.from_numpy(places[:-1]), 0, None
    labelled = torch.from_numpy(~places[-1])
    masks = torch.cat([masks, labelled[None]])
    for chunk in _chunks(features):
        part = masks[:, start : start + len(chunk)].double().to(chunk.device)
        added = part @ torch.where(part[-1:].t() > 0, chunk.double(), 0.0)
        sums = added if sums is None else sums + added
        start += len(chunk)
    if sums is None:
        raise ValueError("no rows to probe")
    total, inside = sums[-1].cpu(), sums[:-1].cpu()
    counts = masks.double().sum(1, keepdim=True)
    gaps: Array = (inside / counts[:-1] - (total - inside) / (counts[-1:] - counts[:-1])).abs().numpy()
    return gaps


def strongest(gaps: Array, k: int) -> Array:
    """Return (classes, k) the columns with the largest gaps (classes, width); of equal gaps, lower columns first."""
    return np.argsort(-gaps, axis=1, kind="stable")[:, :k]


def _probe(train: Array, positive: Array, test: Array, truth: Array) -> tuple[float, float]:
    mean, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1
    weights = _fitted((train - mean) / spread, positive)
    score = (test - mean) / spread @ weights[:-1] + weights[-1]
    yes, no = score[truth], np.sort(score[~truth])
    above = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")  # a tie counts half
    return float(above.mean() / (2 * len(no))), float(((yes > 0).mean() + (no <= 0).mean()) / 2)


def _fitted(x: Array, positive: Array) -> Array:
    """Return the weights (k + 1, the intercept last) of the logistic regression on x (N, k): both sides have a total
    weight of N / 2 in the loss, plus an L2 penalty of half the squared weights without the intercept."""
    from scipy.optimize import minimize

    n, sign, ones = len(x), np.where(positive, 1.0, -1.0), np.ones((len(x), 1))
    weight = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
    rows, penalty = np.hstack([x, ones]), np.append(np.full(x.shape[1], 1 / n), 0)

    def loss(theta: Array) -> tuple[float, Array]:
        margin = sign * (rows @ theta)
        missed = np.exp(-np.logaddexp(0, margin))
        value = weight @ np.logaddexp(0, -margin) + penalty @ theta**2 / 2
        return float(value), penalty * theta - (sign * weight * missed) @ rows

    found = minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x)


def _known(labels: Sequence[Any]) -> Array:
    """Return a mask of the labels that are neither None nor NaN. Raises ValueError for a label that is a list."""
    several = next((label for label in labels if isinstance(label, list | dict | np.ndarray)), None)
    if several is not None:
        raise ValueError(f"label {several!r}: probing needs one class per text")
    return np.array([label is not None and label == label for label in labels], dtype=bool)


def _classes(train_labels: Array, test_labels: Array) -> list[Any]:
    here, there = Counter(train_labels.tolist()), Counter(test_labels.tolist())
    fewest = {c: min(n, there[c], len(train_labels) - n, len(test_labels) - there[c]) for c, n in here.items()}
    fit = [c for c in here if fewest[c] >= FEWEST]
    return sorted(fit, key=lambda c: (-here[c], str(c)))[:CLASSES]
