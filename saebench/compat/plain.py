"""The common form of all exports: plain matrices in the embedding space and one inference rule.

    pre = (x - b_dec) W_enc + b_enc,  x_hat = codes W_dec + b_dec
    relu: codes = relu(pre)            topk: relu of the k largest of a row
    threshold: pre where pre > threshold, else 0
    gated: relu((pre - b_enc) exp(r_mag) + b_mag) where pre > 0, else 0

Codes equal saebench's number for number. So with `center_scale` the embeddings' scale is folded into the weights, and
the rows of W_dec have that scale as their length instead of 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saebench.config import GatedConfig, JumpReLUConfig, SAEConfig, TopKConfig, VanillaConfig
from saebench.errors import UserError
from saebench.saes import SAE, SAE_TYPES
from saebench.saes.batchtopk import BatchSparseSAE
from saebench.saes.calibrate import NotCalibratedError
from saebench.saes.files import whole_tensors
from saebench.saes.gated import GatedSAE
from saebench.saes.hierarchical_topk import HierarchicalTopKSAE
from saebench.saes.jumprelu import SMALLEST, JumpReLUSAE
from saebench.saes.omp import OMPSAE
from saebench.saes.relu import ReLUSAE
from saebench.saes.topk import TopKSAE

Rule = Literal["relu", "topk", "threshold", "gated"]


_WHOLE = frozenset({"k", "group_sizes"})
"""Tensors of whole numbers."""


class LayoutError(UserError, ValueError):
    """Raised for an SAE that another project's layout cannot hold, and for files that are not of that layout."""


def read_json(path: Path) -> Any:
    """Return the content of a layout's JSON file. Raises FileNotFoundError, or LayoutError for invalid JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: incomplete or invalid JSON ({error})") from error


@dataclass(frozen=True)
class Plain:
    """Weights and inference rule (see the module). Tensors are float32, on the CPU, contiguous."""

    rule: Rule
    W_enc: Tensor
    """(d_in, dict_size)"""
    b_enc: Tensor
    W_dec: Tensor
    """(dict_size, d_in)"""
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    """(dict_size,), at least 0"""
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None


@torch.no_grad()
def plain(sae: SAE) -> Plain:
    """Return `sae` by its inference rule, with preprocessing, offset and thresholds folded in.

    Raises LayoutError for an architecture without this form and for preprocessing per example, NotCalibratedError for a
    threshold that was never set.
    """
    if isinstance(sae, OMPSAE):
        raise LayoutError(
            "type omp: a pursuit with refits, for which this layout has no encoder; "
            "use saebench's own files or its MLflow model"
        )
    if sae.config.signed:
        raise LayoutError(
            f"type {sae.config.type}: its codes can be negative, and this layout has only codes of 0 and above; "
            "use saebench's own files or its MLflow model"
        )
    if sae.config.sweeps:
        raise LayoutError(
            f"refine: {sae.config.sweeps} sweeps over the values, which no encoder of this layout makes; "
            "an SAE with refine: 0 can be exported"
        )
    kind = sae.preprocessing.kind
    if kind in ("unit", "layer_norm"):
        raise LayoutError(
            f"preprocess: {kind} differs from example to example and cannot be folded into the weights; "
            "none, center and center_scale can"
        )
    shift, scale = sae.preprocessing.shift, sae.preprocessing.scale
    parts: dict[str, Any] = {
        "W_enc": (sae.scale * sae.W_enc if isinstance(sae, ReLUSAE) else sae.W_enc) / scale,
        "W_dec": sae.W_dec * scale,
        "b_dec": sae.b_dec * scale + shift,
        **_rule(sae),
    }
    kept: dict[str, Any] = {name: _copy(part) if isinstance(part, Tensor) else part for name, part in parts.items()}
    return Plain(**kept)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().contiguous().clone()


def _rule(sae: SAE) -> dict[str, Any]:
    """Return the encoder's bias and the parameters of the inference rule."""
    if isinstance(sae, TopKSAE | HierarchicalTopKSAE):
        return {"b_enc": sae.b_enc, "rule": "topk", "k": sae.config.k}
    if isinstance(sae, BatchSparseSAE):
        if sae.threshold.isnan():
            raise NotCalibratedError(f"{type(sae).__name__}: the threshold is not calibrated, call calibrate(rows)")
        return {"b_enc": sae.b_enc, "rule": "threshold", "threshold": sae.threshold.expand_as(sae.b_enc)}
    if isinstance(sae, JumpReLUSAE):
        return {"b_enc": sae.b_enc, "rule": "threshold", "threshold": (sae.threshold + sae.offset).clamp_min(SMALLEST)}
    if isinstance(sae, GatedSAE):
        return {"b_enc": sae.b_enc - sae.offset, "rule": "gated", "r_mag": sae.r_mag, "b_mag": sae.b_mag}
    if isinstance(sae, ReLUSAE):
        return {"b_enc": sae.scale * (sae.b_enc - sae.offset), "rule": "relu"}
    raise LayoutError(f"type {sae.config.type}: no other layout is known to encode as {type(sae).__name__} does")


