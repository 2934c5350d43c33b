"""k-sparse probing: how much of a label can be read off k latents, beside k raw dimensions and k principal components.

Per class (the most common ones, one against the rest): choose on training rows the k features whose means differ most
between the class and the rest, fit a logistic regression on them, and measure the area under the ROC curve on the
hold-out; the mean over classes. 0.5 is chance.
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
"""Examples a class needs in either part."""
TRAIN_ROWS, TEST_ROWS = 4_000, 2_000


def probing(
    train: dict[str, Tensor], train_labels: Sequence[Any], test: dict[str, Tensor], test_labels: Sequence[Any]
) -> dict[str, float]:
    """`eval/probing_auc_k{k}{suffix}` for k in 1, 5, 20 and each suffix -> features (N, width) of train and test.

    Empty where fewer than two classes have examples enough in both parts.
    """
    classes = _classes(train_labels, test_labels)
    if len(classes) < 2:
        return {}
    values = {}
    for suffix in train:
        here, there = train[suffix].cpu().double().numpy(), test[suffix].cpu().double().numpy()
        for k in KS:
            scores = [_auc(here, _is(train_labels, c), there, _is(test_labels, c), k) for c in classes]
            values[f"eval/probing_auc_k{k}{suffix}"] = float(np.mean(scores))
    return values


def principal_components(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of both on the principal components of train (N, d)."""
    mean = train.double().mean(0)
    _, _, directions = torch.linalg.svd(train.double() - mean, full_matrices=False)
    return (train.double() - mean) @ directions.t(), (test.double() - mean) @ directions.t()


def strongest(features: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """The k columns whose mean differs most between positive rows and the others; lower columns first among equals."""
    difference = np.abs(features[positive].mean(0) - features[~positive].mean(0))
    return np.argsort(-difference, kind="stable")[:k]


def _auc(
    train: np.ndarray[Any, Any],
    positive: np.ndarray[Any, Any],
    test: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    k: int,
) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    chosen = strongest(train, positive, k)
    mean, spread = train[:, chosen].mean(0), train[:, chosen].std(0)
    spread[spread == 0] = 1
    probe = LogisticRegression(class_weight="balanced", max_iter=1000)
    probe.fit((train[:, chosen] - mean) / spread, positive)
    return float(roc_auc_score(truth, probe.decision_function((test[:, chosen] - mean) / spread)))


def _classes(train_labels: Sequence[Any], test_labels: Sequence[Any]) -> list[Any]:
    here, there = Counter(train_labels), Counter(test_labels)
    fit = [c for c in here if min(here[c], there[c]) >= FEWEST and len(train_labels) - here[c] >= FEWEST]
    return sorted(fit, key=lambda c: (-here[c], str(c)))[:CLASSES]


def _is(labels: Sequence[Any], one: Any) -> np.ndarray[Any, Any]:
    return np.array([label == one for label in labels])
