"""Synthetic embeddings whose sparse features are known.

    python generate.py [TRUTH.yaml] OUT      # embeddings.npy and labels.npy for the sweep, the rest for study.py

The model is SynthSAEBench's (arXiv 2602.14687), written anew: Zipfian rates, a Gaussian copula of low rank, trees of
features of which siblings exclude each other, magnitudes, and a dense part that theirs does not have. The label of a
row is the strongest of a few features, "none" without one. A row's text (texts.npy) has three of the six words of each
of its features; second.npy is what an encoder with other directions makes of the same features.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]
SETTINGS = Path(__file__).with_name("truth.yaml")
WORDS, SAID = 6, 3
"""Words of a feature; how many of them a text with that feature has."""


@dataclass(frozen=True)
class Truth:
    """A world: directions of features, and how they fire."""

    directions: Array
    """(features, d_in), unit rows."""
    rates: Array
    """(features,) probability of firing where the parent fires."""
    parent: NDArray[np.int64]
    """(features,) -1 for one without."""
    means: Array
    stds: Array
    loadings: Array
    """(features, rank) of the copula."""
    bias: Array
    dense: Array
    """(rank, d_in)"""

    @classmethod
    def of(cls, s: dict[str, Any]) -> Truth:
        """The world of these settings."""
        rng, n, d = np.random.default_rng(s["seed"]), int(s["features"]), int(s["d_in"])
        rank = np.arange(1, n + 1)
        rates = np.maximum(s["firing"]["max"] / rank ** s["firing"]["exponent"], s["firing"]["min"])
        parent = tree(n, **s["hierarchy"])
        inside = parent >= 0
        conditional = rates.copy()
        conditional[inside] = np.minimum(1, rates[inside] / rates[parent[inside]])
        loadings = rng.normal(0, s["correlation"]["scale"], (n, s["correlation"]["rank"]))
        loadings /= np.maximum(1, np.linalg.norm(loadings, axis=1, keepdims=True) / 0.9)
        m = s["magnitude"]
        bias = unit(rng.normal(size=(1, d)))[0] * s["bias"]
        dense = unit(rng.normal(size=(s["dense"]["rank"], d)))
        means = np.linspace(m["first"], m["last"], n)
        variance = float((rates * means**2).sum())
        dense *= np.sqrt(s["dense"]["share"] * variance / len(dense))
        stds = np.abs(rng.normal(m["std_mean"], m["std_std"], n))
        return cls(apart(unit(rng.normal(size=(n, d))), s["orthogonalise"]), conditional, parent, means, stds, loadings,
                   bias, dense)  # fmt: skip

    def codes(self, rows: int, rng: np.random.Generator) -> Array:
        """(rows, features) values of features, 0 where they do not fire."""
        n, rank = self.loadings.shape
        shared = rng.normal(size=(rows, rank)) @ self.loadings.T
        own = rng.normal(size=(rows, n)) * np.sqrt(1 - (self.loadings**2).sum(1))
        wants = shared + own > norm.ppf(1 - self.rates)
        values = np.maximum(self.means + self.stds * rng.normal(size=(rows, n)), 0.1)
        fires = wants.copy()
        for place in np.flatnonzero(np.bincount(self.parent[self.parent >= 0], minlength=n)):
            children = np.flatnonzero(self.parent == place)
            fires[:, children] &= fires[:, [place]]
            chosen = np.where(fires[:, children], rng.random((rows, len(children))), -1).argmax(1)
            fires[:, children] &= np.arange(len(children)) == chosen[:, None]
            values[:, children] *= values[:, [place]] / self.means[place]
        return np.where(fires, values, 0.0)

    def embeddings(self, codes: Array, rng: np.random.Generator) -> NDArray[np.float32]:
        """(rows, d_in) of codes (rows, features)."""
        dense = rng.normal(size=(len(codes), len(self.dense))) @ self.dense
        return np.asarray(codes @ self.directions + self.bias + dense, np.float32)


def tree(features: int, roots: int, branching: int, depth: int) -> NDArray[np.int64]:
    """(features,) parents: the first latents are roots, then their children, and so on; the rest have none."""
    parent, level, free = np.full(features, -1), np.arange(min(roots, features)), min(roots, features)
    for _ in range(depth):
        children = np.arange(free, min(features, free + branching * len(level)))
        parent[children] = np.repeat(level, branching)[: len(children)]
        level, free = children, free + len(children)
    return parent


def unit(rows: Array) -> Array:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def apart(rows: Array, steps: int, rate: float = 0.05) -> Array:
    """Unit rows turned away from each other by gradient steps on their squared cosines."""
    for _ in range(steps):
        cosine = rows @ rows.T
        np.fill_diagonal(cosine, 0)
        rows = unit(rows - rate * cosine @ rows)
    return rows


def labels_of(codes: Array, classes: int) -> NDArray[np.str_]:
    """(rows,) which of as many features, common to rare, is the strongest in a row; "none" without one."""
    features = np.linspace(codes.shape[1] // 16, codes.shape[1] - 1, classes).astype(int)
    strongest = codes[:, features].argmax(1)
    return np.where(codes[:, features].max(1) > 0, [f"feature {i}" for i in features[strongest]], "none")


def texts_of(codes: Array, rng: np.random.Generator) -> NDArray[np.str_]:
    """(rows,) SAID of the WORDS words of every feature of a row, "nothing" without one."""
    words = np.array([[f"f{feature}{'abcdef'[i]}" for i in range(WORDS)] for feature in range(codes.shape[1])])
    said = [words[np.flatnonzero(row), :] for row in codes > 0]
    return np.array([" ".join(rng.permuted(some, axis=1)[:, :SAID].ravel()) or "nothing" for some in said])


def write(settings: dict[str, Any], out: Path) -> dict[str, float]:
    """Write the three files; what the world is like."""
    out.mkdir(parents=True, exist_ok=True)
    truth, rng = Truth.of(settings), np.random.default_rng(settings["seed"] + 1)
    codes = truth.codes(settings["train_rows"], rng)
    x = truth.embeddings(codes, rng)
    np.save(out / "embeddings.npy", x)
    np.save(out / "labels.npy", labels_of(codes, settings["classes"]))
    fresh = truth.codes(settings["truth_rows"], rng)
    other = np.random.default_rng(settings["seed"] + 2)
    np.save(out / "texts.npy", texts_of(codes, other))
    np.save(out / "second.npy", (codes @ unit(other.normal(size=truth.directions.shape))).astype(np.float32))
    np.savez(out / "truth.npz", directions=truth.directions, parent=truth.parent, codes=fresh.astype(np.float32),
             x=truth.embeddings(fresh, rng))  # fmt: skip
    cosine = np.abs(truth.directions @ truth.directions.T)
    np.fill_diagonal(cosine, 0)
    return {"l0": float((codes > 0).sum(1).mean()), "largest_cosine_of_features": float(cosine.max(1).mean()),
            "rarest": float((codes > 0).mean(0).min()), "silent": float(((codes > 0).sum(0) == 0).sum())}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Generate as the module's docstring says."""
    *given, out = arguments
    settings = yaml.safe_load(Path(given[0] if given else SETTINGS).read_text("utf-8"))
    for name, value in write(settings, Path(out)).items():
        print(f"{name}: {value:.4g}")


if __name__ == "__main__":
    main(sys.argv[1:])
