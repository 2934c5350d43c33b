"""Which pairs of (row, latent) a k-sparse code keeps: exact choices, one chunk of pre-activations at a time.

A chunk is cut into groups of adjacent latents. The k best pairs lie in the k groups with the best maxima, because a
pair outside of them has k better ones, one in each. So a pass over the chunk for the maxima and two small choices
replace one choice among all of it. Choices are made among int64 keys that order like (value, lower place first): no
two are equal, so the result does not depend on algorithm, thread count, chunking or device.

Nothing here waits for a GPU except `above`; nothing has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from saebench.saes.kernels import Precision, affine_no_grad

CHUNK_ROWS = 256
"""Rows whose pre-activations exist at a time, halved until a chunk holds at most CHUNK_ELEMENTS of them."""
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
"""32 MiB of float32 on a CPU, where a chunk should stay in the cache; on a GPU, few large launches."""


def keys_of(values: Tensor, places: Tensor, signed: bool = False) -> Tensor:
    """Keys of float32 values; places are below 2^32. Without `signed` negative values count as 0."""
    if not signed:
        return ((values.relu().view(torch.int32) & 0x7FFFFFFF).long() << 32) - places
    bits = values.view(torch.int32).long()
    return (torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF)) << 32) - places


def places_of(keys: Tensor) -> Tensor:
    return -keys & 0xFFFFFFFF


def _group_size(dict_size: int, k: float) -> int:
    """A power of two that divides dict_size and balances the number of groups with the number of their members."""
    size = 1
    while k > 0 and dict_size % (2 * size) == 0 and 2 * k * (2 * size) ** 2 <= 3 * dict_size:
        size *= 2
    return size


def chunks(x: Tensor, dict_size: int) -> tuple[Tensor, ...]:
    rows = CHUNK_ROWS if x.device.type == "cpu" else 1 << 30
    most = CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"])
    while rows > 1 and min(rows, x.shape[0]) * dict_size > most:
        rows //= 2
    return torch.split(x, rows)


# Each chunk is handed straight to a function, so that it is gone before the next one is computed.


def topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: Precision, signed: bool) -> tuple[Tensor, Tensor]:
    """Values (rows, k) and latents (rows, k)."""
    found = [_topk_of(affine_no_grad(c, W_enc, b_enc, precision), k, signed) for c in chunks(x, W_enc.shape[1])]
    return torch.cat([values for values, _ in found]), torch.cat([latents for _, latents in found])


def _topk_of(pre: Tensor, k: int, signed: bool) -> tuple[Tensor, Tensor]:
    size = _group_size(pre.shape[1], k)
    latents = torch.arange(pre.shape[1] // size, device=pre.device).expand(pre.shape[0], -1)
    if k == pre.shape[1]:
        return pre, latents
    if size > 1:
        best = keys_of(max_pool1d(pre, size), latents, signed).topk(k, dim=1, sorted=False).indices
        latents = (best.unsqueeze(2) * size + torch.arange(size, device=pre.device)).flatten(1)
        pre = pre.gather(1, latents)
    best = keys_of(pre, latents, signed).topk(k, dim=1, sorted=False).indices
    return pre.gather(1, best), latents.gather(1, best)


def batchtopk(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor:
    """Keys of the best pairs of the batch, by place = row * dict_size + latent."""
    if x.device.type == "cpu":
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
        groups = places_of(_best(keys_of(max_pool1d(pre, size).flatten(), groups), pairs))
    places = first + groups.unsqueeze(1) * size + torch.arange(size, device=pre.device)
    return keys_of(pre[groups], places).flatten()


def _best(keys: Tensor, count: int) -> Tensor:
    return keys.topk(min(count, keys.numel()), sorted=False).values


def _above_a_guess(x: Tensor, W_enc: Tensor, b_enc: Tensor, pairs: int, precision: Precision) -> Tensor | None:
    """The same keys from the pairs above a threshold that the first chunk suggests; None where it was too high."""
    dict_size, guess, found = W_enc.shape[1], -1.0, []
    size = _group_size(dict_size, pairs / x.shape[0])
    for number, chunk in enumerate(parts := chunks(x, dict_size)):
        pre = affine_no_grad(chunk, W_enc, b_enc, precision).view(-1, size)
        if guess < 0:
            guess = _quantile(pre, 1.3 * pairs / (x.shape[0] * dict_size))
        found.append(_near(pre, guess, number * parts[0].shape[0] * dict_size))
        del pre
    keys = torch.cat(found)
    return _best(keys, pairs) if keys.numel() >= pairs or guess == 0.0 else None


def _near(pre: Tensor, guess: float, first: int) -> Tensor:
    size = pre.shape[1]
    groups = (max_pool1d(pre, size).flatten() <= guess).logical_not_().nonzero().squeeze(1)
    near = pre[groups]
    row, member = (near <= guess).logical_not_().nonzero(as_tuple=True)
    return keys_of(near[row, member], first + groups[row] * size + member)


def _quantile(pre: Tensor, share: float) -> float:
    """A value that about `share` of pre exceeds, at least 0, from a seventeenth of it."""
    sample = pre.flatten()[:: 17 if pre.numel() > 1 << 16 else 1]
    rank = min(sample.numel(), int(share * sample.numel()) + 1)
    return max(0.0, float(sample.topk(rank, sorted=False).values.min()))


def above(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor, most: float, precision: Precision
) -> tuple[Tensor, Tensor] | None:
    """Pre-activations above `floor` (dict_size,) or (), and their places = row * dict_size + latent, in order; None
    where they are more than the share `most` of a chunk."""
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
    place = (pre <= floor).logical_not_().flatten().nonzero().squeeze(1)
    return pre.flatten()[place], place
