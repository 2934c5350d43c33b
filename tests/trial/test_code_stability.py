"""Shares of latents that stay active, by hand and against codes whose change is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saebench.trial import stability
from saebench.trial.stability import CodeStability, RetainedCounts, near_duplicates, with_noise


def test_shares_by_hand() -> None:
    """Nine active latents, of which the last is lost: 8/9; of the two largest (an eighth of nine, rounded up) one."""
    before = torch.zeros(2, 20)
    before[0, :9] = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9])
    after = before.clone()
    after[0, 8], after[0, 15] = 0.0, 1.0
    kept = RetainedCounts()
    kept.update(before, after)
    assert kept.values("x") == {"eval/x": 8 / 9, "eval/x_largest": 1 / 2}


def test_no_active_latent_and_no_example() -> None:
    kept = RetainedCounts()
    kept.update(torch.zeros(3, 4), torch.zeros(3, 4))
    kept.update(torch.zeros(0, 4), torch.zeros(0, 4))
    assert kept.values("x") == {"eval/x": 0.0, "eval/x_largest": 0.0}


def test_noise_has_a_tenth_of_the_length_in_every_direction_alike() -> None:
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, 1, 1, 1, 1, 1])
    noise = (with_noise(x) - x) / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(noise.norm(dim=1), torch.full((4000,), 0.1), rtol=1e-4, atol=0)
    assert (noise.var(0) * 6 / 0.01 - 1).abs().max() < 0.1
    assert torch.equal(with_noise(x), with_noise(x))
    assert not torch.equal(with_noise(x), with_noise(x, seed=1))


def test_near_duplicates_are_each_pair_once() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [2, 0.1], [0, 3], [-1, 0]])
    assert near_duplicates(x, chunk=2).tolist() == [[0, 2], [1, 3]]


def above_zero(x: Tensor) -> Tensor:
    return x.relu()


def test_an_identity_code_loses_what_noise_pushes_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "EXAMPLES", 500)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(2))
    kept = CodeStability(above_zero)
    for part in x.split(300):
        kept.update(part, above_zero(part))
    parts = torch.cat([with_noise(x[:300], 0), with_noise(x[300:500], 300)])
    share = float(((x[:500] > 0) & (parts > 0)).sum() / (x[:500] > 0).sum())
    values = kept.values()
    assert values["eval/code_stability"] == pytest.approx(share)
    assert values["eval/code_stability_largest"] > share
    assert set(values) == {"eval/code_stability", "eval/code_stability_largest"}


def test_duplicates_share_all_latents_and_few_pairs_say_nothing() -> None:
    x = torch.nn.functional.normalize(torch.randn(60, 64, generator=torch.Generator().manual_seed(3)), dim=1)
    for count, said in ((30, True), (10, False)):
        kept = CodeStability(above_zero, duplicates=True)
        kept.update(torch.cat([x, 2 * x[:count]]), above_zero(torch.cat([x, 2 * x[:count]])))
        assert ("eval/code_stability_duplicates" in kept.values()) == said
        assert kept.values().get("eval/code_stability_duplicates", 1.0) == 1.0
