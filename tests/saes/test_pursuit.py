"""The pursuit against its definition: picks one by one, and a least-squares solver of scipy's."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from formulas import pursuit_by_definition
from scipy.optimize import nnls
from torch import Tensor

from saebench.saes import pursuit, pursuit_groups, pursuit_host, pursuit_screen
from saebench.saes.kernels_codes import SparseCodes
from saebench.saes.pursuit import pursue
from saebench.saes.pursuit_codes import Pursuit
from saebench.saes.refit import refit

K, EVERY = 12, 4


def unit(rows: int, d: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def x() -> Tensor:
    """Sums of six of 96 directions with noise."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(200, 96, generator=generator) * (torch.rand(200, 96, generator=generator) < 6 / 96)
    return weights @ unit(96, 24, 0) + 0.02 * torch.randn(200, 24, generator=generator)


@pytest.fixture
def rows() -> Tensor:
    return unit(96, 24, 0)


@pytest.fixture
def kernels() -> ModuleType:
    """numba is a dependency of the project: without it these tests fail."""
    found = pursuit_host.numba_kernels()
    assert found is not None
    return found


@pytest.fixture(params=["numba", "torch"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with either."""
    if request.param == "torch":
        monkeypatch.setattr(pursuit_host, "numba_kernels", lambda: None)


either = pytest.mark.usefixtures("version")


def rebuilt(found: Pursuit, rows: Tensor) -> Tensor:
    return torch.einsum("nk,nkd->nd", found.values, rows[found.indices])


@either
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("least", [0.0, 0.2])
def test_picks_and_values_are_those_of_the_definition(x: Tensor, rows: Tensor, least: float, together: bool) -> None:
    expected = [
        pursuit_by_definition(row, rows.double().numpy(), K, EVERY, least, together) for row in x.double().numpy()
    ]
    for gram in (rows @ rows.t(), None):  # without, all 96 rows are candidates
        found = pursue(x, rows, gram, K, EVERY, least, together=together)
        for b, (picks, values) in enumerate(expected):
            count = len(picks)
            assert found.indices[b, :count].tolist() == picks
            assert found.values[b, :count].numpy() == pytest.approx(values, abs=1e-5)
            assert not found.values[b, count:].any()
            assert not found.gains[b, count:].any()


def test_two_versions_pick_the_same_and_agree_to_rounding(
    x: Tensor, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gram in (rows @ rows.t(), None):
        ours = pursue(x, rows, gram, K, EVERY)
        with monkeypatch.context() as patched:
            patched.setattr(pursuit_host, "numba_kernels", lambda: None)
            plain = pursue(x, rows, gram, K, EVERY)
        assert torch.equal(ours.indices, plain.indices)
        torch.testing.assert_close(ours.values, plain.values, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.residual, plain.residual, atol=1e-6, rtol=0)


@either
def test_values_are_close_to_the_best_nonnegative_ones_of_the_same_picks(x: Tensor, rows: Tensor) -> None:
    found = pursue(x, rows, rows @ rows.t(), 6, 3)
    best = sum(nnls(rows[found.indices[b]].t().double().numpy(), x[b].double().numpy())[1] ** 2 for b in range(len(x)))
    assert (found.values >= 0).all()
    assert best <= float(found.residual.double().square().sum()) <= 1.02 * best


@either
def test_residual_is_what_the_codes_leave(x: Tensor, rows: Tensor) -> None:
    for gram in (rows @ rows.t(), None):
        found = pursue(x, rows, gram, K, EVERY)
        torch.testing.assert_close(found.residual, x - rebuilt(found, rows), atol=1e-6, rtol=0)


@either
def test_few_candidates_cost_little(x: Tensor, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = float(pursue(x, rows, rows @ rows.t(), K, EVERY).residual.square().sum())
    monkeypatch.setattr(pursuit_groups, "CANDIDATES", 24)
    assert float(pursue(x, rows, None, K, EVERY).residual.square().sum()) < 1.1 * exact


def test_result_does_not_depend_on_threads_or_chunks(x: Tensor, rows: Tensor) -> None:
    before, gram = torch.get_num_threads(), rows @ rows.t()
    try:
        torch.set_num_threads(1)
        one = [pursue(x, rows, g, K, EVERY) for g in (gram, None)]
        torch.set_num_threads(3)
        three = [pursue(x, rows, g, K, EVERY) for g in (gram, None)]
        assert all(torch.equal(a.values, b.values) for a, b in zip(one, three, strict=True))
        assert all(torch.equal(a.residual, b.residual) for a, b in zip(one, three, strict=True))
    finally:
        torch.set_num_threads(before)


@either
def test_orthonormal_dictionary_by_hand() -> None:
    """x = 3 e0 + 2 e1 - 1 e2: e0, then e1; the negative part is out of reach, so the third pick never comes."""
    eye = torch.eye(4)
    x = torch.tensor([[3.0, 2.0, -1.0, 0.0]])
    for gram in (eye, None):
        found = pursue(x, eye, gram, 3)
        assert found.indices.tolist() == [[0, 1, 0]]
        assert found.values.tolist() == [[3.0, 2.0, 0.0]]
        assert found.residual.tolist() == [[0.0, 0.0, -1.0, 0.0]]


@either
def test_a_refit_moves_values_to_their_optimum() -> None:
    """Of x = e0 + e1 the diagonal row (1.41) leaves nothing: the pursuit stops. Of 2 e0 + e1 it (2.12) leaves 0.5 of
    e0; the refit ends at x = e0 + 1.41 diagonal."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    found = pursue(torch.tensor([[1.0, 1.0], [2.0, 1.0]]), rows, rows @ rows.t(), 2)
    assert found.indices.tolist() == [[2, 0], [2, 0]]
    assert found.values[0].tolist() == pytest.approx([2**0.5, 0.0], abs=1e-6)
    assert found.gains[1].tolist() == pytest.approx([3 / 2**0.5, 0.5], abs=1e-6)
    assert float(found.residual[1].norm()) < 0.5 / 2**3 + 1e-6, "each of the three sweeps at least halves what is left"


@either
def test_odd_input(rows: Tensor) -> None:
    x = torch.stack([torch.zeros(24), rows[3] * 2, torch.full((24,), torch.nan)])
    for gram in (rows @ rows.t(), None):
        found = pursue(x, rows, gram, 5)
        assert not found.values[0].any(), "a row of zeros has no code"
        assert found.values[1].tolist() == [2.0, 0.0, 0.0, 0.0, 0.0], "k above what the example has: stop early"
        assert found.residual[2].isnan().any(), "NaN reaches the loss"
    assert len(pursue(x[:0], rows, None, 5).values) == 0


@either
def test_of_equal_rows_the_first_is_picked() -> None:
    rows = torch.cat([torch.eye(3), torch.eye(3)])
    found = pursue(torch.tensor([[1.0, 3.0, 2.0]]), rows, rows @ rows.t(), 6)
    assert found.indices[0, :3].tolist() == [1, 2, 0]
    assert not found.values[0, 3:].any(), "the duplicates have nothing left to explain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k = 0: must be between 1 and dict_size = 96"),
        ({"k": 97}, "k = 97: must be between 1 and dict_size = 96"),
        ({"refit_every": 0}, "refit_every = 0: must be at least 1"),
        ({"gram": torch.eye(3)}, r"gram \(3, 3\): expected \(96, 96\)"),
        ({"x": torch.zeros(2, 5)}, r"expected \(N, d\) and \(F, d\)"),
        ({"x": torch.zeros(2, 24).double()}, "must be float32"),
    ],
)
def test_impossible_arguments(rows: Tensor, change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pursue(**{"x": torch.zeros(2, 24), "rows": rows, "gram": None, "k": 2, **change})  # type: ignore[arg-type]


def _pairs(x: Tensor, rows: Tensor) -> SparseCodes:
    """Up to eight latents per example, at values that are off by a third; an example has none, another a padding."""
    found = pursue(x, rows, None, 8)
    kept = found.values != 0
    kept[3] = False
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    values = found.values[kept] * 1.33
    values[0] = 0.0
    return SparseCodes(values, found.indices[kept], offsets, len(rows))


@either
def test_refit_finds_the_best_values_of_the_latents_that_fire(x: Tensor, rows: Tensor) -> None:
    codes = _pairs(x, rows)
    refitted = codes.with_values(refit(x, rows, codes, 200))
    assert refitted.values[0] == 0, "padding stays"
    dense, before = refitted.dense(), codes.dense()
    for b in range(20):
        some = before[b].nonzero().squeeze(1)
        best = nnls(rows[some].t().double().numpy(), x[b].double().numpy())[0] if len(some) else np.zeros(0)
        assert dense[b, some].numpy() == pytest.approx(best, abs=1e-3)
        assert dense[b].count_nonzero() <= len(some)


def test_a_sweep_of_refit_by_hand() -> None:
    """x = (1, 1), rows e0 and the diagonal d, both at 0.5: r = (0.15, 0.65); e0 moves by 0.146, then d by 0.459."""
    rows = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]])
    codes = SparseCodes(torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), torch.tensor([0, 2]), 2)
    values = refit(torch.ones(1, 2), rows, codes, 1)
    first = 0.5 + (1 - 0.5 - 0.5 * 0.5**0.5)
    second = 0.5 + 0.5**0.5 * (0.0 + 1 - 0.5 * 0.5**0.5)
    assert values.tolist() == pytest.approx([first, second])


