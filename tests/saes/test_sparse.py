"""The k-sparse step against a full sort and dense float64 autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saebench.saes import kernels, kernels_codes, kernels_groups, kernels_select, sparse

SHAPES = [(1, 4, 8, 3), (37, 16, 96, 5), (64, 8, 61, 61), (3, 5, 7, 1), (300, 8, 1024, 4), (20, 8, 1000, 3)]


def _weights(d_in: int, dict_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(dict_size, d_in, generator=g).t(), 0.1 * torch.randn(dict_size, generator=g)


def _rows(rows: int, d_in: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))


def _integers(rows: int, d_in: int, dict_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Small whole numbers: products are exact whatever the order of summation, and equal values are everywhere."""
    x, (W, b) = _rows(rows, d_in), _weights(d_in, dict_size)
    return x.round().clamp(-2, 2), W.round().clamp(-1, 1), (10 * b).round()


def _topk_by_sort(pre: Tensor, k: int) -> Tensor:
    """Dense codes by a full stable sort: among equals the lower latent wins."""
    best = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(pre).scatter(1, best, pre.gather(1, best).relu())


def _batchtopk_by_sort(pre: Tensor, pairs: int) -> Tensor:
    flat = pre.flatten()
    best = flat.sort(descending=True, stable=True).indices[:pairs]
    return torch.zeros_like(flat).scatter(0, best, flat[best].relu()).view_as(pre)


def _kept(codes: sparse.Codes) -> Tensor:
    return codes.dense().detach() != 0


@pytest.mark.parametrize(("rows", "d_in", "dict_size", "k"), SHAPES)
def test_topk_keeps_the_set_of_a_full_sort(rows: int, d_in: int, dict_size: int, k: int) -> None:
    x, (W, b) = _rows(rows, d_in), _weights(d_in, dict_size)
    codes, want = sparse.encode_topk(x, W, b, k), _topk_by_sort(x @ W + b, k)
    assert torch.equal(_kept(codes), want != 0)
    torch.testing.assert_close(codes.dense(), want)
    assert torch.equal(codes.l0(), (want != 0).sum(1))
    assert torch.equal(codes.firing(), (want != 0).sum(0).float())


@pytest.mark.parametrize(("rows", "d_in", "dict_size", "k"), [*SHAPES, (37, 16, 96, 5.3), (9, 5, 7, 0.5)])
def test_batchtopk_keeps_the_set_of_a_full_sort(rows: int, d_in: int, dict_size: int, k: float) -> None:
    x, (W, b) = _rows(rows, d_in), _weights(d_in, dict_size)
    codes, want = sparse.encode_batchtopk(x, W, b, k), _batchtopk_by_sort(x @ W + b, round(k * rows))
    assert torch.equal(_kept(codes), want != 0)
    torch.testing.assert_close(codes.dense(), want)
    assert torch.equal(codes.l0(), (want != 0).sum(1))


@pytest.mark.parametrize("dict_size", [96, 1024, 61])
def test_among_equals_the_lower_latent_wins_and_in_a_batch_the_lower_row(dict_size: int) -> None:
    x, W, b = _integers(70, 6, dict_size)
    assert torch.equal(sparse.encode_topk(x, W, b, 5).dense(), _topk_by_sort(x @ W + b, 5))
    assert torch.equal(sparse.encode_batchtopk(x, W, b, 5).dense(), _batchtopk_by_sort(x @ W + b, 350))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("dict_size", "k"), [(1024, 5), (3072, 32), (1536, 7), (768, 48)])
def test_the_wide_choice_equals_a_full_sort(dict_size: int, k: int, signed: bool) -> None:
    """Continuous values, values of which many are equal, and more than the bound can tell apart; with NaN."""
    assert kernels_groups.Groups.of(dict_size, 2 * k).size >= 4, "not the path this is about"
    x, (W, b) = _rows(300, 6), _weights(6, dict_size)
    whole = _integers(300, 6, dict_size)
    for inputs in ((x, W, b), whole, (0 * x, W, torch.ones(dict_size)), (x, W, b - 50)):
        pre = inputs[0] @ inputs[1] + inputs[2]
        best = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
        want = torch.zeros_like(pre).scatter(1, best, pre.gather(1, best) if signed else pre.gather(1, best).relu())
        found = sparse.encode_topk(*inputs, k, signed=signed).dense()
        assert torch.equal(found != 0, want != 0)
        torch.testing.assert_close(found, want)
    x[7, 2] = torch.nan
    rows = sparse.encode_topk(x, W, b, k, signed=signed).dense().isnan().any(1)
    assert rows.nonzero().flatten().tolist() == [7]


