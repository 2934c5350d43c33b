"""The weight of the sparsity penalty: a ramp to a fixed coefficient, or a controller that reaches a given L0."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from saebench.config import Penalty, SAEConfig

_GAIN = 0.3
"""Share of the error in L0 that one step takes back."""
_NOISE = 0.1
"""Relative error in L0 for which a step moves thresholds by one learning rate at most, as the optimiser does."""
_RATE = 0.2
"""Change of log coeff per step while thresholds are moved by one learning rate in every step."""
_LEAST = math.log(1e-4)
"""Least log coeff, from its start: there the penalty is off, and thresholds are not what keeps latents from firing."""
_NO_PENALTY = Penalty("l1", fixed=0.0, target_l0=None, warmup=0.0)


def ramp(progress: Tensor | float, length: float) -> Tensor | float:
    """Return a linear rise from 0 to 1 over the first `length` of the run; both arguments are shares of the run."""
    if not length:
        return 1.0
    done = progress / length
    return done.clamp(0, 1) if isinstance(done, Tensor) else min(1.0, max(0.0, done))


class Margins(NamedTuple):
    """How the L0 of a batch answers to a common shift of all thresholds."""

    window: Tensor
    """Half the mean margin of the latents that fire, scalar: the largest shift for which `density` is meant."""
    density: Tensor
    """Latents per example that cease to fire, per unit of shift, scalar."""

    @classmethod
    def of(cls, margins: Tensor, rows: int) -> Self:
        """Return that of a batch of `rows` examples; margins: by how much each pre-activation exceeds its threshold,
        in any shape. Those that do not exceed it do not count."""
        over = margins > 0
        window = margins.relu().sum() / over.sum().clamp_min(1) / 2
        within = (over & (margins < window)).sum()
        return cls(window, within / (rows * window.clamp_min(torch.finfo(window.dtype).tiny)))


class SparsityControl:
    """Call coeff() before a step, update() after it; the state stays on the device and needs no sync.

    A fixed coefficient rises linearly over `sparsity_warmup`, then stays constant. With `target_l0` the set point falls
    from the first batch's L0 to the target over `sparsity_warmup`, and every step has two parts. All thresholds are
    shifted by one number, a part of a Newton step to the set point, so that L0 follows at once. And log coeff changes
    by that shift, in learning rates: under a penalty that is too weak the optimiser lowers the thresholds in every
    step, and the shift has to take it back; under the right one it has nothing to do. A target that cannot be reached
    without a penalty either is given up: the coefficient stays at 1e-4 of its start, and thresholds are only raised
    (unless nothing fires at all).

    It controls the L0 of training batches, which is also what BatchTopK's k sets; `SAE.calibrate` then sets the L0 on
    rows that were not trained on. Controlling the latter was tried: at the same held-out L0 the error was 1 to 3%
    higher, because an SAE that has memorised its training rows then gets too few latents on them.
    """

    def __init__(self, config: SAEConfig, lr: float, device: torch.device | str) -> None:
        penalty = config.penalty or _NO_PENALTY
        self.fixed, self.target, self.warmup = penalty.fixed, penalty.target_l0 or 1.0, penalty.warmup
        self.steers, self.lr = penalty.fixed is None, lr
        start = 0.14 / self.target if penalty.norm == "l0" else 0.9 / self.target**0.5
        self.log_coeff = torch.tensor(start, device=device, dtype=torch.float32).log()
        self.least = math.log(start) + _LEAST
        self.first = torch.zeros((), device=device, dtype=torch.float32)

    def coeff(self, progress: Tensor | float) -> Tensor | float:
        """Return the weight for the step at this share of the run."""
        if not self.steers:
            return (self.fixed or 0.0) * ramp(progress, self.warmup)
        return self.log_coeff.exp()

    @torch.no_grad()
    def update(self, l0: Tensor, margins: Margins, progress: Tensor | float, lr: Tensor | float) -> Tensor:
        """Return the number by which to raise all thresholds after a step at learning rate `lr` on a batch with this L0
        and these margins, at this share of the run; adjust the coefficient."""
        self.first.copy_(torch.where(self.first == 0, l0.clamp_min(1e-3), self.first))
        done = ramp(progress, self.warmup)
        goal = self.first ** (1 - done) * self.target**done
        density = margins.density.clamp_min(0.01 * goal / margins.window.clamp_min(1e-12))
        gain = (lr * density / (_NOISE * goal)).clamp_max(_GAIN)
        shift = gain * ((l0 - goal) / density).clamp(-margins.window, margins.window)
        shift = torch.where(l0 > 0, shift, torch.zeros_like(shift) - lr)
        self.log_coeff.add_(_RATE * (shift / self.lr).clamp(-1, 1)).clamp_min_(self.least)
        return torch.where((self.log_coeff > self.least) | (l0 == 0), shift, shift.clamp_min(0.0))

    def state_dict(self) -> dict[str, Tensor]:
        return {"log_coeff": self.log_coeff, "first": self.first}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
