"""SAEs in the layout of dictionary_learning: ae.safetensors beside config.json.

That project keeps its weights in `ae.pt`, a pickle, which saebench neither writes nor reads. `export` writes the same
state dict, key for key, as safetensors. Its `load_dictionary` does not open that file; load it with these two lines,
using the class that config.json names under trainer.dict_class:

    ae = AutoEncoderTopK(activation_dim, dict_size, k)
    ae.load_state_dict(safetensors.torch.load_file("ae.safetensors"))

(AutoEncoder, GatedAutoEncoder and JumpReluAutoEncoder take no k; MatryoshkaBatchTopKSAE takes k and group_sizes.) To
import a dictionary that was trained with dictionary_learning, convert its file first:

    state = torch.load("ae.pt", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "ae.safetensors")

vanilla and p_anneal become AutoEncoder, topk AutoEncoderTopK, gated GatedAutoEncoder, jumprelu JumpReluAutoEncoder,
batchtopk BatchTopKSAE and matryoshka MatryoshkaBatchTopKSAE; these two keep k as a whole number, so that with a
fractional k they become JumpReluAutoEncoder, which encodes the same. Preprocessing is folded (compat/plain.py).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saebench.compat.plain import LayoutError, Plain, filled, from_plain, plain, read_json, read_tensors
from saebench.config import BatchTopKConfig, MatryoshkaConfig
from saebench.runs.durable import write_json
from saebench.saes import SAE, load_sae
from saebench.saes.batchtopk import BatchTopKSAE
from saebench.saes.matryoshka import MatryoshkaSAE

CONFIG, WEIGHTS, PICKLE = "config.json", "ae.safetensors", "ae.pt"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_MATRICES = {"W_enc", "b_enc", "W_dec", "b_dec"}
TENSORS: dict[str, set[str]] = {
    "AutoEncoder": {*_LINEAR, "bias"},
    "AutoEncoderNew": {*_LINEAR, "decoder.bias"},
    "AutoEncoderTopK": {*_LINEAR, "b_dec", "k", "threshold"},
    "BatchTopKSAE": {*_LINEAR, "b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": {*_MATRICES, "k", "threshold", "group_sizes"},
    "JumpReluAutoEncoder": {*_MATRICES, "threshold"},
    "GatedAutoEncoder": {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
}
"""Class in dictionary_learning -> names of its tensors."""


def export_dictionary_learning(sae: SAE, folder: str | Path) -> list[Path]:
    """Write `sae` to `folder` (created if missing); return the files.

    Raises LayoutError for preprocess unit and layer_norm, NotCalibratedError for a threshold never calibrated.
    """
    form, folder = plain(sae), Path(folder)
    name, tensors = _state(sae, form)
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.dict_size}
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    if "group_sizes" in tensors:
        trainer["group_sizes"] = tensors["group_sizes"].tolist()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, {"trainer": trainer, "trained_with": "saebench", "saebench_type": sae.config.type})
    return [folder / CONFIG, folder / WEIGHTS]


def export(folder: Path, to: Path) -> list[Path]:
    """Convert the SAE that saebench saved in `folder` to this layout in `to`; `saebench export` calls this."""
    return export_dictionary_learning(load_sae(folder), to)


def _state(sae: SAE, form: Plain) -> tuple[str, dict[str, Tensor]]:
    """Return (class in dictionary_learning, its state dict)."""
    linear = {"encoder.weight": form.W_enc.t(), "encoder.bias": form.b_enc, "decoder.weight": form.W_dec.t()}
    matrices = {"W_enc": form.W_enc, "b_enc": form.b_enc, "W_dec": form.W_dec, "b_dec": form.b_dec}
    if form.rule == "relu":
        return "AutoEncoder", {**linear, "bias": form.b_dec}
    if form.rule == "topk":
        k = torch.tensor(form.k, dtype=torch.int32)
        return "AutoEncoderTopK", {
            **linear,
            "b_dec": form.b_dec,
            "k": k,
            "threshold": torch.tensor(-1.0, dtype=torch.float32),
        }
    if form.rule == "gated":
        assert form.r_mag is not None
        assert form.b_mag is not None
        return "GatedAutoEncoder", {
            "encoder.weight": form.W_enc.t(),
            "decoder.weight": form.W_dec.t(),
            "decoder_bias": form.b_dec,
            "r_mag": form.r_mag,
            "gate_bias": form.b_enc,
            "mag_bias": form.b_mag,
        }
    if isinstance(sae, BatchTopKSAE | MatryoshkaSAE) and float(sae.config.k).is_integer():
        one = {"k": torch.tensor(int(sae.config.k), dtype=torch.int32), "threshold": sae.threshold.detach().cpu()}
        if isinstance(sae, BatchTopKSAE):
            return "BatchTopKSAE", {**linear, "b_dec": form.b_dec, **one}
        sizes = torch.tensor([high - low for low, high in pairwise((0, *sae.levels))])
        return "MatryoshkaBatchTopKSAE", {**matrices, **one, "group_sizes": sizes}
    assert form.threshold is not None
    outside = form.b_enc - form.b_dec @ form.W_enc  # this class does not subtract b_dec from its input
    return "JumpReluAutoEncoder", {**matrices, "b_enc": outside, "threshold": form.threshold}


def import_dictionary_learning(folder: str | Path) -> SAE:
    """Return the SAE in a folder of this layout, ready to encode. A threshold of -1 (never set) is imported as not
    calibrated. Raises FileNotFoundError, or LayoutError for files that are not this layout."""
    folder = Path(folder)
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise LayoutError(
            f"{folder / PICKLE}: a pickle, which saebench does not open; write it as {WEIGHTS} first "
            "(two lines, in the docstring of saebench.compat.dictionary_learning)"
        )
    name = _dict_class(folder / CONFIG)
    optional = frozenset({"threshold", "k"}) if name in ("AutoEncoderTopK", "BatchTopKSAE") else frozenset()
    tensors = read_tensors(folder / WEIGHTS, TENSORS[name] - optional, optional)
    k = _k(folder / CONFIG, tensors) if "k" in TENSORS[name] else 0
    if name == "MatryoshkaBatchTopKSAE":
        sizes = tensors["group_sizes"].double()
        if sizes.ndim != 1 or not (sizes > 0).all() or int(sizes.sum()) != len(tensors["W_dec"]):
            raise LayoutError(f"{folder / WEIGHTS}: group_sizes: {sizes.tolist()}, expected those of all latents")
        groups = tuple((sizes / sizes.sum()).tolist())
        form = Plain("threshold", tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"])
        form = _with_threshold(form, tensors)
        d_in, dict_size = form.W_enc.shape
        return filled(MatryoshkaConfig(dict_size=dict_size, preprocess="none", k=k, groups=groups), d_in, form)
    if name == "JumpReluAutoEncoder":
        inside = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
        form = Plain("threshold", tensors["W_enc"], inside, tensors["W_dec"], tensors["b_dec"])
        return from_plain(_with_threshold(form, tensors))
    return _linear(name, tensors, k)


def _linear(name: str, tensors: dict[str, Tensor], k: int) -> SAE:
    """Return an SAE of a class whose weights are those of torch.nn.Linear, transposed."""
    W_enc, W_dec = tensors["encoder.weight"].t(), tensors["decoder.weight"].t()
    d_in, dict_size = W_enc.shape
    if name == "GatedAutoEncoder":
        form = Plain("gated", W_enc, tensors["gate_bias"], W_dec, tensors["decoder_bias"])
        return from_plain(replace(form, r_mag=tensors["r_mag"], b_mag=tensors["mag_bias"]))
    if name == "AutoEncoderNew":
        inside = tensors["encoder.bias"] + tensors["decoder.bias"] @ W_enc
        return from_plain(Plain("relu", W_enc, inside, W_dec, tensors["decoder.bias"]))
    if name == "AutoEncoder":
        return from_plain(Plain("relu", W_enc, tensors["encoder.bias"], W_dec, tensors["bias"]))
    form = Plain("topk", W_enc, tensors["encoder.bias"], W_dec, tensors["b_dec"], k=k)
    if name == "AutoEncoderTopK":
        return from_plain(form)
    return filled(BatchTopKConfig(dict_size=dict_size, preprocess="none", k=k), d_in, _with_threshold(form, tensors))


def _with_threshold(form: Plain, tensors: dict[str, Tensor]) -> Plain:
    threshold = tensors.get("threshold", torch.tensor(-1.0, dtype=torch.float32))
    never = torch.nan if threshold.ndim == 0 else 0.0  # a negative threshold per latent acts as 0, because of the ReLU
    return replace(form, threshold=torch.where(threshold < 0, never, threshold))


def _dict_class(path: Path) -> str:
    name = _trainer(path).get("dict_class")
    if not isinstance(name, str) or name not in TENSORS:
        raise LayoutError(f"{path}: trainer.dict_class: {name!r} must be one of {', '.join(TENSORS)}")
    return name


def _k(path: Path, tensors: dict[str, Tensor]) -> int:
    """Return k from the weights, or from config.json if the weights lack it."""
    found = tensors["k"].tolist() if "k" in tensors else _trainer(path).get("k")
    if not isinstance(found, int) or found < 1:
        raise LayoutError(f"{path}: trainer.k: {found!r}, expected a whole number above 0")
    return found


def _trainer(path: Path) -> dict[str, Any]:
    config = read_json(path)
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict):
        raise LayoutError(f"{path}: trainer: missing")
    return trainer