def _awkward(rows: int, dict_size: int, g: torch.Generator) -> Tensor:
    """Pre-activations with some of: many equal values, all negative, equal rows, the best side by side, rows and places
    that are NaN or infinite."""

    def chance() -> bool:
        return bool(torch.rand((), generator=g) < 0.35)

    def some() -> Tensor:
        return torch.rand(rows, dict_size, generator=g) < 10 ** -float(1 + 3 * torch.rand((), generator=g))

    pre = torch.randn(rows, dict_size, generator=g)
    if chance():
        pre = (pre * 2).round() / 2
    if chance():
        pre = pre - 10
    if chance():
        pre[:, torch.arange(dict_size) % 977 < 40] += 4
    if chance():
        pre[rows // 2 :] = pre[0]
    for value in (-torch.inf, torch.inf, torch.nan, 0.0, -0.0):
        if chance():
            pre[some()] = value
        if chance() and chance():
            pre[rows // 3] = value
    return pre


@pytest.mark.parametrize("way", ["topk", "signed", "batchtopk"])
def test_any_numbers_in_any_width_are_chosen_as_by_a_full_sort(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and chunks of any size too. The product is replaced: x has the number of a row, W those of the latents."""
    g, sizes = torch.Generator().manual_seed(12), set()
    widths = (61, 96, 1000, 1001, 1536, 2016, 4096, 5120, 6144)
    for case in range(4 * len(widths)):
        dict_size, rows, k = widths[case % len(widths)], *(int(torch.randint(2, n, (), generator=g)) for n in (90, 40))
        pre = _awkward(rows, dict_size, g)
        monkeypatch.setattr(kernels_select, "CHUNK_ROWS", (16, 64)[case % 2])
        monkeypatch.setattr(kernels_groups, "TILE_ELEMENTS", 1 << (12, 16, 22)[case % 3])
        for module in (kernels_groups, kernels_select):
            monkeypatch.setattr(module, "affine_no_grad", lambda x, W, *_, p=pre: p[x[:, 0].long()][:, W[0].long()])
        inputs = torch.arange(float(rows)).unsqueeze(1), torch.arange(float(dict_size)).unsqueeze(0), pre[0]
        if way == "batchtopk":
            found, want = sparse.encode_batchtopk(*inputs, k), _batchtopk_by_sort(pre, rows * k)
        else:
            found = sparse.encode_topk(*inputs, k, signed=way == "signed")
            best = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
            values = pre.gather(1, best) if way == "signed" else pre.gather(1, best).relu()
            want = torch.zeros_like(pre).scatter(1, best, values)
        torch.testing.assert_close(found.dense(), want, rtol=0, atol=0, equal_nan=True)
        sizes.add(kernels_groups.Groups.of(dict_size, 2 * k).size)
    assert sizes >= {1, 8, 32, 64}, "some ways of grouping were not taken"


@pytest.mark.parametrize("encode", [sparse.encode_topk, sparse.encode_batchtopk])
def test_tiles_of_a_chunk_do_not_change_the_choice(
    encode: Callable[..., sparse.SparseCodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact products in: 1 tile, 3 tiles, and tiles of which the last is narrower."""
    x, W, b = _integers(300, 6, 3072)
    want = encode(x, W, b, 7).dense()
    for elements in (256 * 1024, 256 * 1000, 256 * 700):
        monkeypatch.setattr(kernels_groups, "TILE_ELEMENTS", elements)
        assert torch.equal(encode(x, W, b, 7).dense(), want)


def test_the_choice_without_a_guess_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, and of a batch whose first rows mislead the guess."""
    x, W, b = _integers(300, 6, 256)
    want = sparse.encode_batchtopk(x, W, b, 3).dense()
    monkeypatch.setattr(kernels_select, "_above_a_guess", lambda *_: None)
    assert torch.equal(sparse.encode_batchtopk(x, W, b, 3).dense(), want)


def test_a_first_chunk_unlike_the_rest_does_not_mislead_batchtopk() -> None:
    x, (W, b) = _rows(600, 8), _weights(8, 256)
    x[:256] *= 100.0
    want = _batchtopk_by_sort(x @ W + b, 600 * 100)
    assert torch.equal(_kept(sparse.encode_batchtopk(x, W, b, 100)), want != 0)
    x[:256] /= 10_000.0
    want = _batchtopk_by_sort(x @ W + b, 1200)
    assert torch.equal(_kept(sparse.encode_batchtopk(x, W, b, 2)), want != 0)


@pytest.mark.parametrize("encode", [sparse.encode_topk, sparse.encode_batchtopk])
def test_negative_pre_activations_never_fire(encode: Callable[..., sparse.SparseCodes]) -> None:
    x, (W, _) = _rows(5, 4).abs(), _weights(4, 32)
    W, b = (-W.abs()).requires_grad_(), torch.zeros(32)
    codes = encode(x, W, b, 3)
    assert codes.l0().tolist() == [0] * 5
    x_hat = sparse.decode(codes, torch.ones(32, 4), torch.full((4,), 2.0))
    assert torch.equal(x_hat, torch.full((5, 4), 2.0))
    x_hat.sum().backward()
    assert W.grad is not None
    assert not W.grad.any()


def test_fewer_positives_than_k_are_all_kept() -> None:
    """Row 0 has one positive value, row 1 has two: k = 3 keeps 1 and 2 of them."""
    W, b = torch.eye(4), torch.zeros(4)
    x = torch.tensor([[5.0, -1.0, -2.0, -3.0], [-1.0, 2.0, 0.0, 7.0]])
    want = x.relu()
    assert torch.equal(sparse.encode_topk(x, W, b, 3).dense(), want)
    assert torch.equal(sparse.encode_batchtopk(x, W, b, 3).dense(), want)


def test_batchtopk_by_hand() -> None:
    """k = 2 of two rows: the four largest are 8, 6, 3, 1; k = 1.5 keeps three."""
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-5.0, 6.0, -7.0, 8.0]])
    W, b = torch.eye(4), torch.zeros(4)
    assert sparse.encode_batchtopk(x, W, b, 2).dense().tolist() == [[1, 0, 3, 0], [0, 6, 0, 8]]
    assert sparse.encode_batchtopk(x, W, b, 1.5).dense().tolist() == [[0, 0, 3, 0], [0, 6, 0, 8]]


def test_auxk_chooses_among_the_dead_and_keeps_signs() -> None:
    x, (W, b) = _rows(6, 5), _weights(5, 40)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[3, 8, 21, 30]] = True
    codes = sparse.encode_topk(x, W, b, 2, among=dead, signed=True)
    pre = (x @ W + b).masked_fill(~dead, -torch.inf)
    best = pre.topk(2, dim=1).indices
    torch.testing.assert_close(codes.dense(), torch.zeros_like(pre).scatter(1, best, pre.gather(1, best)))
    assert (codes.values < 0).any()
    every = sparse.encode_topk(x, W, b, 9, among=dead, signed=True)
    torch.testing.assert_close(every.dense(), (x @ W + b) * dead)
    assert sparse.encode_topk(x, W, b, 9, among=torch.zeros(40, dtype=torch.bool)).dense().abs().sum() == 0


def test_nan_is_never_hidden() -> None:
    for sign in (1.0, -1.0):
        x, (W, b) = _rows(3, 4), _weights(4, 64)
        b = b.index_fill(0, torch.tensor([17]), torch.nan) * sign
        assert sparse.encode_topk(x, W, b, 2).dense().isnan().any()
        assert sparse.encode_batchtopk(x, W, b, 2).dense().isnan().any()
        assert sparse.encode_above(x, W, b, 0.5).dense().isnan().any()


# --- gradients -------------------------------------------------------------------------------------------------------


def _loss(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor, encode: Callable[..., Tensor]) -> Tensor:
    return (encode(x - d, W, b, D, d) - _rows(x.shape[0], D.shape[1], 7).to(x.dtype)).square().sum()


def _compare(ours: Callable[..., Tensor], dense: Callable[..., Tensor], rows: int = 37) -> None:
    x, (W, b), D, d = _rows(rows, 16), _weights(16, 512), _weights(16, 512, 3)[0].t().contiguous(), _rows(1, 16, 4)[0]
    leaves = [t.clone().requires_grad_() for t in (x, W, b, D, d)]
    _loss(*leaves, ours).backward()
    exact = [t.double().requires_grad_() for t in (x, W, b, D, d)]
    _loss(*exact, dense).backward()
    for name, a, e in zip(("x", "W_enc", "b_enc", "W_dec", "b_dec"), leaves, exact, strict=True):
        assert a.grad is not None, name
        assert e.grad is not None, name
        assert (a.grad.double() - e.grad).abs().max() <= 2e-5 * e.grad.abs().max(), name


@pytest.mark.parametrize("k", [1, 5, 60])
def test_gradients_of_topk_equal_dense_float64_autograd(k: int) -> None:
    def ours(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        return sparse.decode(sparse.encode_topk(x, W, b, k), D, d)

    def dense(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        return _topk_by_sort(x @ W + b, k) @ D + d

    _compare(ours, dense, rows=290)


@pytest.mark.parametrize("k", [0.3, 5, 60])
def test_gradients_of_batchtopk_equal_dense_float64_autograd(k: float) -> None:
    def ours(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        return sparse.decode(sparse.encode_batchtopk(x, W, b, k), D, d)

    def dense(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        return _batchtopk_by_sort(x @ W + b, round(k * x.shape[0])) @ D + d

    _compare(ours, dense)


@pytest.mark.parametrize("floor", [12.0, 0.0])
def test_gradients_above_a_threshold_equal_dense_float64_autograd(floor: float) -> None:
    """Few pairs (floor 12) and so many that the codes are dense (floor 0)."""
    scale = torch.linspace(0.5, 2.0, 512)
    kinds = set()

    def ours(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        codes = sparse.encode_above(x, W, b, torch.full((512,), floor))
        kinds.add(type(codes))
        return sparse.decode(codes.with_values((codes.values - floor).relu() * codes.spread(scale)), D, d)

    def dense(x: Tensor, W: Tensor, b: Tensor, D: Tensor, d: Tensor) -> Tensor:
        return ((x @ W + b - floor).relu() * scale) @ D + d

    _compare(ours, dense)
    assert kinds == {sparse.SparseCodes if floor else sparse.DenseCodes}


def test_spread_has_the_gradient_of_a_sum_over_pairs() -> None:
    x, (W, b) = _rows(9, 4), _weights(4, 32)
    factor = torch.rand(32).requires_grad_()
    codes = sparse.encode_topk(x, W, b, 3)
    (codes.spread(factor) * codes.values).sum().backward()
    torch.testing.assert_close(factor.grad, codes.dense().sum(0))


def test_the_encoder_gradient_has_the_strides_of_a_transposed_parameter() -> None:
    W = torch.nn.Parameter(torch.randn(64, 8).t())
    sparse.encode_topk(_rows(5, 8), W, torch.zeros(64), 3).values.sum().backward()
    assert W.grad is not None
    assert W.grad.stride() == W.stride() == (1, 8)


def test_dots_by_torch_s_sampled_product_and_by_embedding_bag_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (W, b) = _rows(64, 16), _weights(16, 512)
    codes, vectors = sparse.encode_topk(x, W, b, 5), W.t().contiguous()
    assert kernels_codes._SAMPLED, "torch without it: only the other way is tested"
    want = (x[codes.row_of_pair] * vectors[codes.indices]).sum(1)
    torch.testing.assert_close(kernels_codes.dots(codes, x, vectors), want)
    monkeypatch.setattr(kernels_codes, "_SAMPLED", False)
    torch.testing.assert_close(kernels_codes.dots(codes, x, vectors), want)


@pytest.mark.parametrize("rows", [1, 64, 700])
def test_sums_of_many_pairs_in_two_passes_equal_one(rows: int) -> None:
    """As on a GPU; some latents fire on every row, some (the first, the last) on none."""
    latents = torch.tensor([1, 2, 5]).repeat(rows)
    codes = sparse.SparseCodes(torch.randn(3 * rows), latents, torch.arange(rows + 1) * 3, 8)
    vectors = torch.randn(rows, 5)
    sums = kernels_codes._sums_in_two(codes, vectors, codes.values[codes.by_latent.order])
    torch.testing.assert_close(sums, codes.dense().t() @ vectors, rtol=1e-4, atol=1e-4)
    assert (sums[[0, 3, 4, 6, 7]] == 0).all()


def test_a_gradient_overwrites_the_memory_of_the_last_one() -> None:
    """The same storage again, whatever it held; and each is given away once: a second backward pass adds."""
    x, (W, b) = _rows(64, 16), _weights(16, 512)
    encoder, decoder = torch.nn.Parameter(W), torch.nn.Parameter(W.t().contiguous())

    def backward() -> None:
        sparse.decode(sparse.encode_topk(x, encoder, b, 5), decoder).square().sum().backward()

    backward()
    once = [p.grad.clone() for p in (encoder, decoder) if p.grad is not None]
    places = [p.grad.data_ptr() for p in (encoder, decoder) if p.grad is not None]
    for p in (encoder, decoder):
        assert p.grad is not None
        p.grad.fill_(torch.nan)
    kernels.stash_gradients([encoder, decoder])
    assert encoder.grad is decoder.grad is None
    backward()
    assert [p.grad.data_ptr() for p in (encoder, decoder) if p.grad is not None] == places
    assert all(torch.equal(p.grad, g) for p, g in zip((encoder, decoder), once, strict=True) if p.grad is not None)
    backward()
    for p, g in zip((encoder, decoder), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_gradient_of_some_latents_is_that_of_index_select_lent_or_not(dim: int) -> None:
    """Alone and beside another gradient of the same parameter; latent 3 is asked for twice."""
    for alone in (True, False):
        found = []
        for way in ("plain", "ours", "lent"):
            weight = torch.nn.Parameter(_rows(6, 4, 1).t() if dim else _rows(6, 4, 1))
            index = torch.tensor([3, 0, 3])
            if way == "lent":
                kernels.stash_gradients([weight])
            pick = weight.index_select(dim, index) if way == "plain" else kernels.latents_of(weight, index, dim)
            loss = (pick * _rows(3, 4, 2).transpose(0, dim)).square().sum()
            (loss if alone else loss + weight.square().sum()).backward()
            kernels.add_deferred_gradients([weight])
            assert weight.grad is not None
            found.append(weight.grad)
        torch.testing.assert_close(found[0], found[1])
        torch.testing.assert_close(found[0], found[2])


def test_memory_of_another_shape_is_not_borrowed() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    weight.grad = torch.ones(4, 6)
    lent = weight.grad.data_ptr()
    kernels.stash_gradients([weight])
    weight.data = torch.zeros(6, 4).t()
    assert kernels.gradient_buffer(weight).stride() == (1, 4)
    weight.data = torch.zeros(4, 6)
    weight.grad = torch.ones(4, 6)
    lent = weight.grad.data_ptr()
    kernels.stash_gradients([weight])
    first = kernels.gradient_buffer(weight)
    assert first.data_ptr() == lent
    assert kernels.gradient_buffer(weight).data_ptr() != lent


# --- repeatability and memory ----------------------------------------------------------------------------------------


def _step(encode: Callable[..., sparse.SparseCodes]) -> list[Tensor]:
    x, (W, b) = _rows(520, 24), _weights(24, 1536)
    D = W.t().contiguous().requires_grad_()
    W, b = W.clone().requires_grad_(), b.clone().requires_grad_()
    codes = encode(x, W, b, 8)
    sparse.decode(codes, D).square().sum().backward()
    return [codes.values.detach(), codes.indices, codes.offsets, *(t.grad for t in (W, b, D) if t.grad is not None)]


@pytest.mark.parametrize("encode", [sparse.encode_topk, sparse.encode_batchtopk])
def test_a_repeat_gives_the_same_bits(encode: Callable[..., sparse.SparseCodes]) -> None:
    first = _step(encode)
    assert len(first) == 6
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, _step(encode), strict=True))


@pytest.mark.parametrize("encode", [sparse.encode_topk, sparse.encode_batchtopk])
def test_the_number_of_threads_does_not_change_the_codes(encode: Callable[..., sparse.SparseCodes]) -> None:
    """Exact products in, so that only the choice and the sums of the gradients are at stake."""
    x, W, b = _integers(520, 24, 1536)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            D = W.t().clone().requires_grad_()
            codes = encode(x, W, b, 8)
            sparse.decode(codes, D).square().sum().backward()
            seen.append([codes.values, codes.indices, D.grad])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def _memory(t: Tensor) -> tuple[int, int]:
    """Where a tensor is, and its bytes."""
    if t.layout is torch.sparse_csr:
        return id(t), sum(part.nbytes for part in (t.crow_indices(), t.col_indices(), t.values()))
    return t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()


class _Live(TorchDispatchMode):
    """Peak bytes of tensors that exist at once, of those made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.holders: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_memory(t)[0] for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            where, size = _memory(t) if isinstance(t, Tensor) else (0, 0)
            if where and (where in self.sizes or where not in known):
                self.sizes[where] = size
                self.holders[where] = self.holders.get(where, 0) + 1
                weakref.finalize(t, self._let_go, where)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def _let_go(self, where: int) -> None:
        self.holders[where] -= 1
        if not self.holders[where]:
            self.sizes.pop(where, None)


@pytest.mark.parametrize("encode", [sparse.encode_topk, sparse.encode_batchtopk])
def test_a_step_needs_little_more_than_a_chunk_of_pre_activations(
    encode: Callable[..., sparse.SparseCodes],
) -> None:
    """2048 rows, 6144 latents: 1.3 chunks of 6 MiB, the three gradients, and the batch-sized d_in-wide tensors that
    any loss has; a dense code would be 48 MiB."""
    x, (W, b) = _rows(2048, 16), _weights(16, 6144)
    D, W, b = W.t().clone().requires_grad_(), W.clone().requires_grad_(), b.clone().requires_grad_()
    chunk = 4 * kernels_select.chunks(x, 6144)[0].shape[0] * 6144
    pairs = 2048 * 32
    with _Live() as live:
        sparse.decode(encode(x, W, b, 32), D).square().sum().backward()
    wide = 4 * 4 * x.numel() + 2 * 4 * D.numel()
    assert live.peak < 1.3 * chunk + wide + 8 * 8 * pairs


# --- products and bad input ------------------------------------------------------------------------------------------


def test_affine_equals_addmm_forward_and_backward() -> None:
    x, (W, b) = _rows(33, 12), _weights(12, 50)
    for weight in (W, W.contiguous()):
        ours = [t.clone().requires_grad_() for t in (x, weight, b)]
        plain = [t.clone().requires_grad_() for t in (x, weight, b)]
        kernels.affine(*ours).square().sum().backward()
        torch.addmm(plain[2], plain[0], plain[1]).square().sum().backward()
        for a, e in zip(ours, plain, strict=True):
            assert a.grad is not None
            torch.testing.assert_close(a.grad, e.grad, rtol=1e-4, atol=1e-3)


def test_bfloat16_touches_the_product_alone() -> None:
    x, (W, b) = _rows(40, 64), _weights(64, 256)
    codes = sparse.encode_topk(x, W, b, 8, "bfloat16")
    assert codes.values.dtype == torch.float32
    torch.testing.assert_close(codes.dense().sum(), _topk_by_sort(x @ W + b, 8).sum(), rtol=1e-2, atol=0)
    assert sparse.encode_above(x, W, b, 0.0, "bfloat16").values.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, W, b: sparse.encode_topk(x, W, b, 0), "k = 0"),
        (lambda x, W, b: sparse.encode_topk(x, W, b, 9), "dict_size = 8"),
        (lambda x, W, b: sparse.encode_batchtopk(x, W, b, 9), "45 values to keep"),
        (lambda x, W, b: sparse.encode_topk(x[:0], W, b, 1), "rows >= 1"),
        (lambda x, W, b: sparse.encode_batchtopk(x[:, :3], W, b, 1), r"expected \(rows >= 1, 4\)"),
        (lambda x, W, b: sparse.encode_above(x, W, b[:3]), "b_enc"),
        (lambda x, W, b: sparse.decode(sparse.encode_topk(x, W, b, 1), torch.ones(7, 4)), "8 latents"),
    ],
)
def test_bad_shapes_are_refused(call: Callable[..., Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(_rows(5, 4), *_weights(4, 8))


def test_types_other_than_float32_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be float32, not torch\.float64"):
        sparse.encode_topk(_rows(5, 4).double(), *_weights(4, 8), 2)
    with pytest.raises(TypeError, match="must be float32"):
        sparse.encode_batchtopk(*(t.double() for t in (_rows(5, 4), *_weights(4, 8))), 2)
