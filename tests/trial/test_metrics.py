"""The metrics against brute force, known cases, and the wrong formulas that are in use elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from saebench.trial.metrics import (
    EXTRAS,
    Evaluation,
    Extras,
    Sums,
    knn_overlap,
    knn_overlap_per_text,
    quantiles,
    similarity_rank_correlation,
)


def data(n: int = 200, d: int = 6, seed: int = 0, mean: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """(x, a fair reconstruction, sparse latents)."""
    generator = torch.Generator().manual_seed(seed)
    x = mean + torch.randn(n, d, generator=generator).double()
    x_hat = x + 0.3 * torch.randn(n, d, generator=generator).double()
    latents = torch.randn(n, 20, generator=generator).sub(1).relu()
    return x, x_hat, latents


def measured(x: Tensor, x_hat: Tensor, latents: Tensor | None = None, batch: int | None = None) -> Evaluation:
    latents = torch.ones(len(x), 1) if latents is None else latents
    sums = Sums()
    for parts in zip(*(t.split(batch or len(x)) for t in (x, x_hat, latents)), strict=True):
        sums.update(*parts)
    return sums.result()


def test_the_mean_predictor_explains_nothing() -> None:
    x, _, _ = data()
    values = measured(x, x.mean(0).expand_as(x)).values
    assert values["eval/explained_variance"] == pytest.approx(0, abs=1e-12)
    assert values["eval/fvu"] == pytest.approx(1, abs=1e-12)


def test_a_perfect_reconstruction_explains_everything() -> None:
    x, _, _ = data()
    values = measured(x, x.clone()).values
    assert values["eval/explained_variance"] == 1
    assert values["eval/mse"] == 0
    assert values["eval/cosine"] == pytest.approx(1, abs=1e-12)


def test_by_hand() -> None:
    """x = (0, 0), (2, 0), (4, 6): mean (2, 2), variance 8 + 4 + 20 = 32; errors 1, 4, 0: FVU 5 / 32, MSE 5 / 6.
    Codes fire 1, 2, 0 times; latent 1 fires on two, latent 2 never."""
    x = torch.tensor([[0.0, 0], [2, 0], [4, 6]])
    x_hat = torch.tensor([[1.0, 0], [2, 2], [4, 6]])
    latents = torch.tensor([[0.0, 0.5, 0], [-1, 2, 0], [0, 0, 0]])
    result = measured(x, x_hat, latents)
    values = result.values
    assert values["eval/fvu"] == 5 / 32
    assert values["eval/explained_variance"] == 27 / 32
    assert values["eval/mse"] == 5 / 6
    assert values["eval/cosine"] == pytest.approx((0 + 1 / math.sqrt(2) + 1) / 3)
    assert values["eval/cosine_p5"] == pytest.approx(0.1 / math.sqrt(2)), "a tenth of the way from the first of three"
    assert values["eval/l0"] == 1
    assert values["eval/dead_features"] == 1
    assert values["eval/dead_fraction"] == 1 / 3
    assert values["eval/examples"] == 3
    assert result.per_text["squared_error"].tolist() == [1, 4, 0]
    assert result.per_text["l0"].tolist() == [1, 2, 0], "a negative latent fires too"
    assert result.firing.tolist() == [1, 2, 0]
    assert (result.per_text["squared_error"].dtype, result.per_text["l0"].dtype, result.firing.dtype) == (
        torch.float32,
        torch.int32,
        torch.int64,
    )


@pytest.mark.parametrize("batch", [1, 7, 64, 199])
def test_streaming_equals_the_whole_set(batch: int) -> None:
    parts = data()
    whole, streamed = measured(*parts), measured(*parts, batch=batch)
    assert whole.values.keys() == streamed.values.keys()
    for key, value in whole.values.items():
        assert streamed.values[key] == pytest.approx(value, rel=1e-10), key
    assert torch.equal(whole.firing, streamed.firing)
    assert torch.equal(whole.per_text["l0"], streamed.per_text["l0"])
    torch.testing.assert_close(whole.per_text["squared_error"], streamed.per_text["squared_error"])


def test_it_equals_numpy_on_the_whole_set() -> None:
    x, x_hat, latents = (t.numpy() for t in data())
    values = measured(*data(), batch=33).values
    error = ((x - x_hat) ** 2).sum()
    assert values["eval/fvu"] == pytest.approx(error / ((x - x.mean(0)) ** 2).sum(), rel=1e-12)
    assert values["eval/mse"] == pytest.approx(((x - x_hat) ** 2).mean(), rel=1e-12)
    l0 = (latents != 0).sum(1)
    assert [values["eval/l0"], values["eval/l0_p5"], values["eval/l0_p95"]] == pytest.approx(
        [l0.mean(), *np.percentile(l0, [5, 95])]
    )
    assert values["eval/dead_features"] == ((latents != 0).sum(0) == 0).sum()
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, x_hat, strict=True)]
    assert values["eval/cosine"] == pytest.approx(np.mean(cosine), rel=1e-12)
    assert values["eval/cosine_p5"] == pytest.approx(np.percentile(cosine, 5), rel=1e-12)


@pytest.mark.parametrize("change", ["rotation", "shift", "scale"])
def test_fvu_does_not_depend_on_the_frame(change: str) -> None:
    x, x_hat, _ = data()
    before = measured(x, x_hat).values["eval/fvu"]
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()).Q
    move = {"rotation": lambda t: t @ turn, "shift": lambda t: t + 1e4, "scale": lambda t: 1e-3 * t}[change]
    assert measured(move(x), move(x_hat)).values["eval/fvu"] == pytest.approx(before, rel=1e-8)


def test_the_wrong_formulas_differ_here() -> None:
    """Variance about zero, means of ratios per batch and per example, and a variance that forgives a constant error:
    each is another number on data with a mean and a bias, so the tests above would notice it."""
    x, x_hat, _ = data()
    x_hat = x_hat + 0.5
    fvu = measured(x, x_hat, batch=5).values["eval/fvu"]
    error, centred = (x - x_hat).square().sum(1), (x - x.mean(0)).square().sum(1)
    about_zero = error.sum() / x.square().sum()
    per_example = (error / centred).mean()
    per_batch = torch.stack(
        [((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum() for a, b in zip(x.split(5), x_hat.split(5), strict=True)]
    ).mean()
    of_residual = (x - x_hat).var(0).sum() / x.var(0).sum()
    for wrong in (about_zero, per_example, per_batch, of_residual):
        assert abs(float(wrong) / fvu - 1) > 0.1


def test_float32_embeddings_far_from_zero_lose_nothing() -> None:
    """Sums of squares about 0 in float32 would leave no correct digit here."""
    x, x_hat, _ = data(mean=1e3)
    x, x_hat = x.float(), x_hat.float()
    exact = float((x.double() - x_hat.double()).square().sum() / (x.double() - x.double().mean(0)).square().sum())
    assert measured(x, x_hat, batch=10).values["eval/fvu"] == pytest.approx(exact, rel=1e-10)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        Sums().result()
    with pytest.raises(ValueError, match="no variance"):
        measured(torch.ones(3, 2), torch.ones(3, 2))
    for x_hat, latents in [(torch.ones(3, 3), torch.ones(3, 1)), (torch.ones(3, 2), torch.ones(2, 1))]:
        with pytest.raises(ValueError, match="expected"):
            Sums().update(torch.ones(3, 2), x_hat, latents)


# --- neighbourhoods --------------------------------------------------------------------------------------------------


def brute_overlap(x: Tensor, x_hat: Tensor, k: int) -> float:
    def near(t: Tensor, i: int) -> set[int]:
        cosine = [(float(torch.cosine_similarity(t[i], t[j], dim=0)), j) for j in range(len(t)) if j != i]
        return {j for _, j in sorted(cosine, reverse=True)[:k]}

    return sum(len(near(x, i) & near(x_hat, i)) for i in range(len(x))) / (len(x) * k)


@pytest.mark.parametrize("chunk", [1, 13, 60, 1000])
def test_knn_overlap_equals_brute_force(chunk: int) -> None:
    x, x_hat, _ = data(60, mean=0.5)
    expected = brute_overlap(x, x_hat, 10)
    assert 0.2 < expected < 0.95
    assert float(knn_overlap_per_text(x, x_hat, chunk=chunk).mean()) == pytest.approx(expected)


def test_knn_overlap_of_a_perfect_and_a_useless_reconstruction() -> None:
    x, _, _ = data(400, d=20, mean=0)
    assert knn_overlap(x, 3 * x) == 1, "lengths do not matter"
    noise = torch.randn(400, 20, generator=torch.Generator().manual_seed(5))
    assert knn_overlap(x, noise) == pytest.approx(10 / 399, abs=0.02)


def test_neighbours_of_fewer_than_twelve_examples_are_not_ten_nearest() -> None:
    x, x_hat, _ = data(11)
    with pytest.raises(ValueError, match="11 examples: 10 nearest neighbours need at least 12"):
        knn_overlap(x, x_hat)


@pytest.mark.parametrize("mean", [0, 300, 3000, 10_000])
def test_a_large_mean_in_one_dimension_costs_no_digits(mean: float) -> None:
    """The massive activations of pooled language models; in float32 the overlap was 0.003 at 1,000 and 1.000 at 10,000.
    The reference computes in float64 by numpy, one row at a time."""
    x, x_hat, _ = (t.float() for t in data(150, mean=0))
    x, x_hat = x.clone(), x_hat.clone()
    x[:, 1] += mean
    x_hat[:, 1] += mean
    assert knn_overlap(x, x_hat) == pytest.approx(brute_overlap(x.double(), x_hat.double(), 10), abs=1e-12)
    pairs = [(i, j) for i in range(150) for j in range(i + 1, 150)]
    cosines = [
        [float(torch.cosine_similarity(t[i], t[j], dim=0)) for i, j in pairs] for t in (x.double(), x_hat.double())
    ]
    assert similarity_rank_correlation(x, x_hat) == pytest.approx(spearmanr(*cosines).statistic, abs=1e-6)


def test_similarity_rank_correlation_equals_spearman_over_all_pairs() -> None:
    x, x_hat, _ = data(40, mean=0.5)
    pairs = [(i, j) for i in range(40) for j in range(i + 1, 40)]
    cosines = [[float(torch.cosine_similarity(t[i], t[j], dim=0)) for i, j in pairs] for t in (x, x_hat)]
    assert similarity_rank_correlation(x, x_hat) == pytest.approx(spearmanr(*cosines).statistic, abs=1e-9)
    assert similarity_rank_correlation(x, 2 * x) == pytest.approx(1)


def test_similarity_rank_correlation_gives_ties_the_mean_of_their_ranks() -> None:
    corners = torch.tensor([[1.0, 0], [0, 1], [1, 0], [-1, 0], [0, -1], [1, 1]]).double()
    x_hat, _, _ = data(6, d=2, mean=0)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    cosines = [[float(torch.cosine_similarity(t[i], t[j], dim=0)) for i, j in pairs] for t in (corners, x_hat)]
    assert len({round(c, 9) for c in cosines[0]}) < 6, "many ties"
    assert similarity_rank_correlation(corners, x_hat) == pytest.approx(spearmanr(*cosines).statistic)


def test_similarity_rank_correlation_of_a_collapsed_reconstruction_is_0() -> None:
    """Not NaN, which would fail a trial whose other numbers are sound."""
    x, _, _ = data(40, mean=0.5)
    assert similarity_rank_correlation(x, x.mean(0).expand_as(x)) == 0


def test_similarity_rank_correlation_draws_the_same_pairs_without_the_global_generator() -> None:
    x, x_hat, _ = data(100, mean=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, two = (similarity_rank_correlation(x, x_hat, pairs=2000) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    assert one == pytest.approx(similarity_rank_correlation(x, x_hat), abs=0.05)
    with pytest.raises(ValueError, match="at least 3"):
        similarity_rank_correlation(x[:2], x_hat[:2])


def test_extras_look_at_the_first_examples_up_to_their_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.trial.metrics.KNN_EXAMPLES", 110)
    x, x_hat, latents = data(140, mean=0.5)
    extras = Extras(tuple(EXTRAS))
    for a, b in zip(x.split(30), x_hat.split(30), strict=True):
        extras.update(a, b)
    found = measured(x, x_hat, latents)
    for name in EXTRAS:
        extras.measure(name, found)
    assert found.values["eval/knn_overlap_at_10"] == knn_overlap(x[:110], x_hat[:110])
    assert found.values["eval/knn_overlap_at_10_chance"] == 10 / 109
    assert found.values["eval/similarity_rank_correlation"] == similarity_rank_correlation(x[:110], x_hat[:110])
    assert len(found.per_text["knn_overlap_at_10"]) == 110
    with pytest.raises(ValueError, match="unknown metric 'speed'"):
        Extras(("speed",))


@pytest.mark.parametrize("name", EXTRAS)
def test_fewer_than_a_hundred_texts_give_no_number(name: str) -> None:
    x, x_hat, latents = data(99, mean=0.5)
    extras = Extras((name,))
    extras.update(x, x_hat)
    with pytest.raises(ValueError, match=f"99 texts: {name} needs at least 100"):
        extras.measure(name, measured(x, x_hat, latents))


def test_quantiles_are_torchs_and_take_more_values_than_torch_does() -> None:
    values = torch.rand(999, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert quantiles(values, 0.05, 0.95) == pytest.approx(
        torch.quantile(values, values.new_tensor([0.05, 0.95])).tolist()
    )
    assert quantiles(torch.arange(16_000_001, dtype=torch.int32), 0.05) == [800_000.0]
