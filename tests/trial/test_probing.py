"""k-sparse probing against brute force and on features whose answer is known."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from saebench.metrics import PROBED_LATENTS
from saebench.saes.calibrate import rows_per_chunk
from saebench.trial.probing import class_gaps, principal_components, probing, strongest


def labelled(n: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Feature 3 is 1 for "a" and 0 for the others, plus noise; the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = ["abc"[i % 3] for i in range(n)]
    x = 0.1 * torch.randn(n, 30, generator=generator)
    x[:, 3] += torch.tensor([float(label == "a") for label in labels])
    return x, labels


def test_strongest_equals_a_loop_over_the_columns() -> None:
    x, labels = labelled(60, 0)
    features, positive = x.numpy(), np.array([label == "b" for label in labels])
    gaps = [
        abs(np.mean([r[c] for r, p in zip(features, positive, strict=True) if p]) - np.mean(features[~positive, c]))
        for c in range(30)
    ]
    places = np.array([positive, ~positive, np.zeros(60, dtype=bool)])
    for given in (x, lambda: x.split(7)):
        assert strongest(class_gaps(given, places), 4)[0].tolist() == sorted(range(30), key=lambda c: -gaps[c])[:4]


def test_one_feature_that_tells_is_found_and_noise_stays_at_chance() -> None:
    (here, labels), (there, test_labels) = labelled(300, 0), labelled(600, 1)
    only_a = [label if label == "a" else "rest" for label in labels]
    test_a = [label if label == "a" else "rest" for label in test_labels]
    noise = torch.randn(900, 30, generator=torch.Generator().manual_seed(2))
    values = probing({"": here, "_raw": noise[:300]}, only_a, {"": there, "_raw": noise[300:]}, test_a)
    sizes = [*(f"k{k}{suffix}" for k in PROBED_LATENTS for suffix in ("", "_raw")), "all_raw"]
    assert values.keys() == {f"eval/probing_{score}_{size}" for score in ("auc", "accuracy") for size in sizes}
    for score in ("auc", "accuracy"):
        assert values[f"eval/probing_{score}_k1"] > 0.99
        assert values[f"eval/probing_{score}_k1_raw"] == pytest.approx(0.5, abs=0.1)


Array = np.ndarray


def by_hand(train: Array, labels: list, test: Array, truth: list, classes: list, k: int) -> tuple[float, float]:
    """(mean AUC, mean balanced accuracy) of the rule, without its code: gaps in a loop, Newton's method on the weighted
    logistic loss with half the squared weights (C = 1), pairs counted for the area."""
    areas, accuracies = [], []
    for c in classes:
        y = np.array([label == c for label in labels])
        gap = [abs(np.mean(column[y]) - np.mean(column[~y])) for column in train.T]
        columns = sorted(range(train.shape[1]), key=lambda j: -gap[j])[:k]
        mean, sd = train[:, columns].mean(0), train[:, columns].std(0)
        a, b = (np.c_[(x[:, columns] - mean) / sd, np.ones(len(x))] for x in (train, test))
        weight = np.where(y, len(y) / (2 * y.sum()), len(y) / (2 * (~y).sum()))
        penalty = np.diag([1.0] * len(columns) + [0.0])  # not on the intercept
        theta = np.zeros(len(columns) + 1)
        for _ in range(50):
            p = 1 / (1 + np.exp(-a @ theta))
            slope = a.T @ (weight * (p - y)) + penalty @ theta
            theta -= np.linalg.solve((a * (weight * p * (1 - p))[:, None]).T @ a + penalty, slope)
        score = b @ theta
        yes = [s for s, t in zip(score, truth, strict=True) if t == c]
        no = [s for s, t in zip(score, truth, strict=True) if t != c]
        areas.append(np.mean([(p > n) + (p == n) / 2 for p in yes for n in no]))
        accuracies.append((np.mean([s > 0 for s in yes]) + np.mean([s <= 0 for s in no])) / 2)
    return float(np.mean(areas)), float(np.mean(accuracies))


def overlapping(n: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Three classes of different sizes, each told a little by many of 30 features."""
    generator = torch.Generator().manual_seed(seed)
    labels = ["aaabbc"[i % 6] for i in range(n)]
    centres = torch.randn(3, 30, generator=torch.Generator().manual_seed(9))
    return torch.randn(n, 30, generator=generator) + 0.5 * centres[["abc".index(c) for c in labels]], labels


