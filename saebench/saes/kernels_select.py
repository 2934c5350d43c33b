"""Select the pairs of (row, latent) that a k-sparse code keeps: exactly, one chunk of pre-activations at a time.

Latents are cut into groups. The k best pairs lie in the k groups with the best maxima, because a pair outside of them
has k better ones, one in each. So a pass over the chunk for the maxima and small choices replace one choice among all
of it. Choices are made among int64 keys that order like (value, lower place first): no two are equal, so the result
does not depend on algorithm, thread count, chunking or device.

On a CPU the maxima give a lower bound of the k best (for a batch, an estimate of one), and all values that reach it are
examined. Groups are wide there, so that few values remain, or, for a small dictionary, small with members at a stride:
in both cases the maxima are vectorised. On a GPU the number of candidates would need a sync: there, groups of adjacent
latents are selected by their keys, and only `above` needs a sync.
No function here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from saebench.saes.kernels import Precision, affine_no_grad, on_host
from saebench.saes.kernels_groups import Chunk, Groups, true_places, two_power

CHUNK_ROWS = 256
"""Rows per chunk, halved until a chunk holds at most CHUNK_ELEMENTS pre-activations."""
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
"""32 MiB of float32 on a CPU, where a chunk should stay in the cache; on a GPU, few large launches."""
_SMALLEST = 2.0**-149
"""The smallest positive float32: a value that is not below it is positive or NaN."""
_SAMPLE = 300
"""Number of sampled values above the estimate: more make it more precise and more expensive."""


def keys_of(values: Tensor, places: Tensor, signed: bool = False) -> Tensor:
    """Keys of float32 values; places are below 2^32. Without `signed` negative values count as 0."""
    if not signed:
        bits = values.relu().view(torch.int32).bitwise_and_(0x7FFFFFFF).long()
    else:
        bits = values.view(torch.int32).long()
        bits = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return bits.bitwise_left_shift_(32).sub_(places)


def places_of(keys: Tensor) -> Tensor:
    return -keys & 0xFFFFFFFF


def _group_size(dict_size: int, k: float) -> int:
    """Return a power of two that divides dict_size and balances the number of groups with their size."""
    size = 1
    while k > 0 and dict_size % (2 * size) == 0 and 2 * k * (2 * size) ** 2 <= 3 * dict_size:
        size *= 2
    return size


def chunks(x: Tensor, dict_size: int) -> tuple[Tensor, ...]:
    rows = CHUNK_ROWS if on_host(x) else 1 << 30
    most = CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"])
    while rows > 1 and min(rows, x.shape[0]) * dict_size > most:
        rows //= 2
    return torch.split(x, rows)


# Each chunk is passed directly to a function, so that it is freed before the next one is computed.


def topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: Precision, signed: bool) -> tuple[Tensor, Tensor]:
    """Return values (rows, k) and latents (rows, k)."""
    parts, dict_size = chunks(x, W_enc.shape[1]), W_enc.shape[1]
    groups = Groups.of(dict_size, 2 * k)
    if not on_host(x) or groups.size < 4:
        found = [topk_of(affine_no_grad(c, W_enc, b_enc, precision), k, signed) for c in parts]
        return torch.cat([values for values, _ in found]), torch.cat([latents for _, latents in found])
    near = [_near_topk(Chunk.of(c, W_enc, b_enc, precision, groups), k, signed) for c in parts]
    values, latents = torch.cat([v for v, _, _ in near]), torch.cat([latent for _, _, latent in near])
    row = torch.cat([row + n * parts[0].shape[0] for n, (_, row, _) in enumerate(near)])
    best = keys_of(values, latents, signed).neg_().sort().indices
    of_row, place = row.index_select(0, best).sort(stable=True)
    starts = torch.searchsorted(of_row, torch.arange(x.shape[0]))
    best = best.index_select(0, place.index_select(0, (starts.unsqueeze(1) + torch.arange(k)).flatten()))
    return values.index_select(0, best).view(-1, k), latents.index_select(0, best).view(-1, k)


def _near_topk(chunk: Chunk, k: int, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, rows and latents of the k best entries of each row of a chunk, and a few more."""
    maxima = torch.cat(chunk.maxima, 1)
    rows, groups = maxima.shape
    coarse = two_power(groups, groups // (2 * k))
    bound = maxima.view(rows, coarse, -1).amax(1).topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    found = chunk.reaching(bound, most=4 * rows * k)
    if found is not None:
        return found
    values, latents = topk_of(torch.cat(chunk.tiles, 1), k, signed)  # many equal values, or NaN
    return values.flatten(), torch.arange(rows).repeat_interleave(k), latents.flatten()


def topk_of(pre: Tensor, k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Return values (rows, k) and latents (rows, k) of pre-activations (rows, dict_size)."""
    size = _group_size(pre.shape[1], k)
    latents = torch.arange(pre.shape[1] // size, device=pre.device).expand(pre.shape[0], -1)
    if k == pre.shape[1]:
        return pre, latents
    if size > 1:
        best = keys_of(_maxima(pre, size), latents, signed).topk(k, dim=1, sorted=False).indices
        latents = (best.unsqueeze(2) * size + torch.arange(size, device=pre.device)).flatten(1)
        pre = pre.gather(1, latents)
    best = keys_of(pre, latents, signed).topk(k, dim=1, sorted=False).indices
    return pre.gather(1, best), latents.gather(1, best)


def topk_by_magnitude(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return signed values (rows, k) and latents (rows, k) of the largest magnitudes."""
    found = [by_magnitude(affine_no_grad(c, W_enc, b_enc, precision), k) for c in chunks(x, W_enc.shape[1])]
    return torch.cat([values for values, _ in found]), torch.cat([latents for _, latents in found])


def by_magnitude(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the same of pre-activations (rows, dict_size); -inf marks a latent that comes last."""
    _, latents = topk_of(torch.where(pre.isneginf(), pre, pre.abs()), k, signed=True)
    return pre.gather(1, latents), latents


def batchtopk(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor:
    """Return the keys of the best pairs of the batch, with place = row * dict_size + latent."""
    if on_host(x):
        keys = _above_a_guess(x, W_enc, b_enc, pairs, precision)
        if keys is not None:
            return keys
    size = _group_size(W_enc.shape[1], pairs / x.shape[0])
    kept, first = torch.empty(0, dtype=torch.int64, device=x.device), 0
    for chunk in chunks(x, W_enc.shape[1]):
        fresh = _batchtopk_of(affine_no_grad(chunk, W_enc, b_enc, precision).view(-1, size), pairs, first)
        kept = _best(torch.cat([kept, fresh]), pairs)
        first += chunk.shape[0] * W_enc.shape[1]
    return kept


def _batchtopk_of(pre: Tensor, pairs: int, first: int) -> Tensor:
    groups, size = torch.arange(pre.shape[0], device=pre.device), pre.shape[1]
    if pairs < pre.shape[0]:
        groups = places_of(_best(keys_of(_maxima(pre, size).flatten(), groups), pairs))
    places = first + groups.unsqueeze(1) * size + torch.arange(size, device=pre.device)
    return keys_of(pre[groups], places).flatten()


def _maxima(pre: Tensor, size: int) -> Tensor:
    """Return the maxima (rows, width / size) of groups of adjacent latents. On a GPU max_pool1d would compute indices,
    too."""
    if on_host(pre) and len(pre):
        return max_pool1d(pre, size)
    return pre.view(pre.shape[0], pre.shape[1] // size, size).amax(2)


def _best(keys: Tensor, count: int) -> Tensor:
    return keys.topk(min(count, keys.numel()), sorted=False).values


def _above_a_guess(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor | None:
    """Return the same keys from the pairs that reach a threshold estimated on the first chunk; None if the estimate is
    too high, or too low to save work."""
    dict_size, guess, found = W_enc.shape[1], torch.tensor(-1.0, dtype=torch.float32), []
    groups = Groups.of(dict_size, 2 * pairs / x.shape[0])
    for number, part in enumerate(parts := chunks(x, dict_size)):
        chunk = Chunk.of(part, W_enc, b_enc, precision, groups)
        if guess < 0:
            guess = _quantile(chunk.tiles, 1.3 * pairs / (x.shape[0] * dict_size))
        near = chunk.reaching(guess, most=4 * pairs / x.shape[0] * len(part) + 64)
        if near is None:
            return None
        values, rows, latents = near
        found.append(keys_of(values, (rows + number * parts[0].shape[0]) * dict_size + latents))
        del chunk
    keys = torch.cat(found)
    return _best(keys, pairs) if keys.numel() >= pairs or guess <= _SMALLEST else None


def _quantile(tiles: list[Tensor], share: float) -> Tensor:
    """Return a positive value that about `share` of the tiles' entries exceed, from a sample of each at a stride."""
    step = max(1, int(sum(tile.numel() for tile in tiles) * share / _SAMPLE))
    sample = torch.cat([tile.flatten()[:: step | 1] for tile in tiles])
    rank = min(sample.numel(), int(share * sample.numel()) + 1)
    return sample.topk(rank, sorted=False).values.min().clamp_min(_SMALLEST)


def above(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor, most: float, precision: Precision
) -> tuple[Tensor, Tensor] | None:
    """Return pre-activations above `floor` (dict_size,) or (), and their places = row * dict_size + latent, in order;
    None if they are more than the share `most` of a chunk."""
    values, places, first = [], [], 0
    for chunk in chunks(x, W_enc.shape[1]):
        fresh, place = _above_of(affine_no_grad(chunk, W_enc, b_enc, precision), floor)
        if place.numel() > most * chunk.shape[0] * W_enc.shape[1]:
            return None
        values.append(fresh)
        places.append(place + first)
        first += chunk.shape[0] * W_enc.shape[1]
    return torch.cat(values), torch.cat(places)


def _above_of(pre: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    place = true_places((pre <= floor).logical_not_().flatten())
    return pre.flatten().index_select(0, place), place
