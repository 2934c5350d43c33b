"""The straight-through estimator against integrals that are known."""

from __future__ import annotations

import formulas
import pytest
import torch
from torch import Tensor

from saebench.config import JumpReLUConfig
from saebench.saes import Moment, make_sae
from saebench.saes.jumprelu import JumpReLU, JumpReLUSAE


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    latents, l0 = JumpReLU.apply(pre, threshold, torch.tensor(bandwidth), len(pre))  # type: ignore[no-untyped-call]
    return latents, l0


def test_values_by_hand() -> None:
    pre = torch.tensor([[0.5, 2.0, -1.0], [1.0, 1.5, 3.0]])
    latents, l0 = jump(pre, torch.tensor([0.5, 1.75, 0.1]), 1.0)
    assert latents.tolist() == [[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]  # 0.5 does not exceed 0.5
    assert l0.item() == 1.5


def test_gradients_by_hand() -> None:
    """threshold (1, 2), width 1: the window of the first is (0.5, 1.5), of the second (1.5, 2.5).
    d sum(latents): column 0 has 0.75 and 1.25 in the window: -(1 / 1) * 2; column 1 has 2.25: -(2 / 1) * 1.
    d l0 = -(1 / 1) * (2, 1) / 2 rows."""
    pre = torch.tensor([[0.75, 2.25], [1.25, 3.0]], requires_grad=True)
    threshold = torch.tensor([1.0, 2.0], requires_grad=True)
    latents, l0 = jump(pre, threshold, 1.0)
    to_pre, to_threshold = torch.autograd.grad(latents.sum(), (pre, threshold), retain_graph=True)
    assert to_pre.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert to_threshold.tolist() == [-2.0, -2.0]
    to_pre, to_threshold = torch.autograd.grad(l0, (pre, threshold))
    assert to_pre.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert to_threshold.tolist() == [-1.0, -0.5]


@pytest.mark.parametrize("bandwidth", [0.01, 0.1, 1.0])
def test_the_estimator_is_right_for_every_bandwidth(bandwidth: float) -> None:
    """For pre uniform on (-3, 3) and threshold t: E latents = (9 - t^2) / 12, P(fires) = (3 - t) / 6, so the slopes
    are -t / 6 and -1 / 6, whatever the width of the kernel. An estimator divided by the width twice, without the
    factor t, or fed with what the jump has cut already (half the window) is off by 1 / width, 1 / t or 2."""
    n = 600_000
    pre = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 6 - 3
    for t in (0.6, 1.3):
        threshold = torch.tensor([t], dtype=torch.float64, requires_grad=True)
        latents, l0 = jump(pre[:, None], threshold, bandwidth)
        assert latents.mean().item() == pytest.approx((9 - t * t) / 12, rel=1e-4)
        (slope,) = torch.autograd.grad(latents.mean(), threshold, retain_graph=True)
        assert slope.item() == pytest.approx(-t / 6, rel=1e-3)
        (slope,) = torch.autograd.grad(l0, threshold)
        assert slope.item() == pytest.approx(-1 / 6, rel=1e-3)


def made(preprocess: str = "center_scale", scale: float = 1.0, **fields: float | str) -> JumpReLUSAE:
    config = JumpReLUConfig(dict_size=64, preprocess=preprocess, **fields)  # type: ignore[arg-type]
    sae = make_sae(config, 8, scale * formulas.cloud(4000), 0)
    assert isinstance(sae, JumpReLUSAE)
    return sae


@pytest.mark.parametrize(("fields", "l0"), [({"target_l0": 5.0}, 5), ({"l0_coeff": 0.1}, 2)])
def test_it_starts_at_the_target_or_at_a_quarter_of_the_width(fields: dict[str, float], l0: float) -> None:
    fires = made(**fields, start="data").encode(formulas.cloud(4000, seed=2)) > 0
    assert float(fires.sum(1).double().mean()) == pytest.approx(l0, rel=0.05)


def test_the_bandwidth_is_in_units_of_the_pre_activations() -> None:
    small, large = made("none", l0_coeff=0.1), made("none", 100.0, l0_coeff=0.1)
    assert float(large.bandwidth) == pytest.approx(100 * float(small.bandwidth), rel=1e-3)
    torch.testing.assert_close(large.threshold, 100 * small.threshold, rtol=0.01, atol=0)


def test_the_threshold_is_raw_float32_positive_and_learns_faster() -> None:
    sae = made(l0_coeff=0.1, threshold_lr_factor=7.0)
    assert sae.threshold.dtype == torch.float32
    assert sae.learning_rate_factors() == {"threshold": 7.0}
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    sae.constrain()
    assert (sae.threshold > 0).all()


def test_latents_that_fall_silent_are_reported() -> None:
    """The dead count of a JumpReLU SAE must move: it is fed by `fired`."""
    sae = made(l0_coeff=0.1)
    with torch.no_grad():
        sae.threshold[:10] = 1e6
    fired = sae.loss(formulas.cloud(4000), Moment()).fired
    assert not fired[:10].any()
    assert fired[10:].any()


def test_calibration_keeps_thresholds_positive() -> None:
    sae = made(target_l0=5.0)
    with torch.no_grad():
        sae.threshold.fill_(1e-3)
    sae.offset.fill_(-10.0)
    assert (sae.encode(formulas.cloud(50)) >= 0).all()
