"""TopK, BatchTopK and Matryoshka on numbers one can follow by hand, and AuxK."""

from __future__ import annotations

import time
from typing import Any

import formulas
import pytest
import torch
from sae_examples import K_SPARSE, example
from torch import Tensor

from saebench.config import nested_widths
from saebench.saes import SAE_TYPES, Dead, Moment, make_sae, sparse
from saebench.saes.ksparse import default_k_aux


def identity(kind: str, d: int, **fields: Any) -> Any:
    """pre = x, z_hat = latents, variance 1."""
    config = example(kind, dict_size=d, preprocess="none", **fields)
    sae = SAE_TYPES[kind](config, d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def alive(*index: int) -> Dead:
    return Dead(torch.tensor(index), torch.ones(len(index), dtype=torch.bool))


ROWS = [[1.0, -2.0, 3.0, -4.0], [-5.0, 6.0, -7.0, 8.0]]


@pytest.mark.parametrize(
    ("k", "rows", "expected"),
    [
        (2, ROWS, [[1.0, 0, 3, 0], [0, 6, 0, 8]]),
        (1.5, ROWS, [[0.0, 0, 3, 0], [0, 6, 0, 8]]),  # 3 of 8: the batch drops its smallest
        (2, [[5.0, 6, 7, 8], [1, 2, 3, 4]], [[5.0, 6, 7, 8], [0, 0, 0, 0]]),  # one row may take all
        (2, [[1.0, -1, -1, -1], [-1, -1, -1, 2]], [[1.0, 0, 0, 0], [0, 0, 0, 2]]),  # fewer positive than k * B
        (4, [[-1.0, -2, -3, -4]], [[0.0, 0, 0, 0]]),
        (0.4, [[1.0, 2, 4, 3]], [[0.0, 0, 4, 0]]),  # a run's last batch may be one row: one latent, not none
    ],
)
def test_batchtopk_keeps_k_per_example_on_average(k: float, rows: list[Any], expected: list[Any]) -> None:
    codes = identity("batchtopk", 4, k=k).select(torch.tensor(rows))
    assert codes.dense().tolist() == expected


@pytest.mark.parametrize(
    ("k", "rows", "expected"),
    [
        (2, ROWS, [[1.0, 0, 3, 0], [0, 6, 0, 8]]),
        (1, [[5.0, 6, 7, 8], [1, 2, 3, 4]], [[0.0, 0, 0, 8], [0, 0, 0, 4]]),
        (3, [[1.0, -1, -1, -1]], [[1.0, 0, 0, 0]]),
    ],
)
def test_topk_keeps_k_in_every_example(k: int, rows: list[Any], expected: list[Any]) -> None:
    sae = identity("topk", 4, k=k)
    assert sae.select(torch.tensor(rows)).dense().tolist() == expected
    assert sae.encode(torch.tensor(rows)).tolist() == expected


def test_the_gradient_flows_through_the_kept_latents_alone() -> None:
    """Of [1, 2, 3] with k = 2 the last two pass: d sum(latents) / d pre = [0, 1, 1]."""
    sae = identity("batchtopk", 3, k=2)
    sae.select(torch.tensor([[1.0, 2.0, 3.0]])).values.sum().backward()
    assert sae.b_enc.grad.tolist() == [0, 1, 1]


def test_topk_loss_by_hand() -> None:
    """x = (3, 1), k = 1: code (3, 0), error (0, 1), FVU 1 / variance 4 = 0.25.
    d FVU / d x_hat = 2 (x_hat - x) / 4 = (0, -0.5): W_dec row 0 gets 3 * (0, -0.5), b_enc gets (0 * ..., nothing)."""
    sae = identity("topk", 2, k=1)
    sae.variance.fill_(4)
    result = sae.loss(torch.tensor([[3.0, 1.0]]), Moment())
    result.total.backward()
    assert (result.total.item(), result.fvu.item(), result.l0.item()) == (0.25, 0.25, 1)
    assert result.fired.tolist() == [True, False]
    assert sae.W_dec.grad.tolist() == [[0.0, -1.5], [0.0, 0.0]]
    assert sae.b_enc.grad.tolist() == [0.0, 0.0]
    assert sae.b_dec.grad.tolist() == [0.0, -0.5]


def test_calibration_gives_exactly_k_on_the_rows_and_the_threshold_is_that_of_a_full_sort() -> None:
    sae, rows = formulas.small("batchtopk", k=3.5), formulas.cloud(101)
    sae.calibrate(rows)  # type: ignore[operator]
    latents = sae.encode(rows).detach()
    assert int((latents > 0).sum()) == round(3.5 * 101)
    z, _ = sae.preprocessing(rows)
    ordered = sae.pre_activations(z).detach().flatten().sort(descending=True).values
    count = round(3.5 * 101)
    assert ordered[count] <= float(sae.threshold) < ordered[count - 1]  # type: ignore[arg-type]


def test_calibration_is_idempotent_and_forgets_earlier_rows() -> None:
    sae = formulas.small("batchtopk")
    thresholds = []
    for seed in (4, 4, 5, 4):
        sae.calibrate(formulas.cloud(64, seed=seed))  # type: ignore[operator]
        thresholds.append(float(sae.threshold))  # type: ignore[arg-type]
    assert thresholds[0] == thresholds[1] == thresholds[3] != thresholds[2]


def test_training_leaves_the_threshold_alone() -> None:
    sae = formulas.small("batchtopk")
    sae.calibrate(formulas.cloud(64))  # type: ignore[operator]
    before = float(sae.threshold)  # type: ignore[arg-type]
    sae.loss(formulas.cloud(32), Moment()).total.backward()
    sae.encode(formulas.cloud(32, seed=8))
    assert float(sae.threshold) == before  # type: ignore[arg-type]


# --- AuxK ------------------------------------------------------------------------------------------------------------


def aux(sae: Any, x: Tensor, dead: Dead, coeff: float = 1.0) -> Tensor:
    result = sae.loss(x, Moment(dead=dead))
    return (result.total - sae.loss(x, Moment()).total) / coeff


@pytest.mark.parametrize("kind", K_SPARSE)
def test_auxk_adds_nothing_and_no_gradient_where_none_is_dead(kind: str) -> None:
    sae, x = formulas.small(kind), formulas.cloud(16)
    none, all_revived = alive(), Dead(torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool))
    plain = sae.loss(x, Moment()).total
    plain.backward()
    gradients = [p.grad.clone() for p in sae.parameters() if p.grad is not None]
    for dead in (alive() if none is None else none, all_revived):
        sae.zero_grad()
        result = sae.loss(x, Moment(dead=dead))
        result.total.backward()
        assert torch.equal(result.total, plain)
        for ours, expected in zip((p.grad for p in sae.parameters()), gradients, strict=True):
            assert ours is not None
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_auxk_ignores_entries_that_fire_again() -> None:
    """A list drawn up a few steps ago may be longer than what is still dead."""
    sae, x = formulas.small("topk"), formulas.cloud(16)
    padded = Dead(torch.tensor([3, 5, 9]), torch.tensor([True, False, True]))
    torch.testing.assert_close(aux(sae, x, padded), aux(sae, x, alive(3, 9)))


