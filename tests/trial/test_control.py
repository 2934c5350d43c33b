"""Controls: the part that is said to stay at its start does, and the rest learns."""

from __future__ import annotations

import pytest
import torch
from sae_examples import TYPES, example
from test_trainer import config, run, store

from saebench.config import SAE_CONFIGS
from saebench.saes import load_sae, save_sae
from saebench.saes.control import keep_near
from saebench.trial.trainer import Training


def test_rows_are_turned_back_to_the_nearest_direction_of_cosine_0_8() -> None:
    """(0.6, 0.8) has cosine 0.6 with (1, 0): the nearest of cosine 0.8 is (0.8, 0.6). (0.96, 0.28) may stay; the
    opposite of the start has no nearest one and becomes the start."""
    rows = torch.tensor([[0.6, 0.8], [0.96, 0.28], [-1.0, 0.0]])
    keep_near(rows, torch.tensor([[1.0, 0.0]]).repeat(3, 1))
    assert torch.allclose(rows, torch.tensor([[0.8, 0.6], [0.96, 0.28], [1.0, 0.0]]))


@pytest.mark.parametrize("kind", TYPES)
def test_a_frozen_part_stays_to_the_last_bit_and_the_others_move(kind: str) -> None:
    for control, frozen in {"frozen_decoder": "W_dec", "frozen_encoder": "W_enc"}.items():
        if control in SAE_CONFIGS[kind].without:
            continue
        what, rows = config(kind, {"control": control}, encoder_decay=3.0, samples=640), store()
        training = Training.start(*what, rows)
        before = {name: p.detach().clone() for name, p in training.sae.named_parameters()}
        run(training, rows)
        after = dict(training.sae.named_parameters())
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert frozen in same
        assert ({"W_dec", "b_dec", "b_enc"} & before.keys()) - {frozen} <= before.keys() - same


@pytest.mark.parametrize("kind", TYPES)
def test_a_soft_decoder_moves_and_stays_near_its_start(kind: str) -> None:
    what = config(kind, {"control": "soft_decoder", "encoder_scale": 1.0}, lr=3e-2, warmup=0.0, decay=0.0)
    training, rows = Training.start(*what, rows_ := store()), rows_
    start = training.sae.W_dec.detach().clone()
    run(training, rows)
    cosine = (training.sae.W_dec * start).sum(1)
    assert cosine.min() > 0.8 - 1e-5
    assert cosine.min() < 0.81, "some row has come to the edge"
    assert torch.allclose(training.sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)


def test_a_soft_decoder_goes_on_from_a_checkpoint_to_the_last_bit() -> None:
    what, rows = config("topk", {"control": "soft_decoder"}, lr=3e-2), store()
    whole = Training.start(*what, rows)
    run(whole, rows, until=640)
    state, position = whole.state_dict(), rows.position
    run(whole, rows)
    again = Training.start(*what, rows)
    again.load_state_dict(*state)
    rows.position = position
    run(again, rows)
    assert torch.equal(again.sae.W_dec, whole.sae.W_dec)


def test_a_control_starts_at_random_rows_and_is_saved_as_what_it_is(tmp_path) -> None:
    rows = store()
    plain = Training.start(*config("topk", {"start": "random"}), rows).sae
    control = Training.start(*config("topk", {"control": "frozen_decoder", "start": "data"}), rows).sae
    assert torch.equal(control.W_dec, plain.W_dec)
    assert load_sae(save_sae(control, tmp_path)).config.control == "frozen_decoder"


def test_a_type_without_the_part_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAE_CONFIGS["topk"], "without", {"frozen_encoder": "it has none"})
    with pytest.raises(ValueError, match="control frozen_encoder: topk cannot have it: it has none"):
        example("topk", control="frozen_encoder")