def test_it_equals_the_rule_computed_by_hand() -> None:
    (here, labels), (there, truth) = overlapping(240, 0), overlapping(180, 1)
    components = principal_components(here, there)
    values = probing(
        {"": here, "_raw": here, "_pca": components[0]},
        labels,
        {"": there, "_raw": there, "_pca": components[1]},
        truth,
    )
    for suffix, (train, test) in {"_raw": (here, there), "_pca": components}.items():
        for name, k in [*((f"k{k}", k) for k in PROBED_LATENTS), *([("all", 30)] if suffix == "_raw" else [])]:
            auc, accuracy = by_hand(train.double().numpy(), labels, test.double().numpy(), truth, ["a", "b", "c"], k)
            assert 0.5 < accuracy < 0.95
            assert values[f"eval/probing_auc_{name}{suffix}"] == pytest.approx(auc, abs=1e-3)
            assert values[f"eval/probing_accuracy_{name}{suffix}"] == pytest.approx(accuracy, abs=0.01)
    assert all(values[f"eval/probing_auc_k{k}"] == values[f"eval/probing_auc_k{k}_raw"] for k in PROBED_LATENTS)


def test_it_equals_the_rule_computed_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.preprocessing import StandardScaler

    (here, labels), (there, truth) = overlapping(600, 2), overlapping(600, 3)
    values = probing({"_raw": here}, labels, {"_raw": there}, truth)
    areas, accuracies = [], []
    for c in "abc":
        y, t = (np.array(part) == c for part in (labels, truth))
        columns = np.argsort([-abs(column[y].mean() - column[~y].mean()) for column in here.double().numpy().T])[:5]
        scale = StandardScaler().fit(here[:, columns].numpy())
        probe = LogisticRegression(class_weight="balanced").fit(scale.transform(here[:, columns].numpy()), y)
        score = probe.decision_function(scale.transform(there[:, columns].numpy()))
        areas.append(roc_auc_score(t, score))
        accuracies.append(balanced_accuracy_score(t, score > 0))
    assert values["eval/probing_auc_k5_raw"] == pytest.approx(np.mean(areas), abs=2e-4)
    assert values["eval/probing_accuracy_k5_raw"] == pytest.approx(np.mean(accuracies), abs=5e-3)


def test_a_rare_class_is_no_success_by_saying_no() -> None:
    """Noise, and a class of one in ten: a probe that always says "rest" is right 90 times in 100, and worth 0.5."""
    noise = torch.randn(900, 5, generator=torch.Generator().manual_seed(5))
    labels = ["a" if i % 10 == 0 else "rest" for i in range(450)]
    values = probing({"": noise[:450]}, labels, {"": noise[450:]}, labels)
    assert values["eval/probing_accuracy_k1"] == pytest.approx(0.5, abs=0.1)


def test_rows_without_a_label_count_for_nothing() -> None:
    (here, labels), (there, truth) = overlapping(240, 0), overlapping(180, 1)
    expected = probing({"": here}, labels, {"": there}, truth)
    holes = [None, float("nan"), None] * 20
    noise = torch.full((60, 30), 1e6)
    train, test = torch.cat([noise, here]), torch.cat([there, noise])
    assert probing({"": train}, [*holes, *labels], {"": test}, [*truth, *holes]) == expected
    assert probing({"": noise}, holes, {"": noise}, holes) == {}


def test_fewer_features_than_k_are_all_of_them() -> None:
    (here, labels), (there, truth) = overlapping(240, 0), overlapping(180, 1)
    values = probing({"": here[:, :3]}, labels, {"": there[:, :3]}, truth)
    assert values["eval/probing_auc_k5"] == values["eval/probing_auc_k20"]


