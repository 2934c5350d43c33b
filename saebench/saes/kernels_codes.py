"""Codes of a batch as pairs of a row and a latent, and the three sums over pairs that a k-sparse step consists of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from saebench.saes.kernels import blocks, on_host, product

MOST_PAIRS = 1 / 24
"""Share of nonzero latents above which pairs cost more than dense products on a CPU."""
DENSE_ELEMENTS = 1 << 21
"""Elements made dense at a time (8 MiB) above that share (AuxK selects hundreds out of a few hundred latents)."""
LONGEST_SUM = 64
"""Most pairs that one thread of a GPU sums sequentially."""
_SUM = 0
"""embedding_bag's code for mode="sum"."""


class ByLatent(NamedTuple):
    """Pairs sorted by latent: latent f has the pairs `order[bounds[f]:bounds[f + 1]]`."""

    order: Tensor
    bounds: Tensor
    rows: Tensor
    """The row of each pair, in that order."""


class Pieces(NamedTuple):
    """Pairs by latent, cut where a latent's end and at equal distances: piece p has `bounds[p]:bounds[p + 1]`, latent f
    the pieces `first[f]:first[f + 1]` of `every`."""

    bounds: Tensor
    every: Tensor
    first: Tensor


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of a batch as pairs, row by row: row b has the pairs `offsets[b]:offsets[b + 1]`."""

    values: Tensor
    """(pairs,) float32; 0 is padding."""
    indices: Tensor
    """(pairs,) int64: the latent of each pair."""
    offsets: Tensor
    """(rows + 1,) int64."""
    dict_size: int

    @property
    def rows(self) -> int:
        """Number of examples in the batch."""
        return self.offsets.numel() - 1

    @cached_property
    def row_of_pair(self) -> Tensor:
        """(pairs,) int64."""
        rows = torch.arange(self.rows, device=self.indices.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.indices.numel())

    @cached_property
    def by_latent(self) -> ByLatent:
        """Return the same pairs sorted by latent; computed once for both gradients."""
        latents, order = self.indices.sort(stable=True)
        every = torch.arange(self.dict_size + 1, device=latents.device)
        return ByLatent(order, torch.searchsorted(latents, every), self.row_of_pair.index_select(0, order))

    @cached_property
    def pieces(self) -> Pieces:
        """Return the pairs by latent in pieces of at most LONGEST_SUM; computed once for both gradients."""
        bounds, count = self.by_latent.bounds, self.indices.numel()
        cuts = torch.cat([bounds, torch.arange(0, count, LONGEST_SUM, device=bounds.device)]).sort().values
        first = torch.searchsorted(cuts, bounds)
        first[-1:].fill_(len(cuts) - 1)  # pieces after the last pair are empty
        return Pieces(cuts, torch.arange(len(cuts) - 1, device=bounds.device), first)

    @property
    def crowded(self) -> bool:
        """Whether dense products are faster than sums over the pairs."""
        most = MOST_PAIRS * self.rows * self.dict_size
        return on_host(self.indices) and self.indices.numel() > most

    def with_values(self, values: Tensor) -> SparseCodes:
        """Return the same pairs with other values; cached properties of the pairs are kept."""
        codes = SparseCodes(values, self.indices, self.offsets, self.dict_size)
        return self._shared_with(codes, "row_of_pair", "by_latent", "pieces")

    def cut(self, starts: Tensor) -> SparseCodes:
        """Return the same pairs as codes of rows * levels: level i of a row has its latents from starts[i] to
        starts[i + 1], the last one those to the end; starts (levels,) int64, the first 0. A row's pairs must be in
        order of latent."""
        rows = torch.arange(self.rows + 1, device=starts.device).unsqueeze(1) * self.dict_size
        places = self.row_of_pair * self.dict_size + self.indices
        offsets = torch.searchsorted(places, (rows + starts).flatten()[: 1 - len(starts) or None])
        codes = SparseCodes(self.values, self.indices, offsets, self.dict_size)
        if "by_latent" in self.__dict__:
            order, bounds, _ = self.by_latent
            codes.__dict__["by_latent"] = ByLatent(order, bounds, codes.row_of_pair.index_select(0, order))
        return self._shared_with(codes, "pieces")

    def _shared_with(self, codes: SparseCodes, *names: str) -> SparseCodes:
        """Copy the cached properties `names` of these pairs to `codes`; return `codes`."""
        codes.__dict__.update({name: self.__dict__[name] for name in names if name in self.__dict__})
        return codes

    def spread(self, per_latent: Tensor) -> Tensor:
        """Return a number per latent (dict_size,) as a number per pair (pairs,)."""
        return per_latent.index_select(0, self.indices)

    def l0(self) -> Tensor:
        """(rows,) int64: latents that fire per example."""
        running = torch.zeros(self.indices.numel() + 1, dtype=torch.int64, device=self.indices.device)
        torch.cumsum(self.values.detach() != 0, 0, out=running[1:])
        return running[self.offsets].diff()

    def firing(self) -> Tensor:
        """(dict_size,) float32: examples on which each latent fires."""
        counts = self.values.new_zeros(self.dict_size)
        return counts.index_add_(0, self.indices, (self.values.detach() != 0).float())

    def dense(self) -> Tensor:
        """Return (rows, dict_size), differentiable; for inspection only, the training step does not use it."""
        flat = torch.zeros(self.rows * self.dict_size, dtype=self.values.dtype, device=self.values.device)
        return flat.index_add(0, self.row_of_pair * self.dict_size + self.indices, self.values).view(
            self.rows, self.dict_size
        )


@dataclass(frozen=True, eq=False)
class DenseCodes:
    """The result of `encode_above` if there would be too many pairs: every pre-activation, with the same methods."""

    values: Tensor
    """(rows, dict_size) float32."""

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def dict_size(self) -> int:
        return self.values.shape[1]

    def with_values(self, values: Tensor) -> DenseCodes:
        return DenseCodes(values)

    def spread(self, per_latent: Tensor) -> Tensor:
        """Return `per_latent` (dict_size,) unchanged: it broadcasts over the rows."""
        return per_latent

    def l0(self) -> Tensor:
        return (self.values.detach() != 0).sum(1)

    def firing(self) -> Tensor:
        return (self.values.detach() != 0).sum(0).float()

    def dense(self) -> Tensor:
        return self.values


Codes = SparseCodes | DenseCodes


def _sampled_product() -> bool:
    """Return whether torch computes single entries of a product on the CPU (checked on a product of integers). Torch
    warns once that this is a beta feature; that warning is suppressed here."""
    bounds, columns = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
    a, b = torch.arange(4.0).view(2, 2), torch.arange(6.0).view(2, 3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = torch.sparse_csr_tensor(
                bounds, columns, torch.zeros(3, dtype=torch.float32), (2, 3), check_invariants=False
            )
            found = torch.sparse.sampled_addmm(pairs, a, b, beta=0.0).values()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool(found.tolist() == [float((a @ b)[r, c]) for r, c in ((0, 2), (1, 0), (1, 1))])


_SAMPLED = _sampled_product()


def sum_by_latent(per_pair: Tensor, codes: SparseCodes) -> Tensor:
    """Return the sums (dict_size,) of values (pairs,)."""
    return per_pair.new_zeros(codes.dict_size).index_add_(0, codes.indices, per_pair)


def combine(codes: SparseCodes, weights: Tensor, vectors: Tensor) -> Tensor:
    """Return (rows, d): for each row, its pairs' weights times the vectors (dict_size, d) of their latents."""
    if not codes.crowded:
        return _bags(codes.indices, vectors, codes.offsets, weights)
    return torch.cat([product(part.dense(weights), vectors) for part in _parts(codes)])


