"""Families of latents that fire together: a tree over their co-activation, cut where modularity is best.

The tree is the maximum spanning forest of the graph (Kruskal: the strongest edge first). An edge of it joins two
families only if that raises the modularity of the partition (Newman 2006) on the whole graph; passes over the remaining
edges are repeated until no edge does. The result does not depend on the numbering of latents, except for edges of
exactly equal weight.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from saebench.latents.neighbours import EDGES, Nearest

Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def families(near: Nearest) -> tuple[NDArray[np.int64], float]:
    """(n,) the family of each row, 0 the largest, -1 for a row alone in its own; and the modularity."""
    n = len(near.index)
    a, b, weight = _edges(near)
    if not len(weight):
        return np.full(n, -1, np.int64), 0.0
    joined = _Partition(n, a, b, weight)
    order = np.lexsort((b, a, -weight))
    left = list(zip(a[order].tolist(), b[order].tolist(), strict=True))
    while True:
        rest = [(i, j) for i, j in left if not joined.join(i, j)]
        rest = [(i, j) for i, j in rest if joined.find(i) != joined.find(j)]
        if len(rest) == len(left) or not rest:
            return _numbered(np.array([joined.find(i) for i in range(n)])), joined.modularity()
        left = rest


def _edges(near: Nearest) -> Edges:
    """Return each pair once, lower number first, if either has the other among its EDGES best."""
    index, value = near.index[:, :EDGES], near.value[:, :EDGES]
    a = np.repeat(np.arange(len(index)), index.shape[1])
    b, weight = index.ravel(), value.ravel()
    there = b >= 0
    a, b, weight = a[there], b[there], weight[there]
    low, high = np.minimum(a, b), np.maximum(a, b)
    _, first = np.unique(low * len(near.index) + high, return_index=True)
    return low[first], high[first], weight[first]


class _Partition:
    """The families of rows, and the weights between families."""

    def __init__(self, n: int, a: NDArray[np.int64], b: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        self._parent = list(range(n))
        self._total = float(weight.sum())
        degree = np.bincount(a, weight, n) + np.bincount(b, weight, n)
        self._degree: list[float] = degree.tolist()
        self._inside = [0.0] * n
        self._between: list[dict[int, float]] = [defaultdict(float) for _ in range(n)]
        for i, j, w in zip(a.tolist(), b.tolist(), weight.tolist(), strict=True):
            self._between[i][j] += w
            self._between[j][i] += w

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> bool:
        """Join the families of two rows if that raises the modularity."""
        i, j = self.find(i), self.find(j)
        if i == j:
            return True
        gain = self._between[i].get(j, 0.0) / self._total - self._degree[i] * self._degree[j] / (2 * self._total**2)
        if gain <= 1e-12:
            return False
        if len(self._between[i]) < len(self._between[j]):
            i, j = j, i
        self._parent[j] = i
        self._inside[i] += self._inside[j] + self._between[i].pop(j, 0.0)
        self._degree[i] += self._degree[j]
        for other, weight in self._between[j].items():
            if other != i:
                self._between[i][other] += weight
                self._between[other][i] += weight
                del self._between[other][j]
        self._between[j] = {}
        return True

    def modularity(self) -> float:
        """Return the share of the weight inside families, minus its expectation by chance."""
        roots = {self.find(i) for i in range(len(self._parent))}
        return sum(self._inside[r] / self._total - (self._degree[r] / (2 * self._total)) ** 2 for r in roots)


def _numbered(root: NDArray[np.int64]) -> NDArray[np.int64]:
    """Families by size, the one with the lowest row first among equals; -1 for a row alone."""
    names, first, which, size = np.unique(root, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -size))
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(len(names))
    number[size == 1] = -1
    return number[which]
