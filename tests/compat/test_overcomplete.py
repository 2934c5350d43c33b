"""BatchTopK with top_k for the whole batch: small batches by hand, and a threshold that survives."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from saebench.compat.overcomplete import ENCODERS, BatchTopKSAE, DictionaryLayer
from saebench.saes import NotCalibratedError

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def plain(top_k: int, **more: float) -> BatchTopKSAE:
    return BatchTopKSAE(3, 3, top_k=top_k, encoder_module="identity", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("top_k", "kept", "threshold"),
    [
        (3, [[0, 0, 0], [4, 5, 6]], 4),
        (6, [[1, 2, 3], [4, 5, 6]], 1),
        (1, [[0, 0, 0], [0, 0, 6]], 6),
        (4, [[0, 0, 3], [4, 5, 6]], 3),
    ],
)
def test_the_largest_codes_of_the_whole_batch(top_k: int, kept: list[list[float]], threshold: float) -> None:
    sae = plain(top_k)
    assert sae.running_threshold is None
    z_pre, z = sae.encode(X)
    assert torch.equal(z_pre, X)
    assert torch.equal(z, torch.tensor(kept, dtype=torch.float32))
    assert sae.running_threshold == threshold


def test_the_threshold_is_a_running_average() -> None:
    """4, then 0.9 * 4 + 0.1 * 0 = 3.6; with momentum 0.5 it is 2."""
    for momentum, then in ((0.9, 3.6), (0.5, 2.0)):
        sae = plain(3, threshold_momentum=momentum)
        sae.encode(X)
        sae.encode(torch.zeros(2, 3))
        assert sae.running_threshold is not None
        assert_close(sae.running_threshold, torch.tensor(then))


def test_evaluation_goes_by_the_threshold_and_leaves_it() -> None:
    """Threshold 4: a row alone keeps its codes >= 4, however many those are."""
    sae = plain(3)
    sae.encode(X)
    sae.eval()
    assert torch.equal(sae.encode(X[1:])[1], X[1:])
    assert torch.equal(sae.encode(torch.full((2, 3), 4.0))[1], torch.full((2, 3), 4.0))
    assert torch.equal(sae.encode(X[:1])[1], torch.zeros(1, 3))
    assert sae.running_threshold == 4


def test_evaluation_before_training_says_so() -> None:
    with pytest.raises(NotCalibratedError, match="train on a batch first"):
        plain(3).eval()(X)


def test_gradients_reach_the_codes_that_are_kept() -> None:
    """[1, 2, 3] with top_k 2: d sum / dx = [0, 1, 1]."""
    x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    plain(2).encode(x)[1].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1]]


def test_ties_keep_no_more_than_top_k() -> None:
    """Four codes of 5, top_k 3: one is above, the first two of the tied ones come with it."""
    z = plain(3).encode(torch.tensor([[5.0, 9.0, 5.0], [5.0, 1.0, 5.0]]))[1]
    assert z.tolist() == [[5, 9, 5], [0, 0, 0]]


def test_the_threshold_survives_saving_copying_and_loading(tmp_path: Path) -> None:
    sae = plain(3)
    sae.encode(X)
    save_file(sae.state_dict(), tmp_path / "sae.safetensors")
    loaded = plain(3)
    loaded.load_state_dict(load_file(tmp_path / "sae.safetensors"))
    for other in (loaded, copy.deepcopy(sae)):
        assert other.running_threshold == 4
        assert torch.equal(other.eval()(X).z, sae.eval()(X).z)


def test_the_output_is_a_tuple_with_names() -> None:
    torch.manual_seed(0)
    sae = BatchTopKSAE(16, 50, top_k=40)
    x = torch.randn(8, 16)
    output = sae(x)
    z_pre, z, x_hat = output
    assert output.z_pre is z_pre
    assert output.z is z
    assert output.x_hat is x_hat
    assert (z_pre.shape, z.shape, x_hat.shape) == ((8, 50), (8, 50), (8, 16))
    assert int((z != 0).sum()) == 40
    assert_close(x_hat, z @ sae.get_dictionary())
    assert_close(z, torch.where(z > 0, z_pre, 0))
    assert sae.get_dictionary().shape == (50, 16)


def test_top_k_is_a_tenth_of_the_concepts_where_it_is_not_given() -> None:
    assert BatchTopKSAE(4, 57).top_k == 5
    assert BatchTopKSAE(4, 7).top_k == 1


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "identity"])
def test_a_loop_learns_with_every_encoder(name: str) -> None:
    torch.manual_seed(0)
    sae, x = BatchTopKSAE(16, 64, top_k=4 * 128, encoder_module=name), torch.randn(128, 16) @ torch.randn(16, 16)
    optimizer, losses = torch.optim.Adam(sae.parameters(), lr=1e-2), []
    for _ in range(40):
        loss = (x - sae(x).x_hat).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert_close(sae.get_dictionary().norm(dim=1), torch.ones(64))
    assert 2 < (sae.eval()(x).z != 0).sum(1).float().mean() < 8  # the average lags, and a batch norm differs


def test_mlps_have_as_many_hidden_layers_as_they_say() -> None:
    for name, linear in (("linear", 1), ("mlp_ln_1", 2), ("mlp_bn_3", 4)):
        encoder = BatchTopKSAE(4, 8, encoder_module=name).encoder
        assert sum(isinstance(module, nn.Linear) for module in encoder.modules()) == linear


class PerToken(nn.Module):
    """(N, tokens, d) to codes of every token, (N * tokens, nb_concepts)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.linear(x.flatten(0, 1))
        return pre, pre.relu()