def dots(codes: SparseCodes, rows: Tensor, vectors: Tensor) -> Tensor:
    """Return (pairs,): for each pair, its row of (rows, d) times the vector (dict_size, d) of its latent."""
    if codes.crowded:
        return torch.cat([product(rows[p.rows], vectors.t()).flatten()[p.places] for p in _parts(codes)])
    if _SAMPLED and on_host(rows):
        order, bounds, row_of_pair = codes.by_latent  # so that the vectors, the larger of the two, are read in order
        shape, nothing = (codes.dict_size, codes.rows), rows.new_zeros(codes.indices.numel())
        pairs = torch.sparse_csr_tensor(bounds, row_of_pair, nothing, shape, check_invariants=False)
        found = torch.sparse.sampled_addmm(pairs, vectors.detach(), rows.t(), beta=0.0).values()
        return torch.empty_like(found).index_copy_(0, order, found)
    # embedding_bag's own gradient to its weights: nothing of (pairs, d) is gathered, and no graph is built for it
    result: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.contiguous(), vectors.detach(), codes.indices, codes.offsets, codes.row_of_pair, _SUM
    )
    return result


def collect(codes: SparseCodes, weights: Tensor, rows: Tensor, into: Tensor) -> Tensor:
    """Overwrite and return `into` (dict_size, d): for each latent, its pairs' weights times their rows of (rows, d)."""
    if codes.crowded:
        into.zero_()
        for part in _parts(codes):
            into += product(part.dense(weights).t(), rows[part.rows])
        return into
    order, bounds, row_of_pair = codes.by_latent
    weights = weights.index_select(0, order)
    if not on_host(rows):
        return into.copy_(_sums_in_two(codes, rows, weights))
    for block in blocks(codes.dict_size, rows.shape[1], rows.device):
        first, last = int(bounds[block.start]), int(bounds[block.stop])
        starts = bounds[block.start : block.stop + 1] - first
        into[block] = _bags(row_of_pair[first:last], rows, starts, weights[first:last])
    return into


def _bags(pairs: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of `rows[pairs]`, one per bag of pairs."""
    return embedding_bag(pairs, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _sums_in_two(codes: SparseCodes, rows: Tensor, weights: Tensor) -> Tensor:
    """Return `_bags` by latent on a GPU, where one thread sums a bag: a latent that fires on every row would delay all
    others. So no sum is longer than LONGEST_SUM; a second pass sums the pieces of a bag."""
    pieces = codes.pieces
    sums = _bags(codes.by_latent.rows, rows, pieces.bounds, weights)
    return embedding_bag(pieces.every, sums, pieces.first, mode="sum", include_last_offset=True)


class _Part(NamedTuple):
    """Some rows of crowded codes."""

    rows: slice
    pairs: slice
    places: Tensor
    """Index of each pair in the flattened dense form."""
    shape: tuple[int, int]

    def dense(self, weights: Tensor) -> Tensor:
        flat = weights.new_zeros(self.shape[0] * self.shape[1])
        flat[self.places] = weights[self.pairs]
        return flat.view(self.shape)


def _parts(codes: SparseCodes) -> Iterator[_Part]:
    count = max(1, DENSE_ELEMENTS // codes.dict_size)
    starts = [*range(0, codes.rows, count), codes.rows]
    for (low, high), (first, last) in zip(pairwise(starts), pairwise(codes.offsets[starts].tolist()), strict=True):
        places = (codes.row_of_pair[first:last] - low) * codes.dict_size + codes.indices[first:last]
        yield _Part(slice(low, high), slice(first, last), places, (high - low, codes.dict_size))
