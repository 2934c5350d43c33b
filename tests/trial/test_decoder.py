"""c_dec, and the errors of one SAE at several numbers of latents."""

from __future__ import annotations

import math

import pytest
import torch
from test_trainer import config, run, store

from saebench.trial import decoder
from saebench.trial.decoder import mean_absolute_cosine, random_floor
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training


def test_the_mean_is_over_pairs_of_different_rows() -> None:
    """At 0, 60 and 180 degrees: |cos| 0.5, 1 and 0.5; lengths do not matter."""
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 180.0]))
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [3.0], [0.2]])
    assert mean_absolute_cosine(rows) == pytest.approx(2 / 3, abs=1e-6)
    with pytest.raises(ValueError, match="1 latents fire; c_dec needs 2"):
        mean_absolute_cosine(rows[:1])


def test_random_rows_have_the_floor_in_blocks_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(600, 50, generator=torch.Generator().manual_seed(0))
    found = mean_absolute_cosine(rows)
    assert found == pytest.approx(random_floor(50), rel=0.01)
    assert random_floor(384) == pytest.approx(math.sqrt(2 / (math.pi * 384)), rel=2e-3)
    monkeypatch.setattr(decoder, "BLOCK", 7 * 600)
    assert mean_absolute_cosine(rows) == pytest.approx(found, rel=1e-6)
    monkeypatch.setattr(decoder, "ROWS", 100)
    assert mean_absolute_cosine(rows) == pytest.approx(mean_absolute_cosine(rows[::6]), rel=1e-6)


def test_the_last_evaluation_has_both_and_those_before_have_neither() -> None:
    rows = store()
    training = Training.start(*config("hierarchical_topk"), rows)
    run(training, rows)
    training.calibrate()
    final = evaluate(training.sae, rows, part="test").values
    fires = torch.cat([training.sae.encode(x) for x in rows.test()])
    assert final["test/c_dec"] == pytest.approx(mean_absolute_cosine(training.sae.W_dec[(fires != 0).any(0)].detach()))
    assert final["test/c_dec_floor"] == random_floor(12)
    assert final["test/fvu_at/4"] == pytest.approx(final["test/fvu"], rel=1e-6)
    assert final["test/fvu_at/1"] > final["test/fvu_at/2"] > final["test/fvu_at/4"]
    assert final["test/l0_at/1"] <= 1 < final["test/l0_at/2"] <= 2
    assert not any("_at/" in key or "c_dec" in key for key in evaluate(training.sae, rows).values)
