"""Small SAEs of every type whose every number has moved, and their codes in dense float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS
from saebench.saes import SAE, make_sae

CONFIGS: dict[str, dict[str, Any]] = {
    "vanilla": {"target_l0": 5},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "jumprelu": {"target_l0": 5},
    "gated": {"target_l0": 5},
    "matryoshka": {"k": 4, "groups": (0.25, 0.25, 0.5)},
    "p_anneal": {"l1_coeff": 0.1},
}
TYPES = tuple(CONFIGS)


def cloud(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """n points (n, d) around a mean far from 0."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, d) + 3


def grown(kind: str, preprocess: str = "center_scale", **fields: Any) -> SAE:
    """A calibrated SAE of 8 dimensions and 24 latents; its offset (where it has a target) is not 0."""
    config = SAE_CONFIGS[kind](dict_size=24, preprocess=preprocess, **{**CONFIGS[kind], **fields})  # type: ignore[arg-type]
    sae = make_sae(config, 8, cloud(256), 1)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    sae.constrain()
    sae.calibrate(cloud(200, seed=3))
    return sae.requires_grad_(False).eval()


def codes_of(state: dict[str, Tensor], x: Tensor, rule: str, k: int = 0) -> tuple[Tensor, Tensor]:
    """(codes, reconstruction) in float64 from `state`: W_enc, b_enc, W_dec, b_dec and what the rule needs."""
    s = {name: tensor.double() for name, tensor in state.items()}
    pre = (x.double() - s["b_dec"]) @ s["W_enc"] + s["b_enc"]
    if rule == "topk":
        kth = pre.sort(dim=1, descending=True).values[:, k - 1 : k]
        codes = torch.where(pre >= kth, pre, 0).relu()
    elif rule == "threshold":
        codes = torch.where(pre > s["threshold"], pre, 0)
    elif rule == "gated":
        codes = torch.where(pre > 0, ((pre - s["b_enc"]) * s["r_mag"].exp() + s["b_mag"]).relu(), 0)
    else:
        codes = pre.relu()
    return codes, codes @ s["W_dec"] + s["b_dec"]