def test_auxk_target_has_no_bias() -> None:
    """With b_dec added to what the dead latents rebuild, the aux loss of a perfect rebuild is not 0.
    About b_dec = (10, 20) the examples are (3, 1) and (4, 2): TopK keeps latent 0, the residuals (0, 1) and (0, 2) are
    what latent 3, a dead twin of latent 1, rebuilds exactly."""
    sae = SAE_TYPES["topk"](example("topk", dict_size=4, k=1, k_aux=1, preprocess="none"), 2)
    with torch.no_grad():
        sae.b_dec.copy_(torch.tensor([10.0, 20.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
        sae.W_enc.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1]]))
    x = torch.tensor([[13.0, 21.0], [14.0, 22.0]])
    result = sae.loss(x, Moment(dead=alive(3)))
    assert result.parts["train/aux_loss"].item() == pytest.approx(0, abs=1e-6)


def test_the_residual_is_a_constant_to_auxk() -> None:
    """The aux term must not pull on the latents that are alive, nor on b_dec through the residual."""
    sae, x = formulas.small("topk"), formulas.cloud(16)
    dead = alive(2, 4, 6)
    aux(sae, x, dead).backward()
    for name in ("W_dec", "b_enc"):
        gradient = getattr(sae, name).grad
        living = [i for i in range(24) if i not in (2, 4, 6)]
        assert gradient[living].abs().max() < 1e-6 * gradient.abs().max(), name


