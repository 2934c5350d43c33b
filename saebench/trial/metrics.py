"""Metrics of reconstructions, as running float64 sums and one division at the end.

All metrics are computed in the space of the reconstructions (for an evaluation: the original embedding space), over
the whole split: fvu = sum ||x - x_hat||^2 / sum ||x - mean||^2 with the mean of that same split, explained variance =
1 - fvu. An average of ratios per batch or per example is a different, wrong number; so is a variance about zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saebench.metrics import EVAL

KNN_EXAMPLES = 5_000
"""Neighbours are searched among this many examples of the part, the first ones."""
FEWEST = 100
"""Fewest examples for these metrics: with fewer, the overlap by chance alone is a tenth."""
PAIRS = 50_000
"""Maximum number of pairs of examples whose similarities are ranked."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of N examples."""

    values: dict[str, float]
    """Metric key -> value."""
    per_text: dict[str, Tensor]
    """squared_error (N,) float32: ||x - x_hat||^2 of each example; cosine (N,) float32; l0 (N,) int32: latents that
    fire on it; knn_overlap_at_10 of the first `KNN_EXAMPLES` if it was measured."""
    firing: Tensor
    """(dict_size,) int64: examples on which each latent fires."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Metric that could not be measured -> reason."""

    def on(self, prefix: str) -> Evaluation:
        """Return the same evaluation with keys that begin with `prefix` instead of `eval/`."""
        return replace(self, values={prefix + key.removeprefix(EVAL): value for key, value in self.values.items()})


class Sums:
    """Running sums over the batches of a split."""

    def __init__(self) -> None:
        self._pivot: Tensor | None = None
        self._squared_error: list[Tensor] = []
        self._cosine: list[Tensor] = []
        self._l0: list[Tensor] = []

    def update(self, x: Tensor, x_hat: Tensor, latents: Tensor) -> Self:
        """Add a batch: x and x_hat (B, d_in), latents (B, dict_size); a latent fires if it is not 0."""
        if x.shape != x_hat.shape or len(latents) != len(x) or x.ndim != 2 or latents.ndim != 2:
            raise ValueError(
                f"x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)}, latents {tuple(latents.shape)}: "
                "expected (B, d_in) twice and (B, dict_size)"
            )
        x, x_hat, fires = _precise(x), _precise(x_hat), latents.detach() != 0
        pivot = self._start(x, latents.shape[1]) if self._pivot is None else self._pivot
        away = x - pivot
        self._away += away.sum(0)
        self._away_squared += away.square().sum()
        self._cosine.append(torch.nn.functional.cosine_similarity(x, x_hat, dim=1))
        self._squared_error.append((x - x_hat).square().sum(1))
        self._l0.append(fires.sum(1))
        self._firing += fires.sum(0).to(self._firing.device)
        return self

    def _start(self, x: Tensor, dict_size: int) -> Tensor:
        # Sum x about a point near the mean: sums about 0 lose digits if the mean is large.
        self._pivot = pivot = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        self._away, self._away_squared = torch.zeros_like(pivot), x.new_zeros(())
        self._firing = torch.zeros(dict_size, dtype=torch.int64, device=x.device)
        return pivot

    def result(self) -> Evaluation:
        """Return the metrics. Raises ValueError if there were no examples, or all are equal (variance 0)."""
        squared_error = torch.cat(self._squared_error) if self._squared_error else torch.empty(0, dtype=torch.float32)
        n = len(squared_error)
        if n == 0 or self._pivot is None:
            raise ValueError("no examples to evaluate on")
        l0, cosine = torch.cat(self._l0).cpu(), torch.cat(self._cosine).cpu()
        variance = float(self._away_squared - self._away.square().sum() / n)
        error = float(squared_error.sum())
        if not variance > 0:
            raise ValueError(f"the {n} examples are all the same: there is no variance to explain")
        low, high = quantiles(l0, 0.05, 0.95)
        dead = int((self._firing == 0).sum())
        values = {
            "eval/mse": error / (n * len(self._pivot)),
            "eval/fvu": error / variance,
            "eval/explained_variance": 1 - error / variance,
            "eval/cosine": float(cosine.mean()),
            "eval/cosine_p5": quantiles(cosine, 0.05)[0],
            "eval/l0": float(l0.sum()) / n,
            "eval/l0_p5": low,
            "eval/l0_p95": high,
            "eval/dead_features": float(dead),
            "eval/dead_fraction": dead / len(self._firing),
            "eval/examples": float(n),
        }
        per_text = {"squared_error": squared_error.float().cpu(), "cosine": cosine.float(), "l0": l0.int()}
        return Evaluation(values, per_text, self._firing.cpu())


def quantiles(values: Tensor, *shares: float) -> list[float]:
    """Return quantiles, interpolated linearly, of values (N,); torch.quantile rejects more than 16 million of them."""
    found: list[float] = np.quantile(values.numpy(), shares).tolist()
    return found


