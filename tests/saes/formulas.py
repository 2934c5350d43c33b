"""The architectures once more, in dense float64 straight from their formulas: what the fast code must agree with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_examples import example
from torch import Tensor

from saebench.saes import SAE, make_sae

Array = NDArray[np.float64]


def cloud(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """n points (n, d) around a mean far from 0, wider in some directions than in others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.5, 2, d) + 3


def unit_cloud(n: int, d: int = 8, seed: int = 0) -> Tensor:
    """n random directions (n, d)."""
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


_OWN: dict[str, dict[str, Any]] = {
    "batchtopk": {"k": 3.5},  # a fraction
    "matryoshka": {"k": 3.5},
    "jumprelu": {"bandwidth": 1.0},  # as wide as what it looks at
}


def small(kind: str, dict_size: int = 24, d: int = 8, seed: int = 1, stir: bool = True, **fields: Any) -> SAE:
    """A small SAE whose every parameter has moved away from its starting value."""
    sae = make_sae(example(kind, dict_size=dict_size, **{**_OWN.get(kind, {}), **fields}), d, cloud(256, d), seed)
    if stir:
        generator = torch.Generator().manual_seed(seed + 100)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        sae.constrain()
    return sae


def double(sae: SAE) -> dict[str, Tensor]:
    """Every parameter as a float64 leaf."""
    return {n: p.detach().double().contiguous().requires_grad_() for n, p in sae.named_parameters()}


def model_space(sae: SAE, x: Tensor) -> Tensor:
    """(x - mean) / scale of center_scale, with the saved numbers."""
    return (x.double() - sae.preprocessing.shift.double()) / sae.preprocessing.scale.double()


def keep_largest(pre: Tensor, count: int) -> Tensor:
    """The `count` largest of relu(pre) over all entries, the rest 0."""
    flat = pre.relu().flatten()
    order = flat.argsort(descending=True)[:count]
    mask = torch.zeros_like(flat)
    mask[order] = 1
    return (flat * mask).view_as(pre)


