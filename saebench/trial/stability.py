"""Whether a code survives a small change of its embedding: the share of active latents that stay active."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NOISE = 0.1
"""Length of the noise, in units of the embedding's length."""
LARGEST = 1 / 8
"""Share of an example's active latents (rounded up) that `largest` looks at."""
EXAMPLES = 2_000
"""Examples (the first) whose codes are compared."""
ALIKE = 0.95
"""Cosine above which two examples are near-duplicates."""
PAIRS = 2_000
"""Pairs of near-duplicates that are compared at most."""
FEWEST_PAIRS = 20
"""With fewer pairs nothing is said about near-duplicates."""


class Kept:
    """Running sums of latents that are active and stay so."""

    def __init__(self) -> None:
        self.active = self.kept = self.large = self.large_kept = 0

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add codes (B, dict_size) of examples before and after a change."""
        fires, fires_after = before > 0, after > 0
        counts = fires.sum(1)
        large_counts = (counts * LARGEST).ceil().long()
        order = before.topk(max(1, int(large_counts.max())) if len(before) else 1, dim=1)
        large = torch.arange(order.indices.shape[1], device=before.device) < large_counts.unsqueeze(1)
        self.active += int(counts.sum())
        self.kept += int((fires & fires_after).sum())
        self.large += int(large.sum())
        self.large_kept += int((large & fires_after.gather(1, order.indices)).sum())

    def values(self, name: str) -> dict[str, float]:
        """Shares by metric key; an SAE without an active latent keeps none."""
        return {
            f"eval/{name}": self.kept / self.active if self.active else 0.0,
            f"eval/{name}_largest": self.large_kept / self.large if self.large else 0.0,
        }


def with_noise(x: Tensor, level: float = NOISE) -> Tensor:
    """x (N, d) plus isotropic noise of `level` times each row's length, always the same."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.normalize(noise, dim=1).to(x)
    noisy: Tensor = x + level * torch.linalg.vector_norm(x, dim=1, keepdim=True) * noise
    return noisy


def near_duplicates(x: Tensor, alike: float = ALIKE, most: int = PAIRS, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Rows (P,) and (P,) of x (N, d) whose cosine is above `alike`, each pair once, the first `most` of them."""
    unit = torch.nn.functional.normalize(x.float(), dim=1)
    found: list[Tensor] = []
    for start in range(0, len(x), chunk):
        cosine = unit[start : start + chunk] @ unit.t()
        pairs = (cosine > alike).nonzero()
        pairs[:, 0] += start
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        if sum(map(len, found)) >= most:
            break
    pairs = torch.cat(found)[:most] if found else torch.zeros(0, 2, dtype=torch.int64)
    return pairs[:, 0], pairs[:, 1]


def code_stability(encode: Callable[[Tensor], Tensor], x: Tensor, rows_per_chunk: int) -> dict[str, float]:
    """Shares of the active latents of embeddings x (N, d) that stay active under noise, and between near-duplicates
    where x has enough of them."""
    x = x[:EXAMPLES]
    noisy = with_noise(x)
    kept = Kept()
    for before, after in zip(torch.split(x, rows_per_chunk), torch.split(noisy, rows_per_chunk), strict=True):
        kept.update(encode(before), encode(after))
    return kept.values("code_stability")


def duplicate_stability(encode: Callable[[Tensor], Tensor], x: Tensor, rows_per_chunk: int) -> dict[str, float]:
    """The same between near-duplicates among x (N, d); empty where they are few."""
    left, right = near_duplicates(x)
    if len(left) < FEWEST_PAIRS:
        return {}
    kept = Kept()
    for some in torch.split(torch.arange(len(left), device=left.device), rows_per_chunk):
        kept.update(encode(x[left[some]]), encode(x[right[some]]))
    return kept.values("code_stability_duplicates")
