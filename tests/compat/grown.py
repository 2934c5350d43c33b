"""Small SAEs of every type whose every number has moved, and their codes in dense float64."""

from __future__ import annotations

from typing import Any

import torch
from sae_examples import example
from torch import Tensor

from saebench.saes import SAE, make_sae


def cloud(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """n points (n, d) around a mean far from 0."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, d) + 3


def grown(kind: str, preprocess: str = "center_scale", **fields: Any) -> SAE:
    """A calibrated SAE of 8 dimensions and 24 latents; its offset (where it has a target) is not 0."""
    sae = make_sae(example(kind, dict_size=24, preprocess=preprocess, **fields), 8, cloud(256), 1)
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
