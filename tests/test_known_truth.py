"""The experiment on known truth, small: what it generates, its arithmetic, and the order of two arms that is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saebench.config import SAE_CONFIGS
from saebench.trial.trainer import Training, train

FOLDER = Path(__file__).parent.parent / "experiments" / "known_truth"
sys.path.insert(0, str(FOLDER))
try:
    import generate
    import measure
    import study
finally:
    sys.path.remove(str(FOLDER))

SMALL: dict[str, Any] = {
    "features": 48, "d_in": 24, "firing": {"max": 0.3, "min": 5e-4, "exponent": 0.4},
    "hierarchy": {"roots": 2, "branching": 2, "depth": 2}, "correlation": {"rank": 5, "scale": 0.1},
    "magnitude": {"first": 5.0, "last": 4.0, "std_mean": 0.5, "std_std": 0.5}, "orthogonalise": 50, "bias": 0.5,
    "dense": {"rank": 2, "share": 0.05}, "classes": 4, "train_rows": 3000, "truth_rows": 1000, "seed": 0,
}  # fmt: skip


def test_siblings_exclude_each_other_children_need_their_parent_and_rows_are_what_the_codes_say() -> None:
    world, rng = generate.Truth.of(SMALL), np.random.default_rng(1)
    codes = world.codes(2000, rng)
    fires = codes > 0
    assert generate.tree(8, roots=1, branching=2, depth=2).tolist() == [-1, 0, 0, 1, 1, 2, 2, -1]
    for place in np.unique(world.parent[world.parent >= 0]):
        children = fires[:, world.parent == place]
        assert (children.sum(1) <= 1).all()
        assert not (children.any(1) & ~fires[:, place]).any()
    assert fires[:, 0].mean() == pytest.approx(0.3, abs=0.05)
    assert np.linalg.norm(world.directions, axis=1) == pytest.approx(1)
    left = world.embeddings(codes, rng) - codes @ world.directions - world.bias
    assert np.linalg.matrix_rank(left, tol=1e-3) == 2, "the dense part"


def test_the_truth_is_matched_one_to_one_and_counts_firing() -> None:
    """Latent 0 is feature 0 and fires with it on 2 of its 3 texts: F1 2 * 2 / (3 + 2); latent 1 lies between features 1
    and 2 (cosines 0.707), fires on text 3 alone, where feature 1 does: F1 1; feature 2 has none left."""
    directions, s = np.eye(3), 0.5**0.5
    present = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0]], bool)
    fires = np.array([[1, 0], [1, 0], [0, 0], [0, 1]], bool)
    found = measure.truth_of(np.array([[1, 0, 0], [0, s, s]]), fires, directions, present, np.full(3, -1))
    assert found["f1"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert found["recovered"] == pytest.approx((1 + s + s) / 3)
    assert (found["mixed"], found["split"]) == (0.5, 0)


def test_a_trained_decoder_recovers_more_than_one_frozen_at_random(tmp_path: Path) -> None:
    generate.write(SMALL, tmp_path)
    world, x = dict(np.load(tmp_path / "truth.npz")), torch.from_numpy(np.load(tmp_path / "embeddings.npy"))
    found = {}
    for control in (None, "frozen_decoder"):
        rows = study.Rows(x, [], 0)
        sae = SAE_CONFIGS["batchtopk"].model_validate({"dict_size": 48, "k": 4, "control": control})
        training = Training.start(sae, study.BUDGET.model_copy(update={"samples": 15_360}), 0, rows)
        for _ in train(training, rows):
            pass
        training.calibrate()
        found[control] = measure.sae_scores(training.sae, world)[0]
    assert found[None]["f1"] > found["frozen_decoder"]["f1"] + 0.1
    assert found[None]["recovered"] > found["frozen_decoder"]["recovered"] + 0.1


def test_a_rank_correlation_takes_arms_and_seeds_and_its_sign_is_that_more_is_better() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i, arm in enumerate("abcdef"):
        truth = {"f1": i + rng.normal(0, 0.01), "test/fvu": -i}
        rows += [{"arm": arm, "level": 4, "width": 8, "seed": seed} | truth for seed in (0, 1)]
    frame = measure.pd.DataFrame(rows).reindex(columns=[*rows[0], *(m for m in measure.METRICS if m not in rows[0])])
    (found,) = measure.correlations(frame, "f1", rng, controls=True).query("metric == 'test/fvu'").to_dict("records")
    assert found["correlation"] == pytest.approx(1)
    assert found["low"] > 0.8
