"""Thresholds that exactly so many values exceed."""

from __future__ import annotations

import pytest
import torch

from saebench.saes.calibrate import activation_quantile, threshold_for


@pytest.mark.parametrize("count", [1, 2, 37, 400, 999])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_exactly_count_values_exceed_it_however_they_are_chunked(count: int, chunk: int) -> None:
    values = torch.rand(2000, generator=torch.Generator().manual_seed(count)) - 0.45
    threshold = threshold_for(values.split(chunk), count)
    assert int((values > threshold).sum()) == count
    assert threshold == threshold_for([values], count)
    assert torch.tensor(threshold, dtype=torch.float32).item() == threshold


def test_it_lies_halfway_to_the_next_value() -> None:
    assert threshold_for([torch.tensor([4.0, 1.0, 2.0, 8.0])], 2) == 3.0


def test_it_is_the_floor_where_fewer_are_above_it() -> None:
    assert threshold_for([torch.tensor([1.0, 2.0, -3.0])], 3) == 0.0
    assert threshold_for([torch.tensor([1.0, 2.0, -3.0, -5.0])], 3, floor=-torch.inf) == -4.0


def test_without_a_floor_it_lies_just_below_all_of_too_few() -> None:
    """Not at -inf: it becomes a bias."""
    threshold = threshold_for([torch.tensor([1.0, -3.0, -torch.inf])], 3, floor=-torch.inf)
    assert -3.001 < threshold < -3.0
    assert threshold_for([torch.tensor([-torch.inf])], 3, floor=-torch.inf) == 0.0


def test_values_that_straddle_the_place_are_left_out() -> None:
    values = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    assert threshold_for([values], 2) == 2.0
    assert threshold_for(values.split(1), 2) == 2.0
    assert int((values > threshold_for([values], 4)).sum()) == 4


def test_neighbours_in_float32_are_told_apart() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    threshold = threshold_for([torch.stack([low, high])], 1)
    assert low.item() <= threshold < high.item()


def test_a_count_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        threshold_for([torch.ones(3)], 0)


def test_memory_is_bounded_by_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    concatenate = torch.cat

    def watched(tensors: list[torch.Tensor]) -> torch.Tensor:
        nonlocal longest
        result = concatenate(tensors)
        longest = max(longest, len(result))
        return result

    monkeypatch.setattr(torch, "cat", watched)
    generator = torch.Generator().manual_seed(0)
    threshold_for((torch.rand(100, generator=generator) for _ in range(1000)), 50)
    assert longest <= 2 * 51 + 100


def test_activation_quantile_gives_the_l0_asked_for() -> None:
    pre = torch.randn(500, 40, generator=torch.Generator().manual_seed(1))
    threshold = activation_quantile(pre, 6.0)
    assert float((pre > threshold).sum(1).double().mean()) == 6.0
    assert activation_quantile(pre, 1000.0) == pytest.approx(0.0, abs=0.02), "never more than half the dictionary"
