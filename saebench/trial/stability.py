"""Stability of codes under a small change of the embedding: the share of active latents that stay active."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NOISE = 0.1
"""Length of the noise, in units of the embedding's length."""
LARGEST = 1 / 8
"""Share of an example's active latents (rounded up) that `largest` counts."""
EXAMPLES = 1_000
"""Noise is added to this many examples, the first ones."""
ALIKE = 0.95
"""Cosine above which two examples are near-duplicates."""
AMONG = 5_000
"""Near-duplicates are searched among this many examples, the first ones."""
PAIRS = 2_000
"""Maximum number of pairs of near-duplicates that are compared."""
FEWEST_PAIRS = 20
"""With fewer pairs, the metrics of near-duplicates are left out."""


class RetainedCounts:
    """Running counts of active latents, and of those that stay active."""

    def __init__(self) -> None:
        self.active = self.kept = self.large = self.large_kept = 0

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add codes (B, dict_size) of examples before and after a change."""
        fires, fires_after = before != 0, after != 0
        counts = fires.sum(1)
        large_counts = (counts * LARGEST).ceil().long()
        order = before.abs().topk(int(large_counts.max()) if len(before) else 0, dim=1).indices
        large = torch.arange(order.shape[1], device=before.device) < large_counts.unsqueeze(1)
        self.active += int(counts.sum())
        self.kept += int((fires & fires_after).sum())
        self.large += int(large.sum())
        self.large_kept += int((large & fires_after.gather(1, order)).sum())

    def values(self, name: str) -> dict[str, float]:
        """Return shares by metric key; 0 if no latent is active."""
        return {
            f"eval/{name}": self.kept / self.active if self.active else 0.0,
            f"eval/{name}_largest": self.large_kept / self.large if self.large else 0.0,
        }


def with_noise(x: Tensor, seed: int = 0) -> Tensor:
    """Return x (N, d) plus isotropic noise of `NOISE` times each row's length; deterministic for a seed."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    noise = torch.nn.functional.normalize(noise, dim=1).to(x)
    noisy: Tensor = x + NOISE * torch.linalg.vector_norm(x, dim=1, keepdim=True) * noise
    return noisy


def near_duplicates(x: Tensor, chunk: int = 1024) -> Tensor:
    """Return the first `PAIRS` pairs of rows (P, 2) of x (N, d) whose cosine is above `ALIKE`, each pair once."""
    unit = torch.nn.functional.normalize(x.float(), dim=1)
    found, count = [torch.zeros(0, 2, dtype=torch.int64, device=x.device)], 0
    for start in range(0, len(x), chunk):
        pairs = (unit[start : start + chunk] @ unit.t() > ALIKE).nonzero()
        pairs[:, 0] += start
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        count += len(found[-1])
        if count >= PAIRS:
            break
    return torch.cat(found)[:PAIRS]


class CodeStability:
    """Sums over an evaluation's codes: latents that survive noise; with `duplicates`, that near-duplicates share."""

    def __init__(self, encode: Callable[[Tensor], Tensor], duplicates: bool = False) -> None:
        self._encode, self._duplicates = encode, duplicates
        self._noise, self._seen = RetainedCounts(), 0
        self._x: list[Tensor] = []

    def update(self, x: Tensor, latents: Tensor) -> None:
        """Add embeddings (B, d_in) and their codes (B, dict_size)."""
        some = x[: max(0, EXAMPLES - self._seen)]
        if len(some):
            self._noise.update(latents[: len(some)], self._encode(with_noise(some, self._seen)))
        if self._duplicates and self._seen < AMONG:
            self._x.append(x[: AMONG - self._seen])
        self._seen += len(x)

    def values(self) -> dict[str, float]:
        """Return metric key -> value; without near-duplicates if there are too few pairs."""
        return self._noise.values("code_stability") | self._between_duplicates()

    def _between_duplicates(self) -> dict[str, float]:
        x = torch.cat(self._x) if self._x else torch.zeros(0, 1)
        pairs = near_duplicates(x)
        if len(pairs) < FEWEST_PAIRS:
            return {}
        kept = RetainedCounts()
        for some in torch.split(pairs, 256):
            kept.update(self._encode(x[some[:, 0]]), self._encode(x[some[:, 1]]))
        return kept.values("code_stability_duplicates")
