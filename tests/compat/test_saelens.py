"""SAELens' layout: by its documented key names and an independent computation, and by the package where it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grown import cloud, codes_of, grown
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from saebench.compat.plain import LayoutError
from saebench.compat.saelens import TENSORS, export_saelens, import_saelens
from saebench.saes import NotCalibratedError
from saebench.saes.jumprelu import JumpReLUSAE

ARCHITECTURE = {
    "vanilla": "standard",
    "p_anneal": "standard",
    "topk": "topk",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
}
RULE = {"standard": "relu", "topk": "topk", "gated": "gated", "jumprelu": "threshold"}


@pytest.mark.parametrize("preprocess", ["none", "center", "center_scale"])
@pytest.mark.parametrize("kind", ARCHITECTURE)
def test_the_exported_weights_alone_give_the_same_codes(kind: str, preprocess: str, tmp_path: Path) -> None:
    """Documented names, the formula in float64: codes and reconstruction to 1e-5."""
    sae, x = grown(kind, preprocess), cloud(64, seed=4)
    export_saelens(sae, tmp_path)
    config, state = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    assert config["architecture"] == ARCHITECTURE[kind]
    assert (config["d_in"], config["d_sae"], config["normalize_activations"]) == (8, 24, "none")
    assert state.keys() == TENSORS[config["architecture"]]
    if kind == "gated":
        state["b_enc"] = state["b_gate"]
    codes, x_hat = codes_of(state, x, RULE[config["architecture"]], config.get("k", 0))
    ours_hat, ours = sae.reconstruct(x)
    assert 1 < float((ours != 0).sum(1).float().mean()) < 24
    assert_close(codes.float(), ours, atol=1e-5, rtol=1e-5)
    assert_close(x_hat.float(), ours_hat, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURE)
def test_there_and_back_encodes_the_same(kind: str, tmp_path: Path) -> None:
    sae, x = grown(kind), cloud(64, seed=4)
    export_saelens(sae, tmp_path)
    back = import_saelens(tmp_path)
    assert_close(back.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    assert_close(back(x), sae(x), atol=1e-5, rtol=1e-5)
    assert isinstance(back, JumpReLUSAE) == (ARCHITECTURE[kind] == "jumprelu")


def test_a_pursuit_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="type omp: a pursuit with refits, for which this layout has no encoder"):
        export_saelens(grown("omp"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preprocess", ["unit", "layer_norm"])
def test_what_differs_per_example_is_refused(preprocess: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=f"preprocess: {preprocess} differs from example to example"):
        export_saelens(grown("topk", preprocess), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_threshold_never_calibrated_is_not_exported(tmp_path: Path) -> None:
    sae = grown("batchtopk")
    sae.threshold.fill_(torch.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(NotCalibratedError):
        export_saelens(sae, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "temporal"}, "architecture: 'temporal' must be one of standard"),
        ({"architecture": None}, "only the layout of SAELens 6"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations: 'layer_norm' has no counterpart"),
        ({"reshape_activations": "hook_z"}, "reshape_activations: 'hook_z'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn: only relu"),
        ({"k": 0}, "k: 0, expected a whole number above 0"),
    ],
)
def test_a_config_without_counterpart_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    export_saelens(grown("topk"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | changes
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(LayoutError, match=said):
        import_saelens(tmp_path)


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        import_saelens(tmp_path)
    export_saelens(grown("topk"), tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    state = load_file(weights)
    save_file({name: t for name, t in state.items() if name != "b_enc"}, weights)
    with pytest.raises(LayoutError, match="b_enc: missing"):
        import_saelens(tmp_path)
    save_file({**state, "scaling_factor": torch.ones(24)}, weights)
    with pytest.raises(LayoutError, match="scaling_factor: unknown tensor"):
        import_saelens(tmp_path)
    save_file({**state, "b_enc": torch.ones(23)}, weights)
    with pytest.raises(LayoutError, match=r"b_enc: shape \(23,\), expected \(24,\)"):
        import_saelens(tmp_path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LayoutError, match="not a whole safetensors file"):
        import_saelens(tmp_path)


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_an_input_without_b_dec_is_read_as_such(architecture: str, tmp_path: Path) -> None:
    """apply_b_dec_to_input: false, checked against the formula x W_enc + b."""
    export_saelens(grown("vanilla" if architecture == "standard" else "gated"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"apply_b_dec_to_input": False}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    s, x = load_file(tmp_path / "sae_weights.safetensors"), 3 * (cloud(64, seed=4) - 3)
    if architecture == "standard":
        codes = (x @ s["W_enc"] + s["b_enc"]).relu()
    else:
        gate = x @ s["W_enc"] + s["b_gate"] > 0
        codes = (x @ (s["W_enc"] * s["r_mag"].exp()) + s["b_mag"]).relu() * gate
    assert codes.any()
    assert_close(import_saelens(tmp_path).encode(x), codes, atol=1e-5, rtol=1e-5)


def test_winners_rescaled_by_decoder_norms(tmp_path: Path) -> None:
    """rescale_acts_by_decoder_norm: latents compete with pre * ||W_dec||, codes are those, rows count as unit."""
    export_saelens(grown("topk"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    s, x = load_file(tmp_path / "sae_weights.safetensors"), cloud(16, seed=4)
    s["W_dec"] *= torch.linspace(0.2, 3, 24)[:, None]
    save_file(s, tmp_path / "sae_weights.safetensors")
    norms = s["W_dec"].norm(dim=1)
    pre = ((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"]) * norms
    kept = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, 1) * pre.relu()
    back = import_saelens(tmp_path)
    assert_close(back.encode(x), kept, atol=1e-5, rtol=1e-5)
    assert_close(back(x), kept / norms @ s["W_dec"] + s["b_dec"], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ARCHITECTURE)
def test_sae_lens_itself_loads_and_agrees(kind: str, tmp_path: Path) -> None:
    """The package's own loader; and what it saves again comes back here."""
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = grown(kind), cloud(64, seed=4)
    export_saelens(sae, tmp_path / "there")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "there")
    ours_hat, ours = sae.reconstruct(x)
    with torch.no_grad():
        assert_close(theirs.encode(x), ours, atol=1e-5, rtol=1e-5)
        assert_close(theirs.decode(theirs.encode(x)), ours_hat, atol=1e-5, rtol=1e-5)
    theirs.save_model(tmp_path / "back")
    assert_close(import_saelens(tmp_path / "back").encode(x), ours, atol=1e-5, rtol=1e-5)


def test_a_decoder_row_of_zeros_decodes_to_numbers(tmp_path: Path) -> None:
    """SAELens divides nothing by the row's length; we did, and such an SAE decoded to NaN."""
    export_saelens(grown("topk"), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["W_dec"][3] = 0
    save_file(weights, tmp_path / "sae_weights.safetensors")
    sae = import_saelens(tmp_path)
    assert sae(cloud(50)).isfinite().all()
    assert sae.decode(torch.ones(2, 24)).isfinite().all()
