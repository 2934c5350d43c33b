"""k-sparse probing: how much of a label can be read off k latents, beside k raw dimensions and k principal components.

Per class (the most common ones, one against the rest): choose on training rows the k features whose means differ most
between the class and the rest, and fit a logistic regression on them that weighs both sides the same. On the hold-out,
measure the area under its ROC curve, and its balanced accuracy: the mean of the shares it gets right of the class and
of the rest. Both are 0.5 by chance, however rare the class; the mean over classes is what is returned. The procedure is
that of Gurnee et al. (arXiv:2305.01610) and SAEBench (arXiv:2503.09532), which measure accuracy on balanced samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

KS = (1, 5, 20)
CLASSES = 8
"""Classes at most."""
FEWEST = 10
"""Examples a class, and the rest, need in either part."""
TRAIN_ROWS, TEST_ROWS = 4_000, 2_000
RAW, PCA = "_raw", "_pca"
"""Suffixes of the baselines' keys."""

Array = np.ndarray[Any, Any]


def probing(
    train: dict[str, Tensor], train_labels: Sequence[Any], test: dict[str, Tensor], test_labels: Sequence[Any]
) -> dict[str, float]:
    """`eval/probing_auc_k{k}{suffix}` and `eval/probing_accuracy_k{k}{suffix}` for k in 1, 5, 20 and each suffix ->
    features (N, width) of train and test; `..._all_raw` for a probe on every raw dimension.

    Rows without a label count for nothing. Empty where fewer than two classes have examples enough in both parts.
    """
    known, test_known = _known(train_labels), _known(test_labels)
    labels, truth = np.array(train_labels, dtype=object)[known], np.array(test_labels, dtype=object)[test_known]
    classes = _classes(labels, truth)
    if len(classes) < 2:
        return {}
    values = {}
    for suffix in train:
        here, there = train[suffix].cpu().numpy()[known], test[suffix].cpu().numpy()[test_known]
        sizes = {f"k{k}": k for k in KS} | ({"all": here.shape[1]} if suffix == RAW else {})
        scores = [_scores(here, labels == c, there, truth == c, list(sizes.values())) for c in classes]
        for name, (auc, accuracy) in zip(sizes, np.mean(scores, axis=0).tolist(), strict=True):
            values[f"eval/probing_auc_{name}{suffix}"] = auc
            values[f"eval/probing_accuracy_{name}{suffix}"] = accuracy
    return values


def principal_components(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of both on the principal components of train (N, d), the strongest first."""
    mean = train.double().mean(0)
    centred = train.double() - mean
    directions = torch.linalg.eigh(centred.t() @ centred).eigenvectors.flip(1)[:, : len(train)]
    return centred @ directions, (test.double() - mean) @ directions


def strongest(features: Array, positive: Array, k: int) -> Array:
    """The k columns whose mean differs most between positive rows and the others; lower columns first among equals."""
    difference = np.abs(features[positive].mean(0, dtype=np.float64) - features[~positive].mean(0, dtype=np.float64))
    return np.argsort(-difference, kind="stable")[:k]


def _scores(train: Array, positive: Array, test: Array, truth: Array, ks: Sequence[int]) -> list[tuple[float, float]]:
    """(area under the ROC curve, balanced accuracy) of one class for each k."""
    order = strongest(train, positive, max(ks))
    return [_probe(train[:, order[:k]], positive, test[:, order[:k]], truth) for k in ks]


def _probe(train: Array, positive: Array, test: Array, truth: Array) -> tuple[float, float]:
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1
    weights = _fitted((train - mean) / spread, positive)
    score = (test - mean) / spread @ weights[:-1] + weights[-1]
    yes, no = score[truth], np.sort(score[~truth])
    above = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")  # a tie is half an order
    return float(above.mean() / (2 * len(no))), float(((yes > 0).mean() + (no <= 0).mean()) / 2)


def _fitted(x: Array, positive: Array) -> Array:
    """Weights (k + 1, the intercept last) of the logistic regression of x (N, k): both sides weigh N / 2 in the loss,
    and half the squared weights are added to it, without the intercept's."""
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
    """Which of these are labels: neither None nor NaN."""
    return np.array([label is not None and label == label for label in labels], dtype=bool)


def _classes(train_labels: Array, test_labels: Array) -> list[Any]:
    here, there = Counter(train_labels.tolist()), Counter(test_labels.tolist())
    fewest = {c: min(n, there[c], len(train_labels) - n, len(test_labels) - there[c]) for c, n in here.items()}
    fit = [c for c in here if fewest[c] >= FEWEST]
    return sorted(fit, key=lambda c: (-here[c], str(c)))[:CLASSES]
