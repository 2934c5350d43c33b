"""overcomplete's pursuits: by hand, against a least-squares solver of scipy's, and the package where it is there."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from saebench.compat.overcomplete_pursuit import OMPSAE, MpSAE


def cloud(n: int, d: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def package() -> Any:
    """Its SAEs, without the vision models beside them."""
    if "torchvision" not in sys.modules:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision"].transforms = types.ModuleType("transforms")  # type: ignore[attr-defined]
    try:
        return pytest.importorskip("overcomplete.sae")
    finally:
        if getattr(sys.modules["torchvision"], "__file__", None) is None:
            del sys.modules["torchvision"]


def test_matching_pursuit_by_hand() -> None:
    """Of x = (2, 1) the diagonal row takes 2.12 and leaves (0.5, -0.5), e0 then takes 0.5."""
    sae = MpSAE(2, 2, k=2, dictionary_params={"initializer": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})
    residual, z, x_hat = sae(torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(z, torch.tensor([[0.5, 3 / 2**0.5]]))
    torch.testing.assert_close(x_hat, torch.tensor([[2.0, 1.5]]))
    torch.testing.assert_close(residual, torch.tensor([[0.0, -0.5]]))


def test_orthogonal_pursuit_solves_for_the_values_of_its_picks() -> None:
    sae, x = OMPSAE(12, 40, k=6, max_iter=300), cloud(30, seed=1)
    residual, z, x_hat = sae(x)
    rows = sae.get_dictionary().detach()
    torch.testing.assert_close(residual, (x - x_hat).detach(), atol=1e-4, rtol=0)  # its solver stops there
    for b in range(len(x)):
        picks = z[b].nonzero().squeeze(1)
        assert 1 <= len(picks) <= 6
        best, left = nnls(rows[picks].t().double().numpy(), x[b].double().numpy())
        assert float(residual[b].norm()) == pytest.approx(left, abs=1e-4)
        assert z[b, picks].numpy() == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("kind", [MpSAE, OMPSAE])
def test_gradients_reach_the_dictionary(kind: type[MpSAE] | type[OMPSAE]) -> None:
    sae, x = kind(12, 40, k=4), cloud(20)
    _, z, x_hat = sae(x)
    assert z.requires_grad == (kind is MpSAE)
    (x - x_hat).square().mean().backward()
    gradient = sae.dictionary.weights.grad
    assert gradient is not None
    assert ((gradient.norm(dim=1) > 0) == (z.detach() != 0).any(0)).all()


def test_dropout_ends_with_evaluation() -> None:
    sae = OMPSAE(12, 40, k=3, dropout=1.0)
    assert not sae.encode(cloud(5))[1].any(), "all concepts are dropped"
    assert sae.eval().encode(cloud(5))[1].any()
    assert sae.train().dropout is None


@pytest.mark.parametrize("kind", [MpSAE, OMPSAE])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k: 0, expected a whole number from 1 to nb_concepts = 40"),
        ({"k": 41}, "k: 41, expected"),
        ({"dropout": 1.5}, "dropout: 1.5, expected a number from 0 to 1"),
        ({"encoder_module": "linear"}, "encoder_module: 'linear', expected 'identity'"),
        ({"input_shape": (3, 4)}, r"input_shape: \(3, 4\), a pursuit takes one dimension"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"input_shape": 12, "nb_concepts": 40, **fields})


def test_max_iter_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match="max_iter: 0, expected a whole number above 0"):
        OMPSAE(12, 40, max_iter=0)


@pytest.mark.parametrize("name", ["MpSAE", "OMPSAE"])
def test_codes_are_those_of_the_package(name: str, package: Any) -> None:
    more = {"max_iter": 2000} if name == "OMPSAE" else {}
    theirs = getattr(package, name)(12, 40, k=5, **more).eval()
    rows = theirs.get_dictionary().detach().clone()
    ours = {"MpSAE": MpSAE, "OMPSAE": OMPSAE}[name](12, 40, k=5, dictionary_params={"initializer": rows}, **more).eval()
    x = cloud(50, seed=4)
    for mine, other in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=0)
