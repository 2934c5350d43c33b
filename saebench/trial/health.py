"""Checks of a running training: errors for a batch or loss that is not finite, and for a collapse at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.errors import DataError
from saebench.saes.loss import Loss

COLLAPSE = 2.5
"""Ratio of the final training FVU to its minimum above which the training has collapsed."""
_FVU_WEIGHT, _STEPS_TO_COLLAPSE = 0.1, 50
"""Weight of one step in the running average; steps before which nothing is checked."""


class DivergedError(FloatingPointError):
    """The loss became NaN or infinite; `samples` is the count at the first such step."""

    def __init__(self, samples: int) -> None:
        super().__init__(f"the loss became NaN or infinite at {samples} samples")
        self.samples = samples


class CollapsedError(FloatingPointError):
    """The training collapsed: at its end the training FVU, a running average, is a multiple of its minimum."""

    def __init__(self, now: float, best: float, lr: float) -> None:
        said = f"training FVU {now:.3g} at its end, {best:.3g} before"
        super().__init__(f"training collapsed: {said}; lr {lr:g} is too high")


class BadBatchError(DataError, ValueError):
    """A training batch held NaN or infinity; `samples` is the count at the first such step. The user's data is at
    fault: another attempt would end the same way."""

    def __init__(self, samples: int) -> None:
        super().__init__(f"the training batch at {samples} samples holds NaN or inf")
        self.samples = samples


class Health:
    """Tensors on the device that a step updates in place, so that nothing waits for the device before `check`."""

    def __init__(self, device: torch.device) -> None:
        self.bad = torch.full((2,), -1, device=device)
        """Samples at the first batch and at the first loss that was not finite; -1: none."""
        self.fvu = torch.full((2,), torch.inf, device=device, dtype=torch.float32)
        """Running average of the training FVU, and its minimum."""

    @torch.no_grad()
    def update(self, loss: Loss, x: Tensor, samples: Tensor | int) -> None:
        """Record a step on x (B, d_in) before which `samples` examples were seen."""
        fine = torch.stack([x.sum(), loss.total]).isfinite()
        self.bad.copy_(torch.where((self.bad >= 0) | fine, self.bad, samples))
        level = torch.where(self.fvu[0].isinf(), loss.fvu, self.fvu[0].lerp(loss.fvu, _FVU_WEIGHT))
        self.fvu.copy_(torch.stack([level, torch.minimum(level, self.fvu[1])]))

    def check(self) -> None:
        """Wait for the device; raise BadBatchError or DivergedError if a batch or loss was not finite."""
        batch, loss = self.bad.tolist()
        if batch >= 0:
            raise BadBatchError(batch)
        if loss >= 0:
            raise DivergedError(loss)

    def check_collapse(self, steps: int, lr: float) -> None:
        """Raise CollapsedError if the FVU ends far above its best."""
        if steps >= _STEPS_TO_COLLAPSE:
            now, best = self.fvu.tolist()
            if now > COLLAPSE * best:
                raise CollapsedError(now, best, lr)
