"""The weight of the sparsity penalty: a ramp to a fixed coefficient, or a controller that reaches a given L0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saebench.config import Penalty, SAEConfig

_ELASTICITY = 0.74
"""-d log L0 / d log coeff once training has settled: FVU falls as L0^-0.35, and the penalty balances its slope."""
_MEMORY = 0.01
"""Time constant of the L0 average, as a share of the run."""
_RESPONSE = 0.03
"""Time the integral takes to correct an error, as a share of the run."""
_TRAVEL = 0.06
"""The integral takes at least the steps in which a parameter can move this far; pre-activations spread over 0.05."""
_DAMPING = 2.0
"""Proportional part, in units of 1 / elasticity."""
_NO_PENALTY = Penalty("l1", fixed=0.0, target_l0=None, warmup=0.0)


def ramp(progress: Tensor | float, length: float) -> Tensor | float:
    """Return a linear rise from 0 to 1 over the first `length` of the run; both arguments are shares of the run."""
    if not length:
        return 1.0
    done = progress / length
    return done.clamp(0, 1) if isinstance(done, Tensor) else min(1.0, max(0.0, done))


class SparsityControl:
    """Call coeff() before a step, update(l0) after it; the state stays on the device and needs no sync.

    A fixed coefficient rises linearly over `sparsity_warmup`, then stays constant. With `target_l0` the set point falls
    from the first batch's L0 to the target over `sparsity_warmup`, and a proportional-integral controller follows it
    with the logarithm of the coefficient: log coeff = I + p * e, dI = e / response, e = log(average L0 / set point).

    It controls the L0 of training batches, which is also what BatchTopK's k sets; `SAE.calibrate` then sets the L0 on
    rows that were not trained on. Controlling the latter was tried: at the same held-out L0 the error was 1 to 3%
    higher, because an SAE that has memorised its training rows then gets too few latents on them.
    """

    def __init__(self, config: SAEConfig, steps: int, lr: float, device: torch.device | str) -> None:
        penalty = config.penalty or _NO_PENALTY
        self.fixed, self.target, self.warmup = penalty.fixed, penalty.target_l0 or 1.0, penalty.warmup
        self.steers = penalty.fixed is None
        self.memory = max(5.0, _MEMORY * steps)
        self.response = max(_RESPONSE * steps, _TRAVEL / lr) * _ELASTICITY
        start = 0.14 / self.target if penalty.norm == "l0" else 0.9 / self.target**0.5
        self.integral = torch.tensor(start, device=device, dtype=torch.float32).log()
        self.error = torch.zeros((), device=device, dtype=torch.float32)
        self.average = torch.zeros((), device=device, dtype=torch.float32)
        self.seen = torch.zeros((), device=device, dtype=torch.float32)
        self.first = torch.zeros((), device=device, dtype=torch.float32)

    def coeff(self, progress: Tensor | float) -> Tensor | float:
        """Return the weight for the step at this share of the run."""
        if not self.steers:
            return (self.fixed or 0.0) * ramp(progress, self.warmup)
        return (self.integral + _DAMPING / _ELASTICITY * self.error).exp()

    @torch.no_grad()
    def update(self, l0: Tensor, progress: Tensor | float, authority: Tensor | float = 1.0) -> None:
        """Update the controller with the L0 of a batch that was trained on with coeff(progress)."""
        if not self.steers:
            return
        now = l0.clamp_min(1e-3).log()
        self.first.copy_(torch.where(self.seen == 0, now, self.first))
        self.seen += 1
        self.average += (now - self.average) / self.seen.clamp_max(self.memory)
        done = ramp(progress, self.warmup)
        goal = math.log(self.target) * done + self.first * (1 - done)
        self.error.copy_((self.average - goal).clamp(-1, 1))
        self.integral += self.error * (authority / self.response)

    def state_dict(self) -> dict[str, Tensor]:
        return {n: getattr(self, n) for n in ("integral", "error", "average", "seen", "first")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
