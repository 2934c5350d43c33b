"""Each step undoes itself, is saved, and is fitted on training rows alone."""

from __future__ import annotations

from typing import Any, get_args

import formulas
import pytest
import torch

from saebench.config import Preprocess
from saebench.saes import load_sae, save_sae
from saebench.saes.preprocess import Preprocessing

KINDS: tuple[Any, ...] = get_args(Preprocess)


def fitted(kind: Any, rows: torch.Tensor) -> Preprocessing:
    step = Preprocessing(kind, rows.shape[1])
    step.fit(rows)
    return step


@pytest.mark.parametrize("kind", KINDS)
def test_undo_gives_back_the_embedding(kind: Any) -> None:
    step, x = fitted(kind, formulas.cloud(500)), formulas.cloud(20, seed=2)
    z, side = step(x)
    torch.testing.assert_close(step.undo(z, side), x)


def test_what_each_step_makes_of_the_training_rows() -> None:
    x = formulas.cloud(500)
    z = {kind: fitted(kind, x)(x)[0] for kind in KINDS}
    assert torch.equal(z["none"], x)
    torch.testing.assert_close(z["center"].mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z["center"] - z["center"][0], x - x[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(z["center_scale"].mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert z["center_scale"].square().sum(1).mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(z["unit"].norm(dim=1), torch.ones(500))
    torch.testing.assert_close(z["layer_norm"].norm(dim=1), torch.ones(500))
    torch.testing.assert_close(z["layer_norm"].mean(1), torch.zeros(500), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["unit", "layer_norm"])
def test_rows_without_length_are_not_divided_by_zero(kind: Any) -> None:
    step = fitted(kind, formulas.cloud(50))
    x = torch.zeros(2, 8) if kind == "unit" else torch.full((2, 8), 3.0)
    z, side = step(x)
    assert torch.equal(z, torch.zeros(2, 8))
    torch.testing.assert_close(step.undo(z, side), x)


def test_a_code_without_its_example_is_undone_with_the_mean_length() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    step = fitted("unit", x)
    assert step.undo(torch.tensor([[1.0, 0.0]])).tolist() == [[4.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reconstruction_is_in_the_original_space(kind: Any, tmp_path: Any) -> None:
    """A dictionary of unit vectors and their negatives, all latents kept, rebuilds every embedding as it came."""
    sae = formulas.small("topk", dict_size=16, k=16, preprocess=kind, stir=False)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(8), -torch.eye(8)]))
        sae.W_enc.copy_(sae.W_dec.t())
    x = formulas.cloud(30, seed=6)
    torch.testing.assert_close(sae(x), x, rtol=1e-4, atol=1e-4)
    assert torch.equal(load_sae(save_sae(sae, tmp_path / "sae"))(x), sae(x).detach())
