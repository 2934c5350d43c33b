"""dictionary_learning's layout: by its documented key names, and by the package where it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grown import cloud, codes_of, grown
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from saebench.compat.dictionary_learning import TENSORS, export_dictionary_learning, import_dictionary_learning
from saebench.compat.plain import LayoutError
from saebench.saes import NotCalibratedError
from saebench.saes.batchtopk import BatchTopKSAE
from saebench.saes.matryoshka import MatryoshkaSAE

CLASS = {
    "vanilla": "AutoEncoder",
    "p_anneal": "AutoEncoder",
    "topk": "AutoEncoderTopK",
    "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}
RULE = {"AutoEncoder": "relu", "AutoEncoderTopK": "topk", "GatedAutoEncoder": "gated"}


def named_ours(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of class `name` under our names, read off the documentation of each class."""
    if "W_enc" in state:
        b_enc = state["b_enc"]
        if name == "JumpReluAutoEncoder":  # x is encoded as it is, without b_dec
            b_enc = b_enc + state["b_dec"] @ state["W_enc"]
        return {**state, "b_enc": b_enc}
    b_enc = state["gate_bias"] if name == "GatedAutoEncoder" else state["encoder.bias"]
    b_dec = next(state[key] for key in ("bias", "b_dec", "decoder_bias") if key in state)
    named = {"W_enc": state["encoder.weight"].t(), "W_dec": state["decoder.weight"].t(), "b_enc": b_enc, "b_dec": b_dec}
    extra = {"threshold": "threshold", "r_mag": "r_mag", "b_mag": "mag_bias"}
    return named | {ours: state[theirs] for ours, theirs in extra.items() if theirs in state}


@pytest.mark.parametrize("preprocess", ["none", "center", "center_scale"])
@pytest.mark.parametrize("kind", CLASS)
def test_the_exported_weights_alone_give_the_same_codes(kind: str, preprocess: str, tmp_path: Path) -> None:
    sae, x = grown(kind, preprocess), cloud(64, seed=4)
    export_dictionary_learning(sae, tmp_path)
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    state = load_file(tmp_path / "ae.safetensors")
    name = trainer["dict_class"]
    assert name == CLASS[kind]
    assert (trainer["activation_dim"], trainer["dict_size"]) == (8, 24)
    assert state.keys() == TENSORS[name]
    codes, x_hat = codes_of(named_ours(name, state), x, RULE.get(name, "threshold"), trainer.get("k", 0))
    ours_hat, ours = sae.reconstruct(x)
    assert_close(codes.float(), ours, atol=1e-5, rtol=1e-5)
    assert_close(x_hat.float(), ours_hat, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CLASS)
def test_there_and_back_encodes_the_same(kind: str, tmp_path: Path) -> None:
    sae, x = grown(kind), cloud(64, seed=4)
    export_dictionary_learning(sae, tmp_path)
    back = import_dictionary_learning(tmp_path)
    assert back.config.type == ("vanilla" if kind == "p_anneal" else kind)  # type: ignore[attr-defined]
    assert_close(back.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    assert_close(back(x), sae(x), atol=1e-5, rtol=1e-5)


def test_matryoshka_keeps_its_levels(tmp_path: Path) -> None:
    """Shares 1/4, 1/4, 1/2 of 24 latents: groups of 6, 6, 12, levels 6, 12, 24."""
    export_dictionary_learning(grown("matryoshka", groups=(0.25, 0.25, 0.5)), tmp_path)
    assert load_file(tmp_path / "ae.safetensors")["group_sizes"].tolist() == [6, 6, 12]
    back = import_dictionary_learning(tmp_path)
    assert isinstance(back, MatryoshkaSAE)
    assert back.levels == (6, 12, 24)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_a_fractional_k_travels_as_a_jumprelu(kind: str, tmp_path: Path) -> None:
    sae, x = grown(kind, k=3.5), cloud(64, seed=4)
    export_dictionary_learning(sae, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    assert_close(import_dictionary_learning(tmp_path).encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)


def test_a_threshold_that_never_started_there_is_not_calibrated_here(tmp_path: Path) -> None:
    """-1 there would be a dense code; here it is an error until `calibrate`."""
    export_dictionary_learning(grown("batchtopk"), tmp_path)
    state = load_file(tmp_path / "ae.safetensors")
    save_file({**state, "threshold": torch.tensor(-1.0)}, tmp_path / "ae.safetensors")
    back, x = import_dictionary_learning(tmp_path), cloud(64, seed=4)
    assert isinstance(back, BatchTopKSAE)
    with pytest.raises(NotCalibratedError):
        back.encode(x)
    back.calibrate(x)
    assert (back.encode(x) != 0).sum() == 4 * 64


def test_the_april_class_is_read_too(tmp_path: Path) -> None:
    """AutoEncoderNew: relu(x E^T + b), D f + c, checked by hand: x = (1, 2), E = I, b = (0, -1), c = (5, 5)."""
    state = {"encoder.weight": torch.eye(2), "encoder.bias": torch.tensor([0.0, -1.0])}
    state |= {"decoder.weight": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "decoder.bias": torch.tensor([5.0, 5.0])}
    save_file(state, tmp_path / "ae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderNew"}}))
    sae, x = import_dictionary_learning(tmp_path), torch.tensor([[1.0, 2.0]])
    assert_close(sae.encode(x), torch.tensor([[1.0, 1.0]]))
    assert_close(sae(x), torch.tensor([[6.0, 7.0]]))