def test_auxk_reaches_the_encoder_of_latents_that_are_negative_everywhere() -> None:
    """relu before the choice, or a backward pass that forgets it, leaves such a latent dead for good."""
    sae, x = formulas.small("topk", start="data"), formulas.cloud(64)
    with torch.no_grad():
        sae.b_enc[:12] -= 50
    assert not (sae.encode(x)[:, :12] > 0).any()
    aux(sae, x, alive(*range(12))).backward()
    for name in ("W_enc", "b_enc", "W_dec"):
        gradient = getattr(sae, name).grad
        dead_part = gradient[:, :12] if name == "W_enc" else gradient[:12]
        assert (dead_part != 0).any(-1).all() if name != "b_enc" else (dead_part != 0).all(), name
    assert (sae.b_enc.grad[:12] < 0).all(), "a step downhill must raise the pre-activations"  # type: ignore[index]


def test_auxk_is_normalised_by_the_variance_of_the_residual() -> None:
    """Ten times smaller embeddings leave a residual a hundred times smaller in square, and the same aux loss."""
    small, x = formulas.small("topk", preprocess="none", stir=False), formulas.cloud(32)
    with torch.no_grad():
        small.b_enc.zero_()
    one = small.loss(x, Moment(dead=alive(1, 2, 3))).parts["train/aux_loss"]
    with torch.no_grad():
        small.b_dec.mul_(0.1)
    tenth = small.loss(0.1 * x, Moment(dead=alive(1, 2, 3))).parts["train/aux_loss"]
    torch.testing.assert_close(one, tenth, rtol=1e-4, atol=0)


def test_auxk_of_a_batch_of_one_is_zero() -> None:
    """Its residual has no variance to divide by."""
    sae, x = formulas.small("topk"), formulas.cloud(1, seed=9)
    assert sae.loss(x, Moment(dead=alive(1, 2))).parts["train/aux_loss"] == 0


def test_aux_coeff_zero_turns_auxk_off() -> None:
    sae, x = formulas.small("topk", aux_coeff=0.0), formulas.cloud(16)
    assert "train/aux_loss" not in sae.loss(x, Moment(dead=alive(1))).parts


@pytest.mark.parametrize(("d", "k"), [(384, 256), (768, 512), (1024, 512), (2, 1), (1, 1), (6, 4)])
def test_k_aux_is_the_power_of_two_nearest_half_the_width(d: int, k: int) -> None:
    assert default_k_aux(d) == k


# --- Matryoshka ------------------------------------------------------------------------------------------------------


def test_matryoshka_loss_is_the_plain_mean_over_prefixes() -> None:
    """x = (1, 2, 3, 4) in a dictionary of unit vectors, groups of 1, 1, 2, all kept: the prefixes leave
    4 + 9 + 16 = 29, 25 and 0; the mean is 18."""
    sae = identity("matryoshka", 4, k=4, groups=(0.25, 0.25, 0.5))
    result = sae.loss(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), Moment())
    assert result.total.item() == 18
    assert result.fvu.item() == 0


def test_matryoshka_of_many_latents_equals_the_dense_float64_formula() -> None:
    """All levels in one pass over the pairs: the loss and every gradient; some rows have no pair in some level."""
    sae, x = formulas.small("matryoshka", dict_size=640), formulas.cloud(48, seed=7)
    codes = sae.select(sae.training_input(x) - sae.b_dec)  # type: ignore[operator]
    assert not codes.crowded, "not the path this is about"
    assert (codes.cut(sae.level_starts).offsets.diff() == 0).any()
    loss = sae.loss(x, Moment(coeff=0.1)).total
    loss.backward()
    params = formulas.double(sae)
    expected = formulas.loss(sae, params, x)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in sae.named_parameters():
        reference, ours = params[name].grad, parameter.grad
        assert reference is not None
        assert ours is not None
        torch.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=2e-5 * float(reference.abs().max()))