def from_plain(plain: Plain) -> SAE:
    """Return the SAE with exactly these weights, without preprocessing, ready to encode.

    Its training is unknown: a penalty's coefficient is 0 and `variance` is 1. The rows of W_dec keep their length.
    """
    dict_size, d_in = plain.W_dec.shape
    config: SAEConfig
    if plain.rule == "topk":
        config = TopKConfig(dict_size=dict_size, preprocess="none", k=plain.k or 0)
    elif plain.rule == "threshold":
        config = JumpReLUConfig(dict_size=dict_size, preprocess="none", l0_coeff=0)
    elif plain.rule == "gated":
        config = GatedConfig(dict_size=dict_size, preprocess="none", l1_coeff=0)
    else:
        config = VanillaConfig(dict_size=dict_size, preprocess="none", l1_coeff=0)
    return filled(config, d_in, plain)


@torch.no_grad()
def filled(config: SAEConfig, d_in: int, plain: Plain) -> SAE:
    """Return an SAE of `config` with the tensors of `plain`; raise LayoutError if their shapes differ."""
    try:
        sae = SAE_TYPES[config.type](config, d_in)
    except ValueError as error:
        raise LayoutError(str(error)) from error
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag"):
        ours, theirs = getattr(sae, name, None), getattr(plain, name)
        if ours is None or theirs is None:
            continue
        if ours.shape != theirs.shape:
            raise LayoutError(f"{name}: shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        ours.copy_(theirs)
    return sae.requires_grad_(False).eval()


def read_tensors(path: Path, names: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors file, as float32 except those of whole numbers. Raises
    FileNotFoundError, or LayoutError for a damaged file, a missing name, a name that is neither in `names` nor in
    `optional`, a wrong shape or type, NaN or infinity."""
    tensors = whole_tensors(path, LayoutError)
    for name in sorted(names - tensors.keys()):
        raise LayoutError(f"{path}: {name}: missing")
    for name in sorted(tensors.keys() - names - optional):
        raise LayoutError(f"{path}: {name}: unknown tensor")
    for name, tensor in tensors.items():
        matrix, whole = name.startswith("W_") or name.endswith(".weight"), name in _WHOLE
        if matrix != (tensor.ndim == 2):
            raise LayoutError(
                f"{path}: {name}: shape {tuple(tensor.shape)}, expected {'a matrix' if matrix else 'no matrix'}"
            )
        if whole == tensor.is_floating_point():
            raise LayoutError(f"{path}: {name}: {tensor.dtype}, expected {'whole' if whole else 'floating'} numbers")
        tensors[name] = tensor if whole else tensor.float()
        if not tensors[name].isfinite().all():
            raise LayoutError(f"{path}: {name}: holds NaN or infinity")
    return tensors