def test_a_module_of_ones_own_takes_any_shape() -> None:
    sae = BatchTopKSAE((5, 6), 20, top_k=12, encoder_module=PerToken())
    output = sae(torch.randn(3, 5, 6))
    assert output.z.shape == (15, 20)
    assert output.x_hat.shape == (15, 6)
    assert BatchTopKSAE((6, 2, 2), 20, encoder_module=PerToken()).get_dictionary().shape == (20, 6)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("l2", [[0.6, 0.8], [0.0, 1.0]]),
        ("max_l2", [[0.6, 0.8], [0.0, 0.5]]),
        ("l1", [[3 / 7, 4 / 7], [0.0, 1.0]]),
        ("max_l1", [[3 / 7, 4 / 7], [0.0, 0.5]]),
        ("identity", [[3.0, 4.0], [0.0, 0.5]]),
        (lambda weights: weights * 0 + 1, [[1.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_normalizations_of_two_rows(name: str, rows: list[list[float]]) -> None:
    """Rows (3, 4) and (0, 0.5): L2 norms 5 and 0.5, L1 norms 7 and 0.5."""
    start = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    sae = BatchTopKSAE(2, 2, dictionary_params={"normalization": name, "initializer": start})
    for module in (sae, sae.eval()):
        assert_close(module.get_dictionary(), torch.tensor(rows))


def test_the_multiplier_is_learnt_only_where_it_is_asked_for() -> None:
    for asked in (False, True):
        sae = BatchTopKSAE(2, 2, dictionary_params={"use_multiplier": asked})
        assert_close(sae.get_dictionary().norm(dim=1), torch.ones(2))
        assert sae.dictionary.multiplier.requires_grad == asked
        with torch.no_grad():
            sae.dictionary.multiplier.fill_(2.0)
        assert_close(sae.get_dictionary().norm(dim=1), torch.full((2,), 7.389056))


def test_the_dictionary_in_evaluation_is_that_of_the_weights_at_hand() -> None:
    """Loading into a module that is in evaluation already."""
    there, here = BatchTopKSAE(4, 8).eval(), BatchTopKSAE(4, 8).eval()
    here.load_state_dict(there.state_dict())
    assert torch.equal(here.get_dictionary(), there.get_dictionary())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_with_nan_leaves_the_threshold_alone(bad: float) -> None:
    sae = BatchTopKSAE(4, 8, top_k=6)
    sae(torch.randn(5, 4))
    before = sae.threshold.clone()
    with pytest.raises(ValueError, match="the batch holds NaN or inf"):
        sae(torch.full((5, 4), bad))
    assert torch.equal(sae.threshold, before)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k: 0"):
        BatchTopKSAE(4, 8, top_k=0)
    with pytest.raises(ValueError, match="threshold_momentum: 1"):
        BatchTopKSAE(4, 8, threshold_momentum=1.5)
    with pytest.raises(ValueError, match="encoder_module: 'mpl' must be one of identity, linear"):
        BatchTopKSAE(4, 8, encoder_module="mpl")
    with pytest.raises(ValueError, match="needs an encoder module of its own"):
        BatchTopKSAE((5, 4), 8)
    with pytest.raises(ValueError, match="normalization: 'l3' must be one of"):
        BatchTopKSAE(4, 8, dictionary_params={"normalization": "l3"})
    with pytest.raises(ValueError, match=r"initializer: shape \(8, 3\), expected \(8, 4\)"):
        DictionaryLayer(4, 8, initializer=torch.zeros(8, 3))
    with pytest.raises(ValueError, match="top_k 40 of a batch with 8 codes"):
        BatchTopKSAE(4, 8, top_k=40)(torch.randn(1, 4))


@pytest.mark.filterwarnings("ignore")
def test_overcomplete_itself_gives_the_same_numbers() -> None:
    """Its own module with our weights, two training batches and an evaluation."""
    package = pytest.importorskip("overcomplete")
    torch.manual_seed(0)
    ours, theirs = BatchTopKSAE(16, 50, top_k=40), package.sae.BatchTopKSAE(16, 50, top_k=40)
    with torch.no_grad():
        theirs.encoder.final_block[0].weight.copy_(ours.encoder.layers[0].weight)  # type: ignore[index, union-attr]
        theirs.encoder.final_block[0].bias.copy_(ours.encoder.layers[0].bias)  # type: ignore[index, union-attr]
        theirs.dictionary._weights.copy_(ours.dictionary.weights)
    for _ in range(2):
        x = torch.randn(8, 16)
        for mine, other in zip(ours(x), theirs(x), strict=True):
            assert_close(mine, other)
    assert_close(ours.running_threshold, theirs.running_threshold)
    for mine, other in zip(ours.eval()(x), theirs.eval()(x), strict=True):
        assert_close(mine, other)