def test_a_pickle_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ae.pt").write_bytes(b"whatever")
    with pytest.raises(LayoutError, match="a pickle, which saebench does not open"):
        import_dictionary_learning(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"dict_class": "CrossCoder"}, "trainer.dict_class: 'CrossCoder' must be one of AutoEncoder"),
        ({"dict_class": ["AutoEncoder"]}, "trainer.dict_class: .'AutoEncoder'. must be one of"),
        (None, "trainer: missing"),
    ],
)
def test_another_class_is_refused(trainer: Any, said: str, tmp_path: Path) -> None:
    export_dictionary_learning(grown("topk"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    with pytest.raises(LayoutError, match=said):
        import_dictionary_learning(tmp_path)


def test_k_is_taken_from_the_config_where_the_weights_lack_it(tmp_path: Path) -> None:
    sae, x = grown("topk"), cloud(16, seed=4)
    export_dictionary_learning(sae, tmp_path)
    state = load_file(tmp_path / "ae.safetensors")
    del state["k"]
    save_file(state, tmp_path / "ae.safetensors")
    assert_close(import_dictionary_learning(tmp_path).encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    with pytest.raises(LayoutError, match=r"trainer\.k: None, expected a whole number above 0"):
        import_dictionary_learning(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": torch.tensor(0)}, "k: 0, expected a whole number above 0"),
        ({"k": torch.tensor([4, 5])}, r"k: \[4, 5\], expected a whole number"),
        ({"k": torch.tensor(4.5)}, r"k: torch\.float32"),
        ({"k": torch.tensor(25)}, "k 25 must not exceed dict_size 24"),
        ({"group_sizes": torch.tensor([24, 0])}, r"group_sizes: \[24\.0, 0\.0\], expected those of all latents"),
        ({"group_sizes": torch.tensor([6, 6])}, "group_sizes: "),
        ({"W_enc": torch.zeros(8)}, r"W_enc: shape \(8,\)"),
        ({"W_dec": torch.zeros(24, 8, 1)}, r"W_dec: shape \(24, 8, 1\)"),
        ({"W_enc": torch.zeros(8, 24, dtype=torch.int8)}, r"W_enc: torch\.int8"),
        ({"b_dec": torch.full((8,), torch.nan)}, "b_dec: holds NaN or infinity"),
        ({"W_dec": torch.zeros(24, 9)}, r"W_enc: shape \(8, 24\), expected|W_dec: shape \(24, 9\), expected"),
    ],
)
def test_weights_that_are_none_are_named(changes: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    export_dictionary_learning(grown("matryoshka"), tmp_path)
    weights = tmp_path / "ae.safetensors"
    save_file({**load_file(weights), **changes}, weights)
    with pytest.raises(LayoutError, match=said):
        import_dictionary_learning(tmp_path)


def test_weights_of_8_bits_are_read(tmp_path: Path) -> None:
    export_dictionary_learning(grown("matryoshka"), tmp_path)
    weights = tmp_path / "ae.safetensors"
    few = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(weights).items() if name == "W_dec"}
    save_file({**load_file(weights), **few}, weights)
    assert torch.equal(import_dictionary_learning(tmp_path).W_dec, few["W_dec"].float())


def test_json_that_no_parser_takes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(100_000 * "[")
    with pytest.raises(LayoutError, match=r"config\.json: incomplete or invalid JSON"):
        import_dictionary_learning(tmp_path)


def test_a_pursuit_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="type omp: a pursuit with refits, for which this layout has no encoder"):
        export_dictionary_learning(grown("omp"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preprocess", ["unit", "layer_norm"])
def test_what_differs_per_example_is_refused(preprocess: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="cannot be folded"):
        export_dictionary_learning(grown("vanilla", preprocess), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CLASS)
def test_the_package_loads_the_state_dict_and_agrees(kind: str, tmp_path: Path) -> None:
    """The recipe of the docstring, with the package's own classes."""
    package = pytest.importorskip("dictionary_learning")
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    sae, x = grown(kind), cloud(64, seed=4)
    export_dictionary_learning(sae, tmp_path)
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    homes = (package.dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
    cls = next(getattr(home, trainer["dict_class"]) for home in homes if hasattr(home, trainer["dict_class"]))
    ae = cls(*(trainer[key] for key in ("activation_dim", "dict_size", "k", "group_sizes") if key in trainer))
    ae.load_state_dict(load_file(tmp_path / "ae.safetensors"))
    ours_hat, ours = sae.reconstruct(x)
    with torch.no_grad():
        assert_close(ae.encode(x), ours, atol=1e-5, rtol=1e-5)
        assert_close(ae(x), ours_hat, atol=1e-5, rtol=1e-5)
