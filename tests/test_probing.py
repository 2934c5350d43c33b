"""k-sparse probing against brute force and on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saebench.probing import KS, principal_components, probing, strongest


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
    assert list(strongest(features, positive, 4)) == sorted(range(30), key=lambda c: -gaps[c])[:4]


def test_one_feature_that_tells_is_found_and_noise_stays_at_chance() -> None:
    (here, labels), (there, test_labels) = labelled(300, 0), labelled(600, 1)
    only_a = [label if label == "a" else "rest" for label in labels]
    test_a = [label if label == "a" else "rest" for label in test_labels]
    noise = torch.randn(900, 30, generator=torch.Generator().manual_seed(2))
    values = probing({"": here, "_raw": noise[:300]}, only_a, {"": there, "_raw": noise[300:]}, test_a)
    assert values.keys() == {f"eval/probing_auc_k{k}{s}" for k in KS for s in ("", "_raw")}
    assert values["eval/probing_auc_k1"] > 0.999
    assert values["eval/probing_auc_k1_raw"] == pytest.approx(0.5, abs=0.1)


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
