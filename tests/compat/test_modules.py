"""The flat cfg, and the SAEs one builds from it: a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grown import cloud
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.testing import assert_close

import saebench
from saebench import BatchTopKSAE, JumpReLUSAE, TopKSAE, VanillaSAE, get_default_cfg, post_init_cfg, sae_classes
from saebench.compat import SettingsError, TrainableSAE
from saebench.config import BatchTopKConfig, JumpReLUConfig, TopKConfig, VanillaConfig
from saebench.saes import NotCalibratedError, load_sae, make_sae, save_sae

TYPES = ("vanilla", "topk", "batchtopk", "jumprelu")
KEYS = {"sae_out", "feature_acts", "num_dead_features", "loss", "l1_loss", "l2_loss", "l0_norm", "l1_norm"}


def small(kind: str, **changes: Any) -> dict[str, Any]:
    cfg = get_default_cfg()
    cfg.update({"sae_type": kind, "act_size": 8, "dict_size": 24, "top_k": 4, "device": "cpu", "l1_coeff": 0.01})
    cfg.update({"seed": 1, "batch_size": 64, **changes})
    return post_init_cfg(cfg)


def built(kind: str, **changes: Any) -> TrainableSAE:
    cfg = small(kind, **changes)
    return sae_classes[cfg["sae_type"]](cfg)


def trained(sae: TrainableSAE, steps: int = 60, lr: float = 3e-3) -> list[float]:
    """A plain loop; the losses."""
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=lr), []
    for step in range(steps):
        loss = sae(cloud(128, seed=step))["loss"]
        losses.append(loss.item())
        loss.backward()
        sae.make_decoder_weights_and_grad_unit_norm()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def shown(x: Tensor, unit: bool) -> Tensor:
    """What the error is measured on: the layer-normed input, with variance 1 per element, or the input."""
    return layer_norm(x, x.shape[1:], eps=0) if unit else x


@pytest.mark.parametrize("kind", TYPES)
def test_the_documented_snippet_as_it_stands(kind: str) -> None:
    cfg = get_default_cfg()
    cfg.update(
        {
            "sae_type": kind,
            "model_name": "sentence-transformers/all-MiniLM-L6-v2",
            "dataset_path": "text",
            "dict_size": 64,
            "top_k": 8,
            "lr": 1e-3,
            "aux_penalty": 1 / 32,
            "input_unit_norm": True,
            "device": "cpu",
            "act_size": 16,
            "batch_size": 32,
            "num_examples": 1000,
            "l1_coeff": 0.001,
            "n_batches_to_dead": 5,
            "top_k_aux": 16,
            "bandwidth": 0.1,
            "seed": 7,
            "wandb_project": None,
        }
    )
    cfg = post_init_cfg(cfg)
    sae = sae_classes[cfg["sae_type"]](cfg)
    output = sae(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    assert output.keys() == (KEYS | {"aux_loss"} if "topk" in kind else KEYS)
    assert output["sae_out"].shape == (32, 16)
    assert output["feature_acts"].shape == (32, 64)
    assert all(output[key].ndim == 0 and output[key].isfinite() for key in output.keys() - {"sae_out", "feature_acts"})
    for part in ("all-MiniLM-L6-v2", kind, "lr0.001", "s7"):
        assert part in cfg["name"]


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_the_losses_are_those_of_the_formulas(kind: str, unit: bool) -> None:
    """l2 is the mean squared error per element of what the SAE sees, l1 is l1_coeff times sum |f| (vanilla, in the
    units in which an element has variance 1) or L0 (jumprelu), and loss is the sum."""
    sae, x = built(kind, input_unit_norm=unit), cloud(64, seed=5)
    trained(sae, 5)
    output = sae(x)
    codes, x_hat = output["feature_acts"], output["sae_out"]
    if unit:  # the reconstruction, back in the space of the loss
        x_hat = (x_hat - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    assert_close(output["l2_loss"], (shown(x, unit) - x_hat).square().mean(), rtol=1e-4, atol=1e-6)
    assert_close(output["l0_norm"], (codes != 0).sum(1).float().mean())
    assert_close(output["l1_norm"], codes.sum(1).mean())
    if kind == "vanilla":
        lengths = sae.sae.W_dec.norm(dim=1)
        penalty = (codes * lengths).sum(1).mean() * (8**0.5 if unit else 1)
    else:
        penalty = output["l0_norm"] if kind == "jumprelu" else torch.tensor(0.0)
    assert_close(output["l1_loss"], 0.01 * penalty, rtol=1e-4, atol=1e-7)
    terms = output["l2_loss"] + output["l1_loss"] + output.get("aux_loss", torch.tensor(0.0))
    assert_close(output["loss"], terms, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", TYPES)
def test_a_plain_loop_learns(kind: str) -> None:
    sae = built(kind, l1_coeff=1e-3)
    losses = trained(sae)
    assert losses[-1] < 0.7 * losses[0]
    norms = sae.sae.W_dec.norm(dim=1)
    assert (norms - 1).abs().max() < 0.01  # the last step came after the last projection
    assert_close(sae.to_saebench().W_dec.norm(dim=1), torch.ones(24))


def test_gradients_reach_what_the_output_shows() -> None:
    """sae_out and feature_acts can be part of somebody's own loss."""
    sae = built("topk")
    output = sae(cloud(64))
    (output["sae_out"].square().mean() + output["feature_acts"].sum()).backward()
    assert sae.sae.W_enc.grad is not None
    assert sae.sae.W_enc.grad.abs().sum() > 0


