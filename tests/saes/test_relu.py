"""Shrinkage is taken back by one number, at a target L0 only."""

from __future__ import annotations

import formulas
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench.compat.plain import plain
from saebench.config import SAE_CONFIGS
from saebench.saes import SAE_TYPES, Moment, load_sae, save_sae
from saebench.saes.relu import ReLUSAE

KINDS = ("vanilla", "p_anneal")


def made(kind: str = "vanilla", **fields: float) -> ReLUSAE:
    config = SAE_CONFIGS[kind](dict_size=2, preprocess="none", **(fields or {"target_l0": 1.0}))  # type: ignore[arg-type]
    sae = SAE_TYPES[kind](config, 2)
    assert isinstance(sae, ReLUSAE)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    return sae


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_by_hand(kind: str) -> None:
    """Rows (3, 0), (0, 5), bias -1, one latent each: r = (2, 0), (0, 4): scale = (2 * 3 + 4 * 5) / (4 + 16) = 1.3."""
    sae, rows = made(kind), torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    with torch.no_grad():
        sae.b_enc.fill_(-1)
    sae.calibrate(rows)
    shift = 1 + float(sae.offset)  # the offset lies where two latents fire on two rows: between the margins -1 and 2
    assert -1 < float(sae.offset) < 2
    r = torch.tensor([3 - shift, 5 - shift])
    assert float(sae.scale) == pytest.approx(float((r * torch.tensor([3.0, 5.0])).sum() / r.square().sum()))
    assert sae.encode(rows).diag().tolist() == pytest.approx((float(sae.scale) * r).tolist())
    sae.calibrate(rows)
    assert float(sae.scale) == pytest.approx(float((r * torch.tensor([3.0, 5.0])).sum() / r.square().sum()))


def test_no_other_scale_has_a_smaller_error() -> None:
    sae, rows = formulas.small("vanilla", l1_coeff=None, target_l0=4.0), formulas.cloud(300, seed=3)
    sae.calibrate(rows)
    best = float(sae.scale)

    def error(scale: float) -> float:
        sae.scale.fill_(scale)
        return float((sae(rows) - rows).detach().square().sum())

    at_best = error(best)
    assert best != 1
    assert at_best < min(error(best * 1.01), error(best * 0.99), error(1.0))


def test_it_changes_no_latent_that_fires_and_no_training() -> None:
    sae, rows = formulas.small("vanilla", l1_coeff=None, target_l0=4.0), formulas.cloud(300, seed=3)
    before = sae.loss(rows, Moment(coeff=0.1)).total.item()
    sae.calibrate(rows)
    fires = sae.encode(rows) > 0
    assert sae.loss(rows, Moment(coeff=0.1)).total.item() == before
    sae.scale.fill_(1.0)
    assert torch.equal(sae.encode(rows) > 0, fires)


@pytest.mark.parametrize("fields", [{"l1_coeff": 0.1}, {"target_l0": 1.0}])
def test_a_fixed_coefficient_or_latents_that_point_away_keep_it_at_one(fields: dict[str, float]) -> None:
    sae, rows = made(**fields), torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    if "target_l0" in fields:
        with torch.no_grad():
            sae.W_dec.neg_()
    sae.calibrate(rows)
    assert float(sae.scale) == 1


def test_it_is_saved_exported_and_absent_from_older_files(tmp_path) -> None:
    sae, rows = (
        formulas.small("vanilla", preprocess="center", l1_coeff=None, target_l0=4.0),
        formulas.cloud(300, seed=3),
    )
    sae.calibrate(rows)
    assert float(sae.scale) != 1
    folder = save_sae(sae, tmp_path)
    assert torch.equal(load_sae(folder).encode(rows), sae.encode(rows))
    other = plain(sae)
    codes = torch.relu((rows - other.b_dec) @ other.W_enc + other.b_enc)
    torch.testing.assert_close(codes, sae.encode(rows))
    torch.testing.assert_close(codes @ other.W_dec + other.b_dec, sae(rows))

    tensors = load_file(folder / "sae.safetensors")
    del tensors["scale"]
    save_file(tensors, folder / "sae.safetensors")
    about = (folder / "sae.json").read_text()
    (folder / "sae.json").write_text(about.replace('"format_version": 2', '"format_version": 1'))
    older = load_sae(folder)
    assert isinstance(older, ReLUSAE)
    assert float(older.scale) == 1
    (folder / "sae.json").write_text(about)
    with pytest.raises(ValueError, match="scale: missing"):
        load_sae(folder)
