"""Dead latents in training: how long each has not fired, and the list of those that AuxK may revive."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import DEAD_WINDOW, SAEConfig, TrainConfig
from saebench.saes import Dead
from saebench.saes.kernels import on_host

DEAD_SHARE = 16
"""Shortest default window of the types that revive latents: the run divided by this."""
FIRINGS = 64
"""Examples of that window, at least: those in which the average latent fires this often."""
SHORTEST_LIST = 64
"""Least length of a non-empty list of dead latents on a GPU; others are powers of two."""


class DeadLatents:
    """Counts examples since each of F latents fired; a latent is dead after `after` of them."""

    def __init__(self, dict_size: int, after: int, *, revives: bool, device: torch.device) -> None:
        self.after, self.revives = after, revives
        self.since_fired = torch.zeros(dict_size, dtype=torch.int64, device=device)
        self.index = torch.empty(0, dtype=torch.int64, device=device)
        self._lists: dict[int, Tensor] = {}

    @torch.no_grad()
    def update(self, fired: Tensor, examples: int) -> None:
        """Count `examples` more; latents of `fired` (F,) start again from 0."""
        self.since_fired.add_(examples).masked_fill_(fired, 0)

    def count(self) -> Tensor:
        """Return the number of dead latents, a scalar on the device."""
        return (self.since_fired >= self.after).sum()

    def relist(self, step: int, batch_size: int) -> None:
        """Make the list anew, eight times per window: its length is the one thing the host must wait for. On a GPU it
        is filled up to one of a few lengths, so that a step is one of a few kinds."""
        every = max(1, self.after // (8 * batch_size))
        if self.revives and step % every == 0:
            self.set((self.since_fired >= self.after).nonzero().squeeze(1))

    def set(self, latents: Tensor) -> None:
        """Set the list to these latents."""
        if on_host(latents):
            self.index = latents
            return
        count, none = latents.numel(), len(self.since_fired)
        length = 0 if count == 0 else min(none, max(SHORTEST_LIST, 1 << (count - 1).bit_length()))
        self.index = self._lists.setdefault(length, latents.new_empty(length)).fill_(none)
        self.index[:count] = latents

    def listed(self) -> Dead | None:
        """Return the latents on the list, and which of them have not fired since; None if nothing revives them."""
        if not self.revives:
            return None
        latents = self.index.clamp_max(len(self.since_fired) - 1)
        listed = self.index < len(self.since_fired)
        return Dead(latents, listed & (self.since_fired[latents] >= self.after))

    def load(self, since_fired: Tensor, index: Tensor) -> None:
        """Set counts and list to those of a checkpoint."""
        self.since_fired.copy_(since_fired)
        listed = index.to(self.since_fired.device)
        self.set(listed[listed < len(self.since_fired)])


def default_dead_after(config: SAEConfig, dict_size: int, train: TrainConfig, num_train: int) -> int:
    """Return min(one epoch, 100,000) examples, but at least five steps, as fewer are no evidence that a latent is dead.

    Where AuxK revives latents, a sixteenth of the run is enough (a short run cannot wait for an epoch), or as many
    examples as it takes the average latent to fire 64 times, if that is longer (experiments/recipe).
    """
    window = min(num_train, DEAD_WINDOW)
    if config.revives:
        (k,) = config.level.values()
        window = min(window, round(max(train.samples / DEAD_SHARE, FIRINGS * dict_size / k)))
    return max(window, 5 * train.batch_size)
