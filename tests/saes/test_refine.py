"""Refined values: the same latents, closer to the best values for them."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch
from scipy.optimize import nnls

from saebench.compat.plain import LayoutError, plain
from saebench.saes import Moment
from saebench.saes.refit import refit

KINDS = ("topk", "batchtopk", "jumprelu")


def pair(kind: str, sweeps: int, **fields: Any) -> tuple[Any, Any]:
    """The same SAE without and with sweeps, calibrated."""
    found = [formulas.small(kind, refine=n, **fields) for n in (0, sweeps)]
    for sae in found:
        sae.calibrate(formulas.cloud(256))
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_refined_values_are_the_best_ones_of_the_same_latents(kind: str) -> None:
    plainly, refined = pair(kind, 300)
    x = formulas.cloud(40, seed=3)
    before, after = plainly.encode(x), refined.encode(x)
    assert ((after > 0) <= (before > 0)).all(), "none is added"
    z = formulas.model_space(refined, x) - refined.b_dec.detach().double()
    rows = refined.W_dec.detach().double()
    for b in range(len(x)):
        some = before[b].nonzero().squeeze(1)
        if len(some):
            left = nnls(rows[some].t().numpy(), z[b].numpy())[1]
            error = float((z[b] - after[b, some].double() @ rows[some]).norm())
            assert error == pytest.approx(left, rel=1e-3, abs=1e-5)
    assert torch.equal(refined.reconstruct(x)[1], after)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sweep_lowers_the_error(kind: str) -> None:
    x = formulas.cloud(200, seed=3)
    errors = [float((x - pair(kind, n)[1](x)).detach().square().sum()) for n in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_decoder_learns_from_refined_values_and_encoder_from_its_own(kind: str) -> None:
    plainly = pair(kind, 2, aux_coeff=0.0)[0]
    trained = formulas.small(kind, refine=2, refine_training=True, aux_coeff=0.0)
    x = formulas.cloud(32, seed=7)
    plainly.loss(x, Moment()).total.backward()
    result = trained.loss(x, Moment())
    result.total.backward()
    torch.testing.assert_close(trained.W_enc.grad, plainly.W_enc.grad)
    torch.testing.assert_close(trained.b_enc.grad, plainly.b_enc.grad)
    assert float(result.fvu) < float(plainly.loss(x, Moment()).fvu.detach())
    z, codes = trained.preprocessing(x)[0], trained.select(trained.preprocessing(x)[0] - trained.b_dec)
    values = refit(z - trained.b_dec, trained.W_dec, codes, 2).detach()
    W_dec = trained.W_dec.detach().clone().requires_grad_()
    trained.share(z.detach() - codes.with_values(values).dense().detach() @ W_dec - trained.b_dec.detach()).backward()
    torch.testing.assert_close(trained.W_dec.grad, W_dec.grad, rtol=1e-4, atol=1e-6)


def test_training_on_refined_values_needs_some_sweeps() -> None:
    with pytest.raises(ValueError, match="refine_training needs refine: at least 1 sweep"):
        formulas.small("topk", refine_training=True)


def test_nothing_fires() -> None:
    _, refined = pair("jumprelu", 2)
    with torch.no_grad():
        refined.threshold.fill_(1e6)
    assert not refined.encode(formulas.cloud(5)).any()
    assert refined.encode(torch.empty(0, 8)).shape == (0, 24)


def test_other_layouts_refuse_it_in_words() -> None:
    with pytest.raises(LayoutError, match="refine: 2 sweeps over the values"):
        plain(pair("topk", 2)[1])
