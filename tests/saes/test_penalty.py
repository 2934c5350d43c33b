"""The ramp, and the controller on a plant one can compute: an SAE whose L0 follows its coefficient with a lag."""

from __future__ import annotations

import math

import pytest
import torch

from saebench.config import JumpReLUConfig, TopKConfig, VanillaConfig
from saebench.saes.penalty import SparsityControl


def control(steps: int = 500, lr: float = 1e-3, **fields: float) -> SparsityControl:
    return SparsityControl(VanillaConfig(dict_size=64, **fields), steps, lr, "cpu")  # type: ignore[arg-type]


def test_who_has_a_penalty() -> None:
    assert VanillaConfig(dict_size=8, l1_coeff=0.1).penalty is not None
    assert TopKConfig(dict_size=8, k=2).penalty is None


def test_a_fixed_coefficient_ramps_up_and_stays_whatever_l0_does() -> None:
    ramp = control(l1_coeff=0.4, sparsity_warmup=0.2)
    seen = []
    for progress in (0.0, 0.05, 0.1, 0.2, 0.7, 1.0):
        seen.append(ramp.coeff(progress))
        ramp.update(torch.tensor(1000.0), progress)
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4, 0.4])
    assert control(l1_coeff=0.4, sparsity_warmup=0.0).coeff(0.0) == 0.4
    assert SparsityControl(JumpReLUConfig(dict_size=8, l0_coeff=0.5), 10, 1e-3, "cpu").coeff(1.0) == 0.5


@pytest.mark.parametrize("target", [8.0, 32.0, 128.0])
@pytest.mark.parametrize("right_coeff", [0.003, 0.1, 3.0])
@pytest.mark.parametrize("lag", [5, 40])
def test_the_controller_finds_the_coefficient_that_gives_the_target(
    target: float, right_coeff: float, lag: int
) -> None:
    """log L0 relaxes, within `lag` steps, to log target - 0.74 log(coeff / right_coeff), with noise of 3%."""
    steps = 1500
    it, log_l0 = control(steps, target_l0=target), math.log(3 * target)
    noise = torch.Generator().manual_seed(0)
    history = []
    for step in range(steps):
        coeff = float(it.coeff(step / steps))
        log_l0 += (math.log(target) - 0.74 * math.log(coeff / right_coeff) - log_l0) / lag
        history.append(log_l0)
        it.update(torch.tensor(math.exp(log_l0 + 0.03 * float(torch.randn((), generator=noise)))), step / steps)
    assert math.exp(history[-1]) == pytest.approx(target, rel=0.02)
    assert float(it.coeff(1.0)) == pytest.approx(right_coeff, rel=0.15)
    assert max(history) < math.log(3 * target) + 2


def test_no_latent_firing_does_not_break_it() -> None:
    it = control(target_l0=8.0)
    for step in range(50):
        it.update(torch.tensor(0.0), step / 50)
    assert 0 < float(it.coeff(1.0)) < 1


def test_its_state_continues_exactly() -> None:
    one, two = control(target_l0=8.0), control(target_l0=8.0)
    for step in range(30):
        one.update(torch.tensor(50.0 - step), step / 500)
    two.load_state_dict({n: t.clone() for n, t in one.state_dict().items()})
    for step in range(30, 60):
        for it in (one, two):
            it.update(torch.tensor(20.0), step / 500)
        assert torch.equal(torch.as_tensor(one.coeff(0.1)), torch.as_tensor(two.coeff(0.1)))
