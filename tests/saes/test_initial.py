"""Where an SAE starts: the geometric median, rows of the data, independent components."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import FastICA

from saebench.config import SAE_CONFIGS
from saebench.saes import make_sae
from saebench.saes.initial import (
    component_count,
    component_rows,
    data_rows,
    geometric_median,
    independent_components,
    unit_rows,
)


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


def mixture(rows: int = 6000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (rows, 12) of four independent Laplace sources along oblique directions (4, 12), and faint noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = unit_rows(4, 12, generator)
    even = torch.rand(rows, 4, generator=generator) - 0.5
    sources = -even.sign() * torch.log1p(-2 * even.abs()) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    return sources @ directions + 0.01 * torch.randn(rows, 12, generator=generator) + 5, directions


@pytest.mark.parametrize("seed", range(5))
def test_independent_components_are_the_sources_and_principal_components_are_not(seed: int) -> None:
    z, directions = mixture(seed=seed)
    basis, found = independent_components(z, 4, torch.Generator().manual_seed(seed + 1000))
    cosine = (found @ directions.t()).abs()
    assert cosine.argmax(1).tolist() == [0, 1, 2, 3], "by falling variance"
    assert cosine.diagonal().min() > 0.99
    principal = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:4]
    assert (principal @ directions.t()).abs().max(1).values.min() < 0.95
    torch.testing.assert_close(basis @ basis.t(), torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close((principal @ basis.t()).square().sum(1), torch.ones(4), atol=1e-4, rtol=0)


def test_independent_components_are_those_of_another_implementation() -> None:
    z, _ = mixture()
    _, ours = independent_components(z, 4, torch.Generator().manual_seed(0))
    other = FastICA(4, random_state=0, whiten="unit-variance", fun="logcosh", tol=1e-6).fit(z.numpy())
    theirs = torch.from_numpy(other.mixing_.T).float()
    assert (ours @ torch.nn.functional.normalize(theirs, dim=1).t()).abs().max(1).values.min() > 0.999


def test_no_more_components_than_the_rows_have_dimensions() -> None:
    plane = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ unit_rows(
        2, 6, torch.Generator().manual_seed(1)
    )
    assert independent_components(plane, 5, torch.Generator().manual_seed(0))[1].shape == (2, 6)
    assert independent_components(plane[:2], 5, torch.Generator().manual_seed(0))[1].shape == (1, 6)


def test_component_rows_are_components_both_ways_and_rows_without_their_part_in_them() -> None:
    z, _ = mixture()
    centre = z.median(0).values
    rows = component_rows(40, z, centre, 4, torch.Generator().manual_seed(0))
    assert torch.equal(rows[:8:2], -rows[1:8:2])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))
    plain = data_rows(40, z, centre, torch.Generator().manual_seed(0))[8:]
    principal = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:4]
    rest = plain - plain @ principal.t() @ principal
    torch.testing.assert_close(rows[8:], torch.nn.functional.normalize(rest, dim=1), atol=1e-3, rtol=0)


def test_signed_latents_need_no_opposites() -> None:
    z, directions = mixture()
    rows = component_rows(40, z, z.mean(0), 4, torch.Generator().manual_seed(100), signed=True)
    assert (rows[:4] @ directions.t()).abs().max(1).values.min() > 0.99
    assert (rows[4:] @ directions.t()).abs().max() < 0.1


@pytest.mark.parametrize(
    ("signed", "l0", "dict_size", "d_in", "count"),
    [(False, 8, 1536, 384, 32), (False, 32, 6144, 384, 64), (False, 128, 1536, 768, 128), (False, 500, 6144, 768, 128),
     (False, 8, 400, 50, 12), (False, 40, 400, 48, 16), (False, 8, 64, 384, 8), (False, 2, 7, 384, 0),
     (True, 8, 1536, 384, 32), (True, 32, 6144, 384, 64), (True, 64, 1536, 384, 128), (True, 128, 1536, 384, 256),
     (True, 500, 6144, 768, 256), (True, 40, 400, 48, 32), (True, 128, 768, 384, 192), (True, 2, 7, 384, 1)],
)  # fmt: skip
def test_component_count(signed: bool, l0: float, dict_size: int, d_in: int, count: int) -> None:
    """Signed: twice L0 where that is more, and a quarter of the latents at most, as they need no opposites."""
    assert component_count(l0, dict_size, d_in, signed=signed) == count


@pytest.mark.parametrize("kind", sorted(SAE_CONFIGS))
def test_every_type_starts_from_components_unless_told_otherwise(kind: str) -> None:
    """Four sources: eight latents are theirs (of a signed type the first four of eight components), and the others have
    no part in them."""
    z, directions = mixture()
    config = SAE_CONFIGS[kind]
    fields = {"k" if "k" in config.model_fields else "target_l0": 4, "dict_size": 32}
    rows = make_sae(config(**fields), 12, z, 100).W_dec
    assert (rows[: 4 if config.signed else 8] @ directions.t()).abs().max(1).values.min() > 0.99
    others = (rows[8:] @ directions.t()).abs().max(1).values
    assert (others < 0.1).sum() >= 22  # a text that lies within the subspace of the components stays as it is
    data = make_sae(config(**fields, start="data"), 12, z, 100).W_dec
    assert (data @ directions.t()).abs().max(1).values.min() > 0.5
