"""Milliseconds per step of several contestants in turns, on the CPU or on a GPU that works behind the host's back."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Step = Callable[[], object]
Clock = Callable[[], float]
Arithmetic = Literal["float32", "tf32", "bfloat16"]

WARM_UP = {"cpu": 2, "cuda": 64}
"""Untimed steps of each contestant before the first round: libraries set themselves up, kernels are compiled, graphs
are recorded; some latents are dead after 49 steps of the reference work."""
PILOT = 5
"""Steps by which it is decided how many make a turn on a GPU."""
TURN_MS = 40.0
"""What a turn on a GPU should last: long enough that waiting at its end does not count."""
STEPS_A_TURN = (3, 50)


@dataclass(frozen=True)
class Contestant:
    step: Step
    arithmetic: Arithmetic = "float32"
    """What the encoder's product is computed in: which ceiling it has."""
    tf32: bool = False
    """Whether float32 products may use tf32 while this one runs (torch's default: no)."""

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.tf32 else before)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: Step, count: int, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Milliseconds per step of `count` steps without a wait between them."""
    synchronize(device)
    start = clock()
    for _ in range(count):
        step()
    synchronize(device)
    return 1e3 * (clock() - start) / count


def steps_a_turn(contestant: Contestant, device: torch.device, clock: Clock) -> int:
    """Warms the contestant up. One step on the CPU; on a GPU as many as last TURN_MS, within STEPS_A_TURN."""
    for _ in range(WARM_UP[device.type]):
        contestant.step()
    if device.type == "cpu":
        return 1
    least, most = STEPS_A_TURN
    return max(least, min(most, round(TURN_MS / time_steps(contestant.step, PILOT, device, clock))))


def measure(
    contestants: dict[str, Contestant],
    rounds: int,
    device: torch.device,
    failed: dict[str, str],
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds per step of each contestant in each round. One that raises is taken out of `contestants`, and is in
    `failed` with the reason: it is foreign code, and the others should get its memory and their table."""
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    for number in range(-1, rounds):
        for name, contestant in list(contestants.items()):
            try:
                with contestant.settings():
                    if number < 0:
                        counts[name], times[name] = steps_a_turn(contestant, device, clock), []
                        continue
                    if counts[name] > 1:
                        contestant.step()  # what the contestant before left in caches
                    times[name].append(time_steps(contestant.step, counts[name], device, clock))
            except Exception as error:
                failed[name] = reason(error)
                times.pop(name, None)
                del contestants[name], contestant
                release(device)
    return times


def release(device: torch.device) -> None:
    """Give memory back that nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Class and first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200].rstrip('.')}"


def spread(times: dict[str, list[float]]) -> float:
    """The largest quartile range of a contestant's rounds, as a share of its median."""
    shares = [0.0]
    for values in times.values():
        if len(values) > 1:
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            shares.append((high - low) / middle)
    return max(shares)
