"""The geometric median, safe where points coincide."""

from __future__ import annotations

import pytest
import torch

from saebench.saes.initial import data_rows, geometric_median, unit_rows


def test_on_a_line_it_is_the_median() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [1000.0]])
    assert geometric_median(x).item() == pytest.approx(2.0, abs=1e-3)


def test_it_minimises_the_sum_of_distances_and_resists_outliers() -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).double()
    x[:20] += 1000
    spot = geometric_median(x)
    for nudge in torch.cat([torch.eye(5), -torch.eye(5)]).double() * 0.01:
        assert (x - spot).norm(dim=1).sum() <= (x - spot - nudge).norm(dim=1).sum()
    assert spot.norm() < 1 < x.mean(0).norm()


def test_a_point_that_equals_the_guess_divides_nothing_by_zero() -> None:
    """The mean of these five is the first of them: distance 0 at the first guess."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert geometric_median(x).tolist() == [0.0, 0.0]
    heavy = torch.tensor([[0.0, 0.0]] * 3 + [[4.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(geometric_median(heavy), torch.zeros(2).double(), atol=1e-2, rtol=0)


def test_it_leaves_a_point_that_is_not_the_median() -> None:
    """The mean, (1, 0), is a row; the median is nearer to the three on the left."""
    x = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, -0.1], [1.0, 0.0], [4.0, 0.0]])
    assert geometric_median(x)[0] < 0.2


@pytest.mark.parametrize("rows", [torch.ones(4, 3), torch.ones(1, 3)])
def test_equal_points_are_their_own_median(rows: torch.Tensor) -> None:
    assert geometric_median(rows).tolist() == [1.0, 1.0, 1.0]


def test_unit_rows_have_length_one_and_come_from_the_generator_given() -> None:
    one, two = (unit_rows(50, 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(50))


def test_data_rows_are_distinct_rows_seen_from_the_centre_and_random_where_rows_run_out() -> None:
    z, centre = torch.tensor([[3.0, 4.0], [1.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 1.0])
    rows = data_rows(5, z, centre, torch.Generator().manual_seed(0))
    expected = torch.tensor([[2.0, 3.0], [0.0, 2.0]])  # the second row equals the centre: it has no direction
    expected /= expected.norm(dim=1, keepdim=True)
    for direction in expected:
        assert (rows - direction).norm(dim=1).min() < 1e-6
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert len(rows.unique(dim=0)) == 5
    assert torch.equal(rows, data_rows(5, z, centre, torch.Generator().manual_seed(0)))