def test_the_projection_leaves_no_gradient_along_a_row() -> None:
    sae = built("vanilla")
    sae(cloud(64))["loss"].backward()
    sae.make_decoder_weights_and_grad_unit_norm()
    grad, rows = sae.sae.W_dec.grad, sae.sae.W_dec
    assert grad is not None
    assert_close((grad * rows).sum(1), torch.zeros(24), atol=1e-6, rtol=0)
    assert_close(rows.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("kind", TYPES)
def test_a_code_at_inference_is_its_own(kind: str) -> None:
    """Alone, among batch-mates, or twice: the same code; and evaluating changes nothing."""
    sae, x = built(kind), cloud(32, seed=9)
    trained(sae, 30)
    sae.eval()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with torch.no_grad():
        together = sae(x)
        alone = torch.cat([sae(row[None])["feature_acts"] for row in x])
    assert_close(alone, together["feature_acts"], atol=1e-6, rtol=1e-5)
    assert_close(sae.encode(x), together["feature_acts"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


def test_batchtopk_runs_by_an_estimate_and_calibrates_exactly() -> None:
    """k = 4: the running threshold gives a mean L0 near 4 on new rows, `calibrate` one of exactly 4 on its rows."""
    sae, x = built("batchtopk"), cloud(1000, seed=77)
    trained(sae, 150)
    sae.eval()
    assert sae(x)["l0_norm"] == pytest.approx(4, rel=0.15)
    sae.calibrate(x)
    assert sae(x)["l0_norm"] == 4


def test_batchtopk_before_any_training_says_so() -> None:
    with pytest.raises(NotCalibratedError, match="not calibrated"):
        built("batchtopk").eval()(cloud(4))


def test_latents_die_after_n_batches_and_come_back() -> None:
    """A latent that cannot fire is dead after exactly n_batches_to_dead training batches; then AuxK is there."""
    sae = built("topk", n_batches_to_dead=3, aux_penalty=0.5)
    sae.start(cloud(64))
    with torch.no_grad():
        sae.sae.b_enc[0] = -1e6
        sae.sae.b_enc[1:] = 0.1 * torch.arange(23.0).neg()
    counts = [int(sae(cloud(64, seed=0))["num_dead_features"]) for _ in range(4)]
    assert counts[:2] == [0, 0]
    assert counts[2] == counts[3] >= 1
    output = sae(cloud(64, seed=0))
    assert output["aux_loss"] > 0
    output["loss"].backward()
    assert sae.sae.W_enc.grad is not None
    assert sae.sae.W_enc.grad[:, 0].abs().sum() > 0
    sae.eval()
    assert int(sae(cloud(64))["num_dead_features"]) == counts[3]


@pytest.mark.parametrize("kind", TYPES)
def test_the_state_dict_is_all_there_is(kind: str) -> None:
    """Loaded into a new module it evaluates the same and goes on the same: no second start from a batch."""
    sae, x = built(kind), cloud(64, seed=3)
    trained(sae, 10)
    twin = built(kind, seed=2)
    twin.load_state_dict(sae.state_dict())
    for ours, theirs in ((sae(x), twin(x)), (sae.eval()(x), twin.eval()(x))):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", TYPES)
def test_the_sae_inside_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    sae, x = built(kind), cloud(16, seed=3)
    trained(sae, 10)
    save_sae(sae.to_saebench(), tmp_path)
    assert_close(load_sae(tmp_path)(x), sae.eval()(x)["sae_out"])
    with pytest.raises(TypeError, match=r"to_saebench\(\)"):
        save_sae(sae, tmp_path / "new")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


TYPED = {
    "vanilla": (VanillaSAE, VanillaConfig(dict_size=24, l1_coeff=0.1)),
    "topk": (TopKSAE, TopKConfig(dict_size=24, k=4)),
    "batchtopk": (BatchTopKSAE, BatchTopKConfig(dict_size=24, k=3.5)),
    "jumprelu": (JumpReLUSAE, JumpReLUConfig(dict_size=24, l0_coeff=0.01)),
}


@pytest.mark.parametrize("kind", TYPES)
def test_the_same_names_take_a_typed_config(kind: str) -> None:
    """Then losses are saebench's own, FVU and all, from the same start as make_sae's."""
    cls, config = TYPED[kind]
    sae, x = cls(config, d_in=8), cloud(64, seed=3)  # type: ignore[operator]
    fresh = make_sae(config, 8, x, 0)  # type: ignore[arg-type]
    moment = saebench.saes.Moment(coeff={"vanilla": 0.1, "jumprelu": 0.01}.get(kind, 0.0))
    assert_close(sae(x)["loss"], fresh.loss(x, moment).total)


def test_a_target_is_for_the_trainer() -> None:
    sae = VanillaSAE(VanillaConfig(dict_size=24, target_l0=4), d_in=8)
    with pytest.raises(SettingsError, match="target_l0 is steered by the trainer"):
        sae(cloud(16))
    with pytest.raises(SettingsError, match="give a cfg, or a TopKConfig and d_in"):
        TopKSAE(VanillaConfig(dict_size=24, l1_coeff=0.1), d_in=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sae_type": "tokp"}, "cfg: sae_type: 'tokp'"),
        ({"top_k": 0}, "cfg: top_k: 0: "),
        ({"top_k": 25}, "cfg: top_k: 25: must not exceed dict_size 24"),
        ({"top_k": 3.5}, "cfg: top_k: 3.5: a whole number for topk"),
        ({"dict_size": -1}, "cfg: dict_size: -1"),
        ({"lr": float("nan")}, "cfg: lr: nan"),
        ({"l1_coeff": "much"}, "cfg: l1_coeff: 'much'"),
        ({"aux_penalty": -1}, "cfg: aux_penalty: -1"),
        ({"bandwidth": 0}, "cfg: bandwidth: 0"),
        ({"n_batches_to_dead": 0}, "cfg: n_batches_to_dead: 0"),
        ({"seed": -1}, "cfg: seed: -1"),
        ({"dtype": torch.float16}, "cfg: dtype: torch.float16"),
    ],
)
def test_nonsense_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace(".", r"\.")) as told:
        small("topk", **changes)
    assert "\n" not in str(told.value)


def test_unknown_keys_and_keys_of_other_types_are_no_matter() -> None:
    small("vanilla", top_k=1000, something_else=object(), dtype=torch.float32)


def test_bad_batches_are_refused() -> None:
    sae = built("topk")
    with pytest.raises(ValueError, match="at least 2"):
        sae(cloud(1))
    with pytest.raises(ValueError, match=r"expected \(B, 8\)"):
        sae(cloud(4, d=9))
    with pytest.raises(ValueError, match="NaN or inf"):
        sae(cloud(4) * torch.nan)
    with pytest.raises(TypeError, match="floating point"):
        sae(cloud(4).long())


def test_an_empty_batch_has_no_loss_in_evaluation_either() -> None:
    sae = built("vanilla")
    sae(cloud(16))
    with pytest.raises(ValueError, match="an empty batch has no loss"):
        sae.eval()(cloud(0))


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(SettingsError, match=f"cfg: device: {device}: "):
        built("topk", device=device)


def test_building_and_training_touch_no_global_random_number() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained(built("batchtopk"), 2)
    assert torch.equal(torch.get_rng_state(), before)
