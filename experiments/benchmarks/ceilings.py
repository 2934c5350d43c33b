"""What the device can do at most, measured in the same run, and how much of that a step reaches.

A step cannot take less than its floor. Operations: the encoder's product, and five sums over the kept pairs (decoding,
the gradients to the codes, to both matrices and to b_dec). Bytes: every gradient written once, Adam's reading and
writing of parameter, gradient and moments, every pre-activation written and read once, the pairs, the batch. It is the
same for all types, counted at k latents per row: what a type computes beyond that is its own choice.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from step_parts import FLOORS
from timing import Arithmetic, Clock, Contestant, synchronize, time_steps
from torch import Tensor
from work import Work

from saebench.saes.kernels import product

COPIED = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Numbers in a copy: 256 MiB and 1 GiB of float32, many times a cache."""
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices of a product."""
QUICK = 16
"""A quick run divides both by this."""
SAMPLES = 9
PAIR_BYTES = 2 * (4 + 8)
"""A value and an index, written and read."""


@dataclass(frozen=True)
class Ceilings:
    copy: float
    """Bytes per millisecond, read and written."""
    product: dict[Arithmetic, float]
    """Operations per millisecond."""

    def __str__(self) -> str:
        products = ", ".join(f"{name} {rate / 1e9:.3g} TFLOP/s" for name, rate in self.product.items())
        return f"copy {self.copy / 1e6:,.0f} GB/s (read and written), product {products}"


@dataclass(frozen=True)
class Floor:
    """Of one step."""

    operations: float
    bytes: float

    @classmethod
    def of(cls, work: Work) -> Floor:
        weights, pairs = 2 * work.d_in * work.dict_size, work.batch * work.k
        pre_activations = work.batch * work.dict_size
        per_weight = FLOORS["gradients of the weights"][0] + FLOORS["Adam"][0]
        per_pre_activation = 4 + FLOORS["selection"][1]
        moved = per_weight * weights + per_pre_activation * pre_activations
        return cls(
            operations=2.0 * work.d_in * (pre_activations + 5 * pairs),
            bytes=moved + PAIR_BYTES * pairs + 4.0 * work.batch * work.d_in,
        )

    def by_product(self, ceilings: Ceilings, arithmetic: Arithmetic) -> float:
        """Milliseconds."""
        return self.operations / ceilings.product.get(arithmetic, ceilings.product["float32"])

    def by_copy(self, ceilings: Ceilings) -> float:
        """Milliseconds."""
        return self.bytes / ceilings.copy

    def describe(self, ceilings: Ceilings) -> str:
        return (
            f"Floor of a step: {self.operations / 1e9:.3g} GFLOP, {self.by_product(ceilings, 'float32'):.3g} ms in "
            f"float32; {self.bytes / 1e6:.0f} MB, {self.by_copy(ceilings):.3g} ms."
        )


def measure_ceilings(device: torch.device, clock: Clock = time.perf_counter, quick: bool = False) -> Ceilings:
    shrink = QUICK if quick else 1
    numbers, side = COPIED[device.type] // shrink, SIDE[device.type] // shrink
    return Ceilings(copy_rate(device, numbers, clock), product_rates(device, side, clock))


def copy_rate(device: torch.device, numbers: int, clock: Clock = time.perf_counter) -> float:
    if device.type == "cuda":
        numbers = min(numbers, torch.cuda.mem_get_info(device)[0] // 16)
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)
    return 8 * numbers / _median_ms(Contestant(lambda: target.copy_(source)), device, clock)


def product_rates(device: torch.device, side: int, clock: Clock = time.perf_counter) -> dict[Arithmetic, float]:
    """Of square matrices of random numbers; float32 by the faster library where there are two (`kernels.product`)."""
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    lower = a.bfloat16(), b.bfloat16()

    def by(one: Tensor, other: Tensor, tf32: bool = False) -> float:
        return 2 * side**3 / _median_ms(Contestant(lambda: product(one, other), tf32=tf32), device, clock)

    rates: dict[Arithmetic, float] = {"float32": by(a, b)}
    if device.type == "cuda":
        rates["tf32"] = by(a, b, tf32=True)
    return rates | {"bfloat16": by(*lower)}


def _median_ms(contestant: Contestant, device: torch.device, clock: Clock) -> float:
    with contestant.settings():
        for _ in range(3):
            contestant.step()
        synchronize(device)
        return statistics.median(time_steps(contestant.step, 1, device, clock) for _ in range(SAMPLES))
