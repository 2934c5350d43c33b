"""The ramp, and the controller on a plant one can compute: an SAE whose L0 follows its coefficient with a lag."""

from __future__ import annotations

import math

import pytest
import torch

from saebench.config import JumpReLUConfig, TopKConfig, VanillaConfig
from saebench.saes.penalty import Margins, SparsityControl


def control(lr: float = 1e-2, **fields: float) -> SparsityControl:
    return SparsityControl(VanillaConfig(dict_size=64, **fields), lr, "cpu")  # type: ignore[arg-type]


def margins(window: float, density: float) -> Margins:
    return Margins(torch.tensor(window), torch.tensor(density))


def test_who_has_a_penalty() -> None:
    assert VanillaConfig(dict_size=8, l1_coeff=0.1).penalty is not None
    assert TopKConfig(dict_size=8, k=2).penalty is None


def test_a_fixed_coefficient_ramps_up_and_stays() -> None:
    it = control(l1_coeff=0.4, sparsity_warmup=0.2)
    assert not it.steers
    seen = [it.coeff(progress) for progress in (0.0, 0.05, 0.1, 0.2, 0.7, 1.0)]
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4, 0.4])
    assert control(l1_coeff=0.4, sparsity_warmup=0.0).coeff(0.0) == 0.4
    assert SparsityControl(JumpReLUConfig(dict_size=8, l0_coeff=0.5), 1e-3, "cpu").coeff(1.0) == 0.5


def test_margins_by_hand() -> None:
    """Positive: 1, 2, 3, 6, mean 3, window 1.5: one of them lies in it, for 2 rows: 0.5 latents per 1.5."""
    found = Margins.of(torch.tensor([[1.0, -4.0, 2.0], [3.0, 6.0, 0.0]]), rows=2)
    assert (found.window.item(), found.density.item()) == pytest.approx((1.5, 1 / 3))
    none = Margins.of(torch.tensor([[-1.0]]), rows=1)
    assert (none.window.item(), none.density.item()) == (0, 0)


def test_a_step_by_hand() -> None:
    """Target 8, L0 12, 40 latents per unit of shift: 4 / 40 = 0.1 would do it. At lr 1e-2 the gain is 0.01 * 40 /
    (0.1 * 8) = 0.5, more than the 0.3 allowed; at 1e-3 it is 0.05. The logarithm of the coefficient moves by 0.2 *
    shift / 0.01, at most by 0.2."""
    for lr, shift in ((1e-2, 0.03), (1e-3, 0.005)):
        it = control(target_l0=8.0, sparsity_warmup=0.0)
        before = float(it.log_coeff)
        assert float(it.update(torch.tensor(12.0), margins(1.0, 40.0), 0.5, lr)) == pytest.approx(shift)
        assert float(it.log_coeff) - before == pytest.approx(0.2 * min(1.0, shift / 1e-2))
    narrow = control(target_l0=8.0, sparsity_warmup=0.0).update(torch.tensor(12.0), margins(0.01, 40.0), 0.5, 1e-2)
    assert float(narrow) == pytest.approx(0.3 * 0.01), "never more than the margins that were seen"


@pytest.mark.parametrize("target", [8.0, 32.0, 128.0])
@pytest.mark.parametrize("right_coeff", [0.003, 0.1, 3.0])
@pytest.mark.parametrize("lag", [1, 10])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_l0_is_held_and_the_coefficient_found(target: float, right_coeff: float, lag: int, lr: float) -> None:
    """At a threshold of 0 three times the target fire, with margins that are exponential with mean 0.05. An optimiser
    moves the threshold by lr tanh(log(coeff / right_coeff)), averaged over `lag` steps; L0 is seen with noise of 3%."""
    steps, spread = 600, 0.05
    it, threshold, speed = control(lr, target_l0=target), 0.0, 0.0
    noise = torch.Generator().manual_seed(0)
    history, coefficients = [], []
    for step in range(steps):
        l0 = 3 * target * math.exp(-threshold / spread)
        history.append(l0)
        seen = torch.tensor(l0 * math.exp(0.03 * float(torch.randn((), generator=noise))))
        coefficients.append(float(torch.as_tensor(it.coeff(step / steps)).log()))
        speed += (lr * math.tanh(coefficients[-1] - math.log(right_coeff)) - speed) / lag
        within = l0 * (1 - math.exp(-0.5)) / (spread / 2)
        threshold += speed + float(it.update(seen, margins(spread / 2, within), step / steps, lr))
    late = history[steps // 3 :]
    assert max(abs(value / target - 1) for value in late) < 0.12
    assert sum(late) / len(late) == pytest.approx(target, rel=0.02)
    assert max(history) <= 4 * 3 * target
    mean = sum(coefficients[steps // 2 :]) / (steps - steps // 2)
    assert mean == pytest.approx(math.log(right_coeff), abs=0.2)


def test_no_latent_firing_lowers_thresholds_and_penalty() -> None:
    it = control(target_l0=8.0)
    before = float(it.coeff(0.0))
    for step in range(50):
        assert float(it.update(torch.tensor(0.0), margins(0.0, 0.0), step / 50, 1e-2)) == pytest.approx(-1e-2)
    assert 0 < float(it.coeff(1.0)) < before


def test_a_target_out_of_reach_is_given_up_and_taken_up_again() -> None:
    """20 latents are asked for, 10 fire whatever the thresholds are: these must not fall for ever."""
    it = control(target_l0=20.0, sparsity_warmup=0.0)
    shifts = [float(it.update(torch.tensor(10.0), margins(1.0, 40.0), 0.5, 1e-2)) for _ in range(100)]
    assert shifts[0] < 0
    assert shifts[-1] == 0
    assert float(it.coeff(0.5)) == pytest.approx(1e-4 * 0.9 / 20**0.5, rel=1e-3)
    assert float(it.update(torch.tensor(30.0), margins(1.0, 40.0), 0.5, 1e-2)) > 0
    assert float(it.coeff(0.5)) > 1.1e-4 * 0.9 / 20**0.5
    assert float(it.update(torch.tensor(10.0), margins(1.0, 40.0), 0.5, 1e-4)) < 0


def test_its_state_continues_exactly() -> None:
    one, two = control(target_l0=8.0), control(target_l0=8.0)
    for step in range(30):
        one.update(torch.tensor(50.0 - step), margins(0.1, 30.0), step / 500, 1e-2)
    two.load_state_dict({n: t.clone() for n, t in one.state_dict().items()})
    for step in range(30, 60):
        shifts = [it.update(torch.tensor(20.0), margins(0.1, 30.0), step / 500, 1e-2) for it in (one, two)]
        assert torch.equal(*shifts)
        assert torch.equal(torch.as_tensor(one.coeff(0.1)), torch.as_tensor(two.coeff(0.1)))