def codes(sae: SAE, p: dict[str, Tensor], z: Tensor, training: bool = True) -> Tensor:
    """Training codes (B, dict_size) in float64."""
    config: Any = sae.config
    if config.type == "omp":
        return omp_codes(config, p, z)
    pre = (z - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    match config.type:
        case "vanilla" | "p_anneal":
            return pre.relu()
        case "topk":
            return torch.stack([keep_largest(row, config.k) for row in pre])
        case "hierarchical_topk":
            return torch.stack([keep_largest(row, config.k) for row in pre])
        case "abs_topk":
            return torch.stack([row * (keep_largest(row.abs(), config.k) > 0) for row in pre])
        case "batchtopk" | "matryoshka":
            if not training:
                return pre * (pre > sae.threshold.double())
            return keep_largest(pre, round(config.k * len(z)))
        case "jumprelu":
            return straight_through(pre, p["threshold"], float(sae.bandwidth))[0]
        case "gated":
            bare = (z - p["b_dec"]) @ p["W_enc"]
            return (bare * p["r_mag"].exp() + p["b_mag"]).relu() * (pre > 0)
    raise AssertionError(config.type)


def omp_codes(config: Any, p: dict[str, Tensor], z: Tensor) -> Tensor:
    """Constants: the envelope theorem."""
    rows, found = p["W_dec"].detach().numpy(), torch.zeros(len(z), len(p["W_dec"]), dtype=torch.float64)
    for b, row in enumerate((z - p["b_dec"]).detach().numpy()):
        picks, values = pursuit_by_definition(row, rows, config.k, config.refit_every)
        found[b, picks] = torch.from_numpy(values)
    return found


def pursuit_by_definition(
    x: Array, rows: Array, k: int, every: int, least: float = 0.0, together: bool = False
) -> tuple[list[int], Array]:
    """Non-negative orthogonal matching pursuit of x (d,), all computed from the residual: (picks, values)."""
    picks: list[int] = []
    values: list[float] = []
    residual = x.copy()

    def sweep() -> None:
        nonlocal residual
        for i, f in enumerate(picks):
            change = max(-values[i], float(rows[f] @ residual))
            values[i] += change
            residual = residual - change * rows[f]

    for n in range(k):
        if not together or n % every == 0:
            products = rows @ residual
        products[picks] = -np.inf
        best = int(products.argmax())
        if products[best] <= max(least, 1e-4 * np.linalg.norm(x)):
            break
        picks.append(best)
        values.append(0.0 if together else float(products[best]))
        residual = residual - values[-1] * rows[best]
        if (n + 1) % every == 0 and n + 1 < k:
            sweep()
            sweep()
    for _ in range(3):
        sweep()
    return picks, np.array(values)


def straight_through(pre: Tensor, threshold: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(latents, fires), whose autograd gradients are the estimator's: a correction that is 0 in value."""
    fires = (pre > threshold).double()
    kernel = ((pre - threshold).abs() < eps / 2).double().detach()
    nothing = threshold - threshold.detach()
    latents = pre * fires.detach() - threshold.detach() / eps * kernel * nothing
    return latents, fires.detach() - kernel / eps * nothing


def loss(sae: SAE, p: dict[str, Tensor], x: Tensor, coeff: float = 0.0, dead: list[int] | None = None) -> Tensor:
    """The training loss in float64, from the formula."""
    config: Any = sae.config
    z = model_space(sae, x)
    variance, n = float(sae.variance), len(x)
    f = codes(sae, p, z)

    def fvu(z_hat: Tensor) -> Tensor:
        return ((z - z_hat) ** 2).sum(1).mean() / variance

    z_hat = f @ p["W_dec"] + p["b_dec"]
    norms = p["W_dec"].norm(dim=1)
    total = fvu(z_hat)
    match config.type:
        case "vanilla":
            return total + coeff * (f * norms).sum() / n / variance**0.5
        case "p_anneal":
            return total + coeff * (f * norms).sum() / n / variance**0.5  # progress 0: p = 1
        case "jumprelu":
            pre = (z - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
            return total + coeff * straight_through(pre, p["threshold"], float(sae.bandwidth))[1].sum() / n
        case "gated":
            gate = ((z - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).relu()
            frozen = gate @ p["W_dec"].detach() + p["b_dec"].detach()
            return total + coeff * (gate * norms).sum() / n / variance**0.5 + fvu(frozen)
        case "matryoshka":
            widths = [round(sum(config.groups[: i + 1]) * sae.dict_size) for i in range(len(config.groups))]
            total = sum(fvu(f[:, :w] @ p["W_dec"][:w] + p["b_dec"]) for w in widths) / len(widths)
        case "hierarchical_topk":
            largest = [torch.stack([keep_largest(row, j) for row in f]) for j in range(1, config.k + 1)]
            total = sum(fvu(some @ p["W_dec"] + p["b_dec"]) for some in largest) / config.k
    if dead:
        total = total + config.aux_coeff * auxk(p, z, (z - z_hat).detach(), dead, config.k_aux or 4, config.signed)
    return total


def auxk(p: dict[str, Tensor], z: Tensor, residual: Tensor, dead: list[int], k_aux: int, signed: bool) -> Tensor:
    """The residual rebuilt from the k_aux strongest dead pre-activations, over the residual's variance."""
    pre = ((z - p["b_dec"]) @ p["W_enc"] + p["b_enc"])[:, dead]
    place = (pre.abs() if signed else pre).argsort(dim=1, descending=True)[:, :k_aux]
    mask = torch.zeros_like(pre).scatter(1, place, 1.0)
    rebuilt = (pre * mask) @ p["W_dec"][dead]
    return ((residual - rebuilt) ** 2).sum() / ((residual - residual.mean(0)) ** 2).sum()
