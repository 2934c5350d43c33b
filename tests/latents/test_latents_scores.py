"""Every score computed a second time, text by text, and what floors are."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from latents.planted import TOPICS, texts
from sklearn.metrics import f1_score, roc_auc_score

from saebench.latents import scores
from saebench.latents.codes import Codes
from saebench.latents.floors import FLOORS, floor
from saebench.latents.ranks import auroc, auroc_of, classes_of, f1, ranked
from saebench.latents.words import count_terms

DRAW = np.random.default_rng(0)


def signed(n: int = 200, width: int = 9) -> np.ndarray:
    """Codes with ties, negative values, a dense latent and a dead one."""
    dense = np.where(DRAW.random((n, width)) < 0.3, np.round(DRAW.standard_normal((n, width)), 1), 0)
    dense[:, 0], dense[:, 1] = 0, DRAW.random(n) + 0.1
    return dense.astype(np.float32)


def test_auroc_is_that_of_a_sort_of_all_texts() -> None:
    dense, members = signed(), DRAW.random((200, 4)) < 0.2
    found = auroc(ranked(Codes.of(dense)), members)
    for latent in range(dense.shape[1]):
        for c in range(4):
            assert found[latent, c] == pytest.approx(roc_auc_score(members[:, c], dense[:, latent]))
    assert found[0].tolist() == [0.5] * 4, "a dead latent tells nothing"


def test_f1_is_that_of_firing_as_a_rule() -> None:
    dense, members = signed(), DRAW.random((200, 3)) < 0.2
    found = f1(Codes.of(dense), members)
    for latent in range(dense.shape[1]):
        for c in range(3):
            assert found[latent, c] == pytest.approx(f1_score(members[:, c], dense[:, latent] != 0))


def test_auroc_of_two_lists_counts_ties_half() -> None:
    assert auroc_of(np.array([2.0, 1.0]), np.array([0.0, 1.0])) == pytest.approx(3.5 / 4)
    assert math.isnan(auroc_of(np.array([]), np.array([1.0])))


def test_npmi_by_hand() -> None:
    """100 texts: 20 with each word; 4 meetings by chance, 1 always together, never together, and rare words."""
    expected = 20 * 20 / 100
    assert scores.npmi(np.array([4.0]), np.array([expected]), 100)[0] == 0
    assert scores.npmi(np.array([20.0]), np.array([expected]), 100)[0] == pytest.approx(
        math.log(21 / 5) / -math.log(21 / 101)
    )
    assert scores.npmi(np.array([0.0]), np.array([expected]), 100)[0] == pytest.approx(math.log(1 / 5) / math.log(101))
    assert abs(scores.npmi(np.array([0.0]), np.array([0.01]), 100)[0]) < 0.003
    assert scores.npmi(np.array([100.0]), np.array([100.0]), 100)[0] == 1


def test_coherence_agrees_with_counting_pairs_of_words() -> None:
    rows = [row["text"] for row in texts(400)]
    words = [["river", "flood", "canal"], ["river", "violin", "oven"], ["judge"], ["river", "absent"]]
    found = scores.coherence(words, count_terms(rows, vocabulary=sorted({w for some in words for w in some})))
    sets = [set(text.split()) for text in rows]
    for some, value in zip(words, found, strict=True):
        pairs = [
            (sum(a in s and b in s for s in sets), sum(a in s for s in sets) * sum(b in s for s in sets) / 400)
            for a, b in combinations(some, 2)
        ]
        expected = [math.log((n + 1) / (e + 1)) / -math.log((n + 1) / 401) for n, e in pairs]
        assert value == pytest.approx(np.mean(expected)) if expected else math.isnan(value)
    assert found[0] > 0.3 > 0 > found[1]


def test_example_auroc_agrees_with_a_loop_over_texts() -> None:
    dense, rows = signed(120, 5), DRAW.standard_normal((120, 6)).astype(np.float32)
    rows[dense[:, 3] != 0, 0] += 4
    found = scores.example_auroc(Codes.of(dense), range(5), rows)
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(float)
    for latent in range(2, 5):
        firing = np.flatnonzero(dense[:, latent])
        score = np.array([np.mean([unit[t] @ unit[f] for f in firing if f != t]) for t in range(120)])
        assert found.overall[latent] == pytest.approx(roc_auc_score(dense[:, latent] != 0, score), abs=1e-6)
        order = firing[np.lexsort((firing, -np.abs(dense[firing, latent])))]
        silent = np.flatnonzero(dense[:, latent] == 0)
        for d, group in enumerate(np.array_split(order, 10)):
            both, truth = np.concatenate([group, silent]), np.repeat([1, 0], [len(group), len(silent)])
            assert found.deciles[latent, d] == pytest.approx(roc_auc_score(truth, score[both]), abs=1e-6)
    assert np.isnan(found.overall[:2]).all(), "one never fires, one always does"
    assert found.overall[3] > 0.9


def test_label_match_chooses_on_training_rows_and_measures_on_others() -> None:
    train, test = signed(300, 7), signed(300, 7)
    here, there = DRAW.integers(0, 3, 300), DRAW.integers(0, 3, 300)
    train[:, 5] = np.where(here == 1, 2 + DRAW.random(300), 0)
    test[:, 5] = np.where((there == 1) & (DRAW.random(300) < 0.5), 1.5, 0)
    classes = classes_of(here.tolist(), there.tolist())
    found = scores.label_match(Codes.of(train), Codes.of(test), classes)
    assert sorted(m.label for m in found.matches) == ["0", "1", "2"]
    for match in found.matches:
        c = int(match.label)
        best = int(np.argmax([roc_auc_score(here == c, train[:, j]) for j in range(7)]))
        by_f1 = int(np.argmax([f1_score(here == c, train[:, j] != 0) for j in range(7)]))
        assert (match.latent, match.f1_latent) == (best, by_f1)
        assert match.auroc == pytest.approx(roc_auc_score(there == c, test[:, best]))
        assert match.f1 == pytest.approx(f1_score(there == c, test[:, by_f1] != 0))
        order = np.lexsort((np.arange(300), -np.abs(test[:, best])))
        firing = order[test[order, best] != 0][:10]
        assert match.purity == pytest.approx(np.mean(there[firing] == c))
    one = next(m for m in found.matches if m.label == "1")
    assert (one.latent, one.purity) == (5, 1.0)
    assert found.values()["label_auroc"] == pytest.approx(np.mean([m.auroc for m in found.matches]))


def test_labels_that_are_missing_rare_or_alone_are_left_out() -> None:
    some = ["a"] * 30 + ["b"] * 30 + ["rare"] * 3 + [None] * 5 + [float("nan")] * 2
    classes = classes_of(some, some[:60])
    assert sorted(classes.names) == ["a", "b"]
    assert [len(rows) for rows in classes.rows] == [63, 60]
    assert classes.left_out == 1
    assert classes_of(["a"] * 40).names == [], "one class has nothing beside it"
    assert classes_of([None] * 40).names == []
    assert classes_of([]).names == []


@pytest.mark.parametrize("name", list(FLOORS))
def test_a_floor_fires_at_the_rates_it_was_given(name: str) -> None:
    rows = (DRAW.standard_normal((500, 6)) * [4, 3, 2, 1, 1, 1] + 2).astype(np.float32)
    rates = np.array([0.002, 0.01, 0.1, 0.3, 0.5])
    made = floor(name, rows, rates)
    density = made.codes(rows).matrix().astype(bool).sum(axis=0) / 500
    assert density == pytest.approx(rates[: len(density)], abs=1e-9)
    assert np.linalg.norm(made.directions, axis=1) == pytest.approx(1, abs=1e-5)
    projected = (rows - rows.mean(0)) @ made.directions.T - made.thresholds
    assert made.codes(rows).dense() == pytest.approx(np.maximum(projected, 0), abs=1e-5)


def test_coordinates_and_components_come_with_both_signs_and_are_no_more_than_there_are() -> None:
    rows = DRAW.standard_normal((100, 3)).astype(np.float32)
    made = floor("raw", rows, np.linspace(0.1, 0.2, 50))
    assert made.directions.tolist() == [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    assert len(floor("random", rows, np.linspace(0.1, 0.2, 50)).directions) == 50


def test_words_of_topics_are_coherent_and_mixed_ones_are_not() -> None:
    rows = [row["text"] for row in texts(600)]
    mixed = [[words[i] for words in TOPICS.values()] for i in range(4)]
    vocabulary = sorted({word for words in TOPICS.values() for word in words})
    found = scores.coherence([*TOPICS.values(), *mixed], count_terms(rows, vocabulary=vocabulary))
    assert found[:8].min() > 0.3
    assert found[8:].max() < 0
