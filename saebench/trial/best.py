"""The SAE of the mark with the lowest validation FVU, kept during training (`train.keep: best`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.metrics import EVAL
from saebench.saes import SAE

KEY = f"{EVAL}fvu"
"""The metric compared at marks, for every objective of the search: all types minimise it."""


class BestMark:
    """A copy of the weights of the best mark so far, on the CPU.

    Marks count only if sparsity is held (k, or `target_l0`): under a fixed penalty L0 falls during training, and an
    early mark has a low FVU because it is not sparse yet.
    """

    def __init__(self, sae: SAE, keep: str) -> None:
        penalty = sae.config.penalty
        self.active = keep == "best" and (penalty is None or penalty.target_l0 is not None)
        self.fvu, self.samples = float("inf"), 0
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def offer(self, sae: SAE, values: dict[str, float], samples: int) -> None:
        """Copy the weights of `sae`, calibrated and measured after `samples` examples, if no mark was better."""
        if self.active and values[KEY] < self.fvu:
            self.fvu, self.samples = values[KEY], samples
            self._weights = {name: t.detach().cpu().contiguous().clone() for name, t in sae.state_dict().items()}

    def restore(self, sae: SAE, samples: int) -> bool:
        """Load into `sae`, at `samples` examples, the weights of a better earlier mark; return whether there is one."""
        if not self._weights or self.samples >= samples:
            return False
        sae.load_state_dict(self._weights)
        return True

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors by "best.name" and the mark."""
        return {f"best.{name}": t for name, t in self._weights.items()}, {"fvu": self.fvu, "samples": self.samples}

    def load_state_dict(self, tensors: dict[str, Tensor], mark: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned; other tensors are ignored."""
        self._weights = {n.removeprefix("best."): t for n, t in tensors.items() if n.startswith("best.")}
        self.fvu, self.samples = float(mark["fvu"]), int(mark["samples"])