def _precise(x: Tensor) -> Tensor:
    """Return x in float64, on the CPU if the device has no float64."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


# --- beyond the basic ones -------------------------------------------------------------------------------------------


def knn_overlap_per_text(x: Tensor, x_hat: Tensor, k: int = 10, chunk: int = 512) -> Tensor:
    """Return (N,) the share of the k nearest neighbours (by cosine, without the example itself) that x and x_hat (N, d)
    have in common; exact, in float64, a chunk of rows at a time. By chance it is k / (N - 1)."""
    n = len(x)
    if n <= k + 1:
        raise ValueError(f"{n} examples: {k} nearest neighbours need at least {k + 2}")
    here, there = (torch.nn.functional.normalize(_precise(t), dim=1) for t in (x, x_hat))
    shared = []
    for start in range(0, n, chunk):
        near, near_hat = (_neighbours(t, start, min(start + chunk, n), k) for t in (here, there))
        shared.append((near[:, :, None] == near_hat[:, None, :]).sum((1, 2)))
    return torch.cat(shared).double().cpu() / k


def knn_overlap(x: Tensor, x_hat: Tensor, k: int = 10) -> float:
    """Return the mean of `knn_overlap_per_text`."""
    return float(knn_overlap_per_text(x, x_hat, k).mean())


def _neighbours(unit: Tensor, start: int, stop: int, k: int) -> Tensor:
    similarity = unit[start:stop] @ unit.t()
    rows = torch.arange(stop - start, device=unit.device)
    similarity[rows, rows + start] = -torch.inf
    return similarity.topk(k, dim=1).indices


def similarity_rank_correlation(x: Tensor, x_hat: Tensor, pairs: int = PAIRS) -> float:
    """Return Spearman's correlation, over pairs of different examples, between their cosines before and after
    reconstruction.

    Uses all pairs if there are at most `pairs`, else that many, drawn with a fixed seed. Returns 0 if all cosines on
    one side are equal, as when every reconstruction is the mean: there is no order to preserve then.
    """
    n = len(x)
    if n < 3:
        raise ValueError(f"{n} examples: a rank correlation needs at least 3")
    left, right = _some_pairs(n, pairs)
    here, there = (_cosines(t.cpu(), left, right) for t in (x, x_hat))
    if here.min() == here.max() or there.min() == there.max():
        return 0.0
    return float(np.corrcoef(_ranks(here), _ranks(there))[0, 1])


def _cosines(x: Tensor, left: Tensor, right: Tensor) -> NDArray[np.float64]:
    """Return the cosines of pairs of rows, in float64, a chunk at a time."""
    parts = zip(torch.split(left, 4096), torch.split(right, 4096), strict=True)
    found = [torch.nn.functional.cosine_similarity(x[i].double(), x[j].double(), dim=1) for i, j in parts]
    return torch.cat(found).numpy()


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((count.cumsum() - (count - 1) / 2)[place])


def _some_pairs(n: int, pairs: int) -> tuple[Tensor, Tensor]:
    if n * (n - 1) // 2 <= pairs:
        left, right = torch.triu_indices(n, n, 1)
        return left, right
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(n, (pairs,), generator=generator)
    return left, (left + torch.randint(1, n, (pairs,), generator=generator)) % n


class Extras:
    """The first `KNN_EXAMPLES` examples of a part, for embedding-aware metrics."""

    def __init__(self, names: Sequence[str]) -> None:
        unknown = set(names) - set(EXTRAS)
        if unknown:
            raise ValueError(f"unknown metric {sorted(unknown)[0]!r}: there are {', '.join(EXTRAS)}")
        self.names = tuple(names)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Add a batch; examples beyond `KNN_EXAMPLES` are dropped."""
        room = KNN_EXAMPLES - sum(len(x) for x, _ in self._pairs)
        if self.names and room > 0:
            self._pairs.append((x[:room], x_hat[:room]))

    def measure(self, name: str, evaluation: Evaluation) -> None:
        """Add the metric `name` to `evaluation`. Raises ValueError for fewer than `FEWEST` examples."""
        x, x_hat = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
        if len(x) < FEWEST:
            raise ValueError(f"{len(x)} texts: {name} needs at least {FEWEST}")
        EXTRAS[name](x, x_hat, evaluation)


def _add_knn_overlap(x: Tensor, x_hat: Tensor, evaluation: Evaluation) -> None:
    shares = knn_overlap_per_text(x, x_hat)
    evaluation.values["eval/knn_overlap_at_10"] = float(shares.mean())
    evaluation.values["eval/knn_overlap_at_10_chance"] = 10 / (len(x) - 1)
    evaluation.per_text["knn_overlap_at_10"] = shares.float()


def _add_rank_correlation(x: Tensor, x_hat: Tensor, evaluation: Evaluation) -> None:
    evaluation.values["eval/similarity_rank_correlation"] = similarity_rank_correlation(x, x_hat)


EXTRAS: dict[str, Callable[[Tensor, Tensor, Evaluation], None]] = {
    "knn_overlap_at_10": _add_knn_overlap,
    "similarity_rank_correlation": _add_rank_correlation,
}
"""Name -> function that adds the metric of (x, x_hat) to an evaluation."""