def test_a_dead_code_reads_nothing() -> None:
    (here, labels), (there, truth) = overlapping(240, 0), overlapping(180, 1)
    values = probing({"": here * 0}, labels, {"": there * 0}, truth)
    assert set(values.values()) == {0.5}


def test_the_area_equals_the_share_of_pairs_in_order() -> None:
    """With one feature a logistic regression keeps its order, so the area is that of the feature itself."""
    generator = torch.Generator().manual_seed(3)
    labels = [int(i % 2 == 0) for i in range(80)]
    x = torch.randn(80, 1, generator=generator) + torch.tensor(labels)[:, None]
    pairs = [float(a > b) for a, p in zip(x, labels, strict=True) for b, q in zip(x, labels, strict=True) if p > q]
    value = probing({"": x}, labels, {"": x}, labels)["eval/probing_auc_k1"]
    assert value == pytest.approx(float(np.mean(pairs)))


def test_too_few_labelled_examples_give_no_number() -> None:
    x, labels = labelled(20, 0)
    assert probing({"": x}, labels, {"": x}, labels) == {}
    assert probing({"": x}, ["same"] * 20, {"": x}, ["same"] * 20) == {}


def test_principal_components_equal_the_eigenvectors_of_the_covariance() -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(4)) * torch.tensor([5.0, 4, 3, 2, 1]) + 2
    scores, others = principal_components(x, x[:10])
    covariance = torch.cov(scores.t())
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-9, rtol=0)
    expected = torch.linalg.eigvalsh(torch.cov(x.double().t())).flip(0)
    torch.testing.assert_close(covariance.diag(), expected)
    torch.testing.assert_close(others, scores[:10])


def test_lists_are_no_classes() -> None:
    x = torch.zeros(40, 2)
    with pytest.raises(ValueError, match=r"label \['a', 'b'\]: probing needs one class per text"):
        probing({"": x}, [["a", "b"]] * 40, {"": x}, [["a", "b"]] * 40)


def test_features_in_chunks_give_the_same_and_are_never_held_together() -> None:
    """4,000 rows of 20,000 latents would be 320 MB; a chunk here is 4 MB, and two chunks are all that lives."""
    (_, labels), alive = overlapping(400, 0), set()

    def codes() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        for part in range(8):
            chunk = torch.rand(50, 20_000, generator=generator)
            chunk[:, 7] += torch.tensor([float(label == "a") for label in labels[50 * part : 50 * part + 50]])
            alive.add(number := object())
            weakref.finalize(chunk, alive.discard, number)
            assert len(alive) <= 2
            yield chunk

    values = probing({"": codes}, labels, {"": codes}, labels)
    whole = torch.cat(list(itertools.islice(map(torch.clone, codes()), 8)))
    assert values == probing({"": whole}, labels, {"": whole}, labels)


def test_sums_of_65_536_latents_take_a_few_chunks_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk as `evaluate` makes it, 128 rows of 65,536, is 32 MiB. The largest tensor that is made of it is its
    float64 copy; codes of all 4,000 rows would be 1 GB."""
    largest, whole = [0], torch.where

    def watched(*arguments: Any) -> torch.Tensor:
        made = whole(*arguments)
        largest[0] = max(largest[0], made.numel() * made.element_size())
        return made

    monkeypatch.setattr(torch, "where", watched)
    rows = rows_per_chunk(65_536)
    places = np.zeros((3, 2 * rows), dtype=bool)
    places[0, ::2], places[1, 1::2] = True, True

    def codes() -> Iterator[torch.Tensor]:
        for _ in range(2):
            chunk = torch.zeros(rows, 65_536)
            chunk[::2, 3] = 1.0
            yield chunk

    gaps = class_gaps(codes, places)
    assert gaps.shape == (2, 65_536)
    assert gaps[:, 3].tolist() == [1.0, 1.0]
    assert 0 < largest[0] <= rows * 65_536 * 8 <= 64 << 20
