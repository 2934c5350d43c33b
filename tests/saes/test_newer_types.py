"""abs_topk, hierarchical_topk, OrtSAE's penalty and a k that falls: what each adds, on small numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import formulas
import pytest
import torch
from sae_examples import example
from torch import Tensor

from saebench.compat.plain import LayoutError, from_plain, plain
from saebench.config import SAE_CONFIGS
from saebench.saes import SAE_TYPES, Dead, Moment
from saebench.saes.ortho import Orthogonality
from saebench.trial import levels

AXES = torch.eye(3)


def on_axes(kind: str, **fields: Any) -> Any:
    """Three latents, each an axis: encoder and decoder are the identity, the variance is 1."""
    sae = SAE_TYPES[kind](SAE_CONFIGS[kind].model_validate({"dict_size": 3, "preprocess": "none", **fields}), 3)
    with torch.no_grad():
        sae.W_enc.copy_(AXES)
        sae.W_dec.copy_(AXES)
    return sae


def test_abs_topk_keeps_the_largest_magnitudes_with_their_signs() -> None:
    """Of (1, -3, 2) the two largest are -3 and 2; what is left is 1, its square 1. Of equal ones the lower latent."""
    sae = on_axes("abs_topk", k=2)
    x = torch.tensor([[1.0, -3.0, 2.0], [2.0, -2.0, 2.0]])
    assert sae.encode(x).tolist() == [[0, -3, 2], [2, -2, 0]]
    loss = sae.loss(x, Moment())
    assert float(loss.l0) == 2
    assert float(loss.fvu) == (1 + 4) / 2


def test_abs_topk_revives_by_magnitude_too() -> None:
    """Two dead latents, k_aux 1: the residual (0, -1, 3) less the mean of both rows is rebuilt by the larger of the
    dead pre-activations, -5 of latent 1, and not by the only positive one."""
    sae = on_axes("abs_topk", k=1, k_aux=1, aux_coeff=1.0)
    x = torch.tensor([[9.0, -5.0, 3.0], [9.0, 5.0, 3.0]])
    dead = Dead(torch.tensor([1, 2]), torch.tensor([True, True]))
    assert sae.loss(x, Moment()).fvu == 25 + 9
    # residuals (0, -5, 3) and (0, 5, 3); rebuilt (0, -5, 0) and (0, 5, 0); variance 2 * 25
    assert float(sae.loss(x, Moment(dead=dead)).parts["train/aux_loss"]) == pytest.approx(2 * 9 / 50)


def test_hierarchical_topk_is_the_mean_of_the_errors_of_every_number_of_latents() -> None:
    """(3, 1, 2), k 3: without latent 0 nothing is left but 1 + 4 = 5, then 1, then 0: mean 2. The gradient to a value
    that is in j of the three sums is j / 3 of the error's; here all errors along a chosen axis are 0, so that pulling
    the decoder of latent 1 (value 1, in the last sum alone) by e along axis 0 costs e^2 / 3."""
    sae = on_axes("hierarchical_topk", k=3)
    x = torch.tensor([[3.0, 1.0, 2.0]])
    loss = sae.loss(x, Moment())
    assert loss.total.item() == pytest.approx(2.0)
    assert float(loss.fvu) == pytest.approx(0.0)
    with torch.no_grad():
        sae.W_dec[1, 0] = 0.3
    assert sae.loss(x, Moment()).total.item() == pytest.approx(2.0 + 0.09 / 3)
    assert sae.config.levels == (1, 2, 3)
    assert example("hierarchical_topk", dict_size=64, k=32).levels == (1, 2, 4, 8, 16, 32)


def test_a_row_with_fewer_positive_values_than_k_has_its_last_error_repeated() -> None:
    sae = on_axes("hierarchical_topk", k=3)
    assert sae.loss(torch.tensor([[3.0, -1.0, 2.0]]), Moment()).total.item() == pytest.approx((5 + 1 + 1) / 3)


def test_hierarchical_topk_used_at_a_smaller_number_is_topk_of_that_number() -> None:
    sae = formulas.small("hierarchical_topk", k=6)
    pre = sae.pre_activations(sae.preprocessing(formulas.cloud(30))[0])
    topk = formulas.small("topk", k=2)
    topk.load_state_dict(sae.state_dict())
    assert torch.equal(sae.activate_at(pre, 2), topk.activate(pre))  # type: ignore[operator]
    assert torch.equal(sae.activate_at(pre, 6), sae.activate(pre))  # type: ignore[operator]


def rows(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_the_penalty_is_the_mean_squared_cosine_with_the_nearest_row() -> None:
    """At 0, 60 and 180 degrees: 0 and 60 are each other's nearest (0.5), that of 180 is 60 (-0.5): all squares 1/4. By
    |cos|, 0 and 180 are nearest (1), 60 has 0.5: (1 + 1 + 1/4) / 3."""
    three = rows(0, 60, 180)
    assert float(Orthogonality(3, 8192, signed=False).penalty(three)) == pytest.approx(0.25, abs=1e-6)
    assert float(Orthogonality(3, 8192, signed=True).penalty(three)) == pytest.approx(2.25 / 3, abs=1e-6)


def test_the_penalty_turns_the_nearest_rows_apart() -> None:
    pair = rows(0, 30).requires_grad_()
    Orthogonality(2, 8192, signed=False).penalty(pair).backward()  # type: ignore[no-untyped-call]
    assert pair.grad is not None
    turned = torch.nn.functional.normalize(pair.detach() - 0.1 * pair.grad, dim=1)
    assert float(turned[0] @ turned[1]) < float((pair[0] @ pair[1]).detach()) - 0.01


def test_chunks_cover_all_latents_and_are_drawn_anew() -> None:
    """In a chunk of the others the nearest is the nearest of that chunk; over the steps everybody meets."""
    ortho, W = Orthogonality(20, 8, signed=False), formulas.unit_cloud(20)
    assert ortho.chunks == 3
    seen: list[list[set[int]]] = []
    for _ in range(6):
        chunks = [set(part.tolist()) for part in torch.tensor_split(ortho.order, 3)]
        assert set.union(*chunks) == set(range(20))
        nearest = ortho.nearest(W).tolist()
        cosine = (W @ W.t()).fill_diagonal_(-2)
        for chunk in chunks:
            for i in chunk:
                assert nearest[i] == max(chunk - {i}, key=lambda j: float(cosine[i, j]))
        seen.append(chunks)
        ortho.penalty(W)
    assert all(one != other for one, other in pairwise(seen))


def test_k_falls_evenly_and_then_stays() -> None:
    """From 20 to 4 over half of the run: 20 at its start, 12 a quarter through, 4 from the middle on, where the step is
    TopK's."""
    falling, plain_topk, x = formulas.small("topk", k=4, k_start=20), formulas.small("topk", k=4), formulas.cloud(32)
    plain_topk.load_state_dict(falling.state_dict())
    with torch.no_grad():
        falling.b_enc.add_(5)  # all positive
        plain_topk.b_enc.add_(5)
    assert [float(falling.loss(x, Moment(progress)).l0) for progress in (0.0, 0.25, 0.5, 1.0)] == [20, 12, 4, 4]
    ours, theirs = falling.loss(x, Moment(0.7)), plain_topk.loss(x, Moment())
    ours.total.backward()  # type: ignore[no-untyped-call]
    theirs.total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.total, theirs.total)
    for (name, a), b in zip(falling.named_parameters(), plain_topk.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_a_batch_shares_the_falling_k(kind: str) -> None:
    sae, x = formulas.small(kind, k=2.5, k_start=10), formulas.cloud(32)
    with torch.no_grad():
        sae.b_enc.add_(5)
    assert [float(sae.loss(x, Moment(p)).l0) for p in (0.0, 0.25, 0.5)] == [10, 6.25, 2.5]


def test_a_signed_type_is_refused_by_a_layout_of_codes_above_zero() -> None:
    with pytest.raises(LayoutError, match="type abs_topk: its codes can be negative, and this layout"):
        plain(formulas.small("abs_topk"))


def test_hierarchical_topk_is_exported_as_the_topk_that_it_encodes_as() -> None:
    sae, x = formulas.small("hierarchical_topk", k=5), formulas.cloud(40, seed=3)
    there = from_plain(plain(sae))
    assert there.config.type == "topk"
    torch.testing.assert_close(there.encode(x), sae.encode(x), rtol=1e-4, atol=1e-5)


def test_an_error_at_a_level_is_that_of_the_code_cut_there() -> None:
    """The arithmetic once more, with TopK of the same weights."""
    sae, x = formulas.small("hierarchical_topk", k=4, preprocess="unit"), formulas.cloud(50, seed=5)
    topk = formulas.small("topk", k=2, preprocess="unit")
    topk.load_state_dict(sae.state_dict())
    sums = levels.AtLevels(sae)
    for part in torch.split(x, 20):
        sums.update(part, sae.encode(part))
    assert sums.error[2] == pytest.approx((x - topk(x)).double().square().sum().item(), rel=1e-5)
    assert levels.largest(torch.tensor([[1.0, -3.0, 2.0]]), 1).tolist() == [[0, -3, 0]]
    assert levels.largest(torch.tensor([[1.0]]), 2).tolist() == [[1]]
