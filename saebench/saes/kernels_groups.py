"""A chunk of pre-activations on a CPU, its latents in groups: the groups' maxima rule out most entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.saes.kernels import Precision, affine_no_grad

TILE_ELEMENTS = 1 << 22
"""16 MiB: larger blocks may be mapped afresh by the system's allocator each time, which costs as much as selection."""
_LANES = 32
"""Most latents between two members of a group: the maxima of that many groups are taken together, two vectors wide."""
_GROUP = 8
"""Most members of such a group: reading more of them costs more than reading fewer maxima saves."""
_WIDE = (32, 64)
"""Least and most members of a group of adjacent latents: with fewer, torch takes the maxima one by one."""


class Groups(NamedTuple):
    """dict_size latents in groups of `size`, powers of two both: group g has latents `lanes` apart from each other."""

    size: int
    lanes: int

    @classmethod
    def of(cls, dict_size: int, least: float) -> Groups:
        """Return at least `least` groups if `dict_size` can be divided so; twice that many if they are wide, because
        all members of the selected groups are read, which should be a small share."""
        most = dict_size // max(1, int(least))
        wide = two_power(dict_size, min(_WIDE[1], most // 2))
        if wide >= _WIDE[0]:
            return cls(wide, 1)
        size = two_power(dict_size, min(_GROUP, most))
        return cls(size, two_power(dict_size // size, _LANES))

    def maxima(self, pre: Tensor) -> Tensor:
        """Return the maxima (rows, groups) of (rows, dict_size)."""
        return pre.view(pre.shape[0], -1, self.size, self.lanes).amax(2).flatten(1)

    def first(self, group: Tensor) -> Tensor:
        """Return the index in the flat chunk of the first member of each group, given its index in the flat maxima."""
        return group + group // self.lanes * (self.lanes * (self.size - 1))

    def read(self, pre: Tensor, group: Tensor) -> Tensor:
        """Return (groups, size): the members of these groups of a chunk."""
        if self.lanes == 1:
            return pre.view(-1, self.size).index_select(0, group)
        places = self.first(group).unsqueeze(1) + torch.arange(0, self.size * self.lanes, self.lanes)
        return pre.flatten().index_select(0, places.flatten()).view_as(places)


def two_power(number: int, most: int) -> int:
    """Return the largest power of two that divides `number` and is at most `most`, or 1."""
    power = 1
    while 2 * power <= most and number % (2 * power) == 0:
        power *= 2
    return power


@dataclass(frozen=True)
class Chunk:
    """Pre-activations of some rows, in tiles side by side, and their groups' maxima."""

    tiles: list[Tensor]
    groups: Groups
    maxima: list[Tensor]

    @classmethod
    def of(cls, x: Tensor, W_enc: Tensor, b_enc: Tensor, precision: Precision, groups: Groups) -> Chunk:
        """Compute a chunk in tiles of at most TILE_ELEMENTS; their number and size depend only on the shapes."""
        dict_size, unit = W_enc.shape[1], groups.size * groups.lanes
        count = -(-x.shape[0] * dict_size // TILE_ELEMENTS)
        width = -(-dict_size // (count * unit)) * unit
        tiles, maxima = [], []
        for W, b in zip(torch.split(W_enc, width, 1), torch.split(b_enc, width), strict=True):
            tiles.append(affine_no_grad(x, W, b, precision))
            maxima.append(groups.maxima(tiles[-1]))
        return cls(tiles, groups, maxima)

    def reaching(self, bound: Tensor, most: float) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return values, rows and latents of the entries that are not below `bound` (rows, 1) or (); None if more than
        `most` groups have such entries."""
        found, first, count, size = [], 0, 0, self.groups.size
        for tile, maxima in zip(self.tiles, self.maxima, strict=True):
            group = (maxima < bound).logical_not_().flatten().nonzero().squeeze(1)
            count += group.numel()
            if count > most:
                return None
            row, values = group // maxima.shape[1], self.groups.read(tile, group)
            least = bound if bound.numel() == 1 else bound.index_select(0, row)
            mask = (values < least).logical_not_().flatten()
            kept = true_places(mask) if size > _GROUP else mask.nonzero().squeeze(1)
            near = kept // size
            places = self.groups.first(group.index_select(0, near)) + (kept - near * size) * self.groups.lanes
            row = row.index_select(0, near)
            found.append((values.flatten().index_select(0, kept), row, places - row * tile.shape[1] + first))
            first += tile.shape[1]
        values, rows, latents = (torch.cat(parts) for parts in zip(*found, strict=True))
        return values, rows, latents


def true_places(mask: Tensor) -> Tensor:
    """Return the indices at which a mask (n,) is true, in order, testing eight entries at a time: most are false."""
    if mask.numel() % 8:
        return mask.nonzero().squeeze(1)
    words = mask.view(torch.int64)
    place = words.nonzero().squeeze(1)
    hit = words.index_select(0, place).view(torch.bool).nonzero().squeeze(1)
    return (place << 3).index_select(0, hit >> 3) + (hit & 7)