def test_two_versions_of_refit_agree(x: Tensor, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = _pairs(x, rows)
    ours = refit(x, rows, codes, 2)
    monkeypatch.setattr(pursuit_host, "numba_kernels", lambda: None)
    torch.testing.assert_close(ours, refit(x, rows, codes, 2), atol=1e-6, rtol=0)


@either
def test_refit_leaves_the_pairs_beyond_a_width_as_they_are(x: Tensor, rows: Tensor) -> None:
    """They still count in the residual: refitting the others alone, against x without them, gives the same."""
    codes = _pairs(x, rows)
    place = torch.arange(len(codes.values)) - codes.offsets[codes.row_of_pair]
    values, beyond = refit(x, rows, codes, 2, 3), place >= 3
    assert bool(beyond.any())
    assert torch.equal(values[beyond], codes.values[beyond])
    theirs = codes.with_values(torch.where(beyond, codes.values, 0.0)).dense() @ rows
    rest = codes.with_values(torch.where(beyond, 0.0, codes.values))
    torch.testing.assert_close(values[~beyond], refit(x - theirs, rows, rest, 2)[~beyond], atol=1e-5, rtol=0)


def test_without_numba_one_line_says_so(monkeypatch: pytest.MonkeyPatch, x: Tensor, rows: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "saebench.saes.pursuit_numba", None)
    monkeypatch.delattr("saebench.saes.pursuit_numba", raising=False)
    pursuit_host.numba_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba: .*: pursuits run in torch, six times as long: pip install numba"):
            found = pursue(x, rows, rows @ rows.t(), 3)
        assert found.values.any()
    finally:
        pursuit_host.numba_kernels.cache_clear()


def test_rows_found_by_eight_bits_are_those_with_the_largest_products(x: Tensor, rows: Tensor) -> None:
    """Of 96 rows 24: products of 8 bits are off by about 1e-3, so that only near ties at the end may differ."""
    screen = pursuit_screen.Screen.of(rows)
    if screen is None:
        pytest.skip("this processor has no fast product of 8-bit integers")
    taken = (x @ rows.t()).argmax(1, keepdim=True)
    marks, found = screen.largest(x, taken, 24)
    exact = (x @ rows.t()).scatter(1, taken, -torch.inf)
    least = exact.topk(24, dim=1).values[:, -1:]
    tolerance = 0.01 * x.norm(dim=1, keepdim=True)
    assert (exact.gather(1, found) >= least - tolerance).all()
    assert not marks.any()
    assert all(len(set(row)) == 24 for row in found.tolist())
    marks, found = screen.largest(x, taken, 96)
    assert torch.equal(found[:, -1:], taken), "what was taken comes last"
    assert torch.equal(marks[:, -1], torch.full((len(x),), -torch.inf))


def test_rounding_to_eight_bits_is_that_of_torch(x: Tensor, rows: Tensor) -> None:
    """Halves go to the even number, what is larger than the row's factor allows to 127; NaN does not raise."""
    halves = torch.tensor([[0.5, 1.5, -2.5, 126.5, 127.0, -300.0]])
    for some, largest in ((halves, torch.tensor([127.0])), (x, x.abs().amax(1)), (rows, rows.abs().max().expand(96))):
        scaled = some * (127 / largest).unsqueeze(1)
        expected = scaled.round().clamp(-127, 127).to(torch.int8)
        assert torch.equal(pursuit_screen._eight_bits(some, largest), expected)
    assert pursuit_screen._eight_bits(torch.full((1, 3), torch.nan), torch.ones(1)).shape == (1, 3)


@pytest.mark.parametrize("count", [1, 3, 4, 30])
def test_products_with_candidates_are_exact_and_leave_out_what_is_marked(
    x: Tensor, rows: Tensor, kernels: ModuleType, count: int
) -> None:
    candidates = torch.stack([torch.randperm(len(rows))[:count] for _ in x])
    products = torch.zeros(len(x), count)
    products[::2, -1] = -torch.inf
    expected = (x @ rows.t()).gather(1, candidates) + products
    arrays = [t.numpy() for t in (rows, candidates, products)]
    for b in range(len(x)):
        kernels._exact(x.numpy(), b, *arrays, np.zeros(4, np.float32))
    torch.testing.assert_close(products, expected, atol=1e-5, rtol=0)


def test_largest_numbers_of_a_row_in_order(kernels: ModuleType) -> None:
    """Against numpy, for widths that do and do not fill whole groups of 32; equal numbers: the first place first."""
    for width in (7, 64, 1000, 4096):
        numbers = np.random.default_rng(width).integers(-500, 500, (5, width), dtype=np.int32)
        count = min(width, 40)
        found, marks = np.zeros((5, count), np.int64), np.zeros((5, count), np.float32)
        kernels.largest(numbers, found, marks)
        np.testing.assert_array_equal(found, np.argsort(-numbers, axis=1, kind="stable")[:, :count])


@either
def test_a_screen_costs_no_error(x: Tensor, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the rows as candidates, found by 8 bits or by exact products: the first picks are the same; later
    ones, which explain noise here, differ where a candidate does, and leave the same error."""
    monkeypatch.setattr(pursuit_groups, "CANDIDATES", 32)
    monkeypatch.setattr(pursuit, "CANDIDATES", 32)
    screened = pursue(x, rows, None, K, EVERY)
    monkeypatch.setattr(pursuit_screen, "integer_products", lambda: False)
    plain = pursue(x, rows, None, K, EVERY)
    assert torch.equal(screened.indices[:, 0], plain.indices[:, 0])
    assert (screened.indices[:, :EVERY] == plain.indices[:, :EVERY]).float().mean() > 0.98
    left, without = (float(found.residual.square().sum()) for found in (screened, plain))
    assert left == pytest.approx(without, rel=0.02)