def test_cut_codes_are_the_columns_of_each_level() -> None:
    codes = sparse.encode_batchtopk(formulas.cloud(20), formulas.cloud(40, seed=3).t() - 3, torch.zeros(40), 5)
    cut = codes.cut(torch.tensor([0, 3, 10])).dense().view(20, 3, 40)
    for level, (low, high) in enumerate(((0, 3), (3, 10), (10, 40))):
        assert torch.equal(cut[:, level, low:high], codes.dense()[:, low:high])
    assert torch.equal(cut.sum(1), codes.dense())


def test_matryoshka_with_one_level_is_batchtopk() -> None:
    x = formulas.cloud(32)
    one, other = formulas.small("matryoshka", groups=(1.0,)), formulas.small("batchtopk")
    other.load_state_dict(one.state_dict())
    dead = Moment(dead=alive(3, 4))
    torch.testing.assert_close(one.loss(x, dead).total, other.loss(x, dead).total)


def test_levels_grow_strictly_to_dict_size() -> None:
    assert nested_widths((1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2), 32) == (2, 4, 8, 16, 32)
    assert nested_widths((1 / 3, 1 / 3, 1 / 3), 10) == (3, 7, 10)
    with pytest.raises(ValueError, match="empty"):
        nested_widths((1 / 16, 15 / 16), 4)


def test_many_levels_take_linear_time() -> None:
    """A file's `groups` may be long: adding them up again for each of 100,000 would take a minute."""
    start = time.process_time()
    with pytest.raises(ValueError, match="empty"):
        nested_widths((1e-5,) * 100_000, 64)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(("dict_size", "k"), [(24, 3), (97, 10), (512, 5), (1024, 16)])
def test_equal_values_are_chosen_at_inference_as_in_training(dict_size: int, k: int) -> None:
    """The lower latent wins, in a batch or alone."""
    sae = make_sae(example("topk", dict_size=dict_size, k=k), 8, formulas.cloud(64, 8), 1)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc[:, :1].expand(8, dict_size))
        sae.W_enc[:, ::2] *= -1
    x = formulas.cloud(20, 8, seed=4)
    chosen = sae.loss(x, Moment()).codes.dense() != 0
    assert torch.equal(sae.encode(x) != 0, chosen)
    assert torch.equal(torch.cat([sae.encode(row[None]) for row in x]) != 0, chosen)
    assert chosen.sum(1).max() == k


def test_topk_at_inference_has_a_gradient_and_takes_any_floating_type() -> None:
    sae = formulas.small("topk")
    x = formulas.cloud(6).requires_grad_()
    sae.encode(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert torch.equal(sae.double().encode(x.double()) != 0, sae.float().encode(x) != 0)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_multi_topk_adds_the_loss_at_more_latents_on_a_share_of_the_batch(kind: str) -> None:
    """k 1, the second loss at 2, on the first of two rows. Row (1, 2, 3, 4): 4 alone leaves 1 + 4 + 9, 4 and 3 leave
    1 + 4; row (5, 0, 0, 0) leaves nothing. FVU 14 / 2, second loss 5 / 1, at weight 1/2."""
    fields = {"k": 1, "aux_coeff": 0.0, "multi_coeff": 0.5, "multi_factor": 2.0, "multi_share": 0.5}
    sae = identity(kind, 4, **fields)
    result = sae.loss(torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0]]), Moment())
    assert float(result.fvu) == pytest.approx(7)
    assert float(result.parts["train/multi_loss"]) == pytest.approx(5)
    assert float(result.total.detach()) == pytest.approx(9.5)
    result.total.backward()
    # dL/dvalue of latent 2 of row 0 = -2 * 3 * 0 (exact: the value is x); its row of W_dec gets -2 v (x - x_hat) / 2
    assert sae.W_dec.grad[2].tolist() == pytest.approx([-3 * 1.0, -3 * 2.0, 0, 0])
