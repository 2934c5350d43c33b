"""BatchTopK with overcomplete's interface: concepts, a dictionary layer, any encoder module, the user's own loop.

    sae = BatchTopKSAE(input_shape=768, nb_concepts=6144, top_k=32 * batch_size)
    z_pre, z, x_hat = sae(x)
    (x - x_hat).square().mean().backward()

Here `top_k` counts the codes kept in the *whole batch*; everywhere else in saebench k is per example. So the L0 is
top_k divided by the batch size, and a shorter last batch is denser: drop it, or use it for evaluation only.

As in overcomplete: one threshold per batch in training, its running average in evaluation, no decoder bias.
Different: the threshold is a buffer, so that the state dict holds it; of codes that tie at the threshold in training
the first ones are kept, so that exactly top_k are kept; in evaluation the dictionary follows the current weights, also
after load_state_dict; `mlp_*_1` has one hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saebench.saes.calibrate import NotCalibratedError


class Output(NamedTuple):
    """The module's output for N examples."""

    z_pre: Tensor
    """(N, nb_concepts): before the activation."""
    z: Tensor
    """(N, nb_concepts): the codes."""
    x_hat: Tensor
    """(N, d): the reconstruction."""


Normalization = Callable[[Tensor], Tensor]


def _by_norm(p: float, only_longer: bool) -> Normalization:
    def divide(weights: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(weights, ord=p, dim=1, keepdim=True)
        scaled: Tensor = weights / norms.clamp_min(1.0 if only_longer else 1e-12)
        return scaled

    return divide


NORMALIZATIONS: dict[str, Normalization] = {
    "l2": _by_norm(2, only_longer=False),
    "max_l2": _by_norm(2, only_longer=True),
    "l1": _by_norm(1, only_longer=False),
    "max_l1": _by_norm(1, only_longer=True),
    "identity": lambda weights: weights,
}
"""Name -> normalization of each row of the dictionary: to length 1, to at most 1, or none."""


class DictionaryLayer(nn.Module):
    """nb_concepts rows of length in_dimensions, kept to `normalization`, times exp(multiplier)."""

    def __init__(
        self,
        in_dimensions: int,
        nb_concepts: int,
        normalization: str | Normalization = "l2",
        initializer: Tensor | None = None,
        use_multiplier: bool = False,
    ) -> None:
        """`initializer`: initial rows (nb_concepts, in_dimensions); by default Xavier's, from torch's global generator.
        `use_multiplier`: learn one factor for all rows. Raises ValueError for a wrong shape or an unknown name."""
        super().__init__()
        shape = (nb_concepts, in_dimensions)
        if isinstance(normalization, str) and normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization: {normalization!r} must be one of {', '.join(NORMALIZATIONS)}")
        if initializer is not None and tuple(initializer.shape) != shape:
            raise ValueError(f"initializer: shape {tuple(initializer.shape)}, expected {shape}")
        self.normalization = NORMALIZATIONS[normalization] if isinstance(normalization, str) else normalization
        start = (
            nn.init.xavier_uniform_(torch.empty(shape, dtype=torch.float32))
            if initializer is None
            else initializer.detach().float()
        )
        self.weights = nn.Parameter(self.normalization(start.clone()))
        self.multiplier = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=use_multiplier)

    def forward(self) -> Tensor:
        """Return the dictionary (nb_concepts, in_dimensions). In training, normalize the weights in place first."""
        if self.training:
            self.weights.data = self.normalization(self.weights.detach())
            return self.weights * self.multiplier.exp()
        return self.normalization(self.weights) * self.multiplier.exp()


class Identity(nn.Module):
    """Returns its input as the code."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class MLP(nn.Module):
    """`hidden` blocks of linear, norm and ReLU, then a linear layer, followed by the norm too, if there is one."""

    def __init__(self, d_in: int, nb_concepts: int, hidden: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(d_in, d_in), norm(d_in), nn.ReLU()) for _ in range(hidden)]
        self.layers = nn.Sequential(*blocks, nn.Linear(d_in, nb_concepts), norm(nb_concepts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (before, after the ReLU), both (N, nb_concepts), for x (N, d_in)."""
        pre: Tensor = self.layers(x)
        return pre, pre.relu()


ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "identity": lambda _d, _n: Identity(),
    "linear": lambda d, n: MLP(d, n, 0, lambda _: nn.Identity()),
    "mlp_ln_1": lambda d, n: MLP(d, n, 1, nn.LayerNorm),
    "mlp_ln_3": lambda d, n: MLP(d, n, 3, nn.LayerNorm),
    "mlp_bn_1": lambda d, n: MLP(d, n, 1, nn.BatchNorm1d),
    "mlp_bn_3": lambda d, n: MLP(d, n, 3, nn.BatchNorm1d),
}
"""Name -> encoder of (input size, nb_concepts)."""


class BatchTopKSAE(nn.Module):
    """Training keeps the `top_k` largest codes of the whole batch (not per example); evaluation keeps the codes that
    are at least `running_threshold`."""

    threshold: Tensor

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        nb_concepts: int,
        top_k: int | None = None,
        threshold_momentum: float = 0.9,
        encoder_module: str | nn.Module | None = None,
        dictionary_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """`input_shape`: d, or (tokens, d) or (d, height, width) with a custom module that maps it to
        (N, nb_concepts). `top_k`: per batch; None: a tenth of nb_concepts. `encoder_module`: a name of ENCODERS,
        a module that returns (before, after the activation), or None for "linear". `dictionary_params`: see
        DictionaryLayer.

        Raises ValueError for a top_k below 1, a momentum outside [0, 1], an unknown name, or an input_shape that needs
        a custom module.
        """
        super().__init__()
        self.nb_concepts = nb_concepts
        self.top_k = max(nb_concepts // 10, 1) if top_k is None else top_k
        if self.top_k < 1:
            raise ValueError(f"top_k: {top_k}, expected at least 1 code per batch")
        if not 0 <= threshold_momentum <= 1:
            raise ValueError(f"threshold_momentum: {threshold_momentum}, expected a number from 0 to 1")
        self.threshold_momentum = threshold_momentum
        self.encoder = _encoder(encoder_module, input_shape, nb_concepts)
        self.dictionary = DictionaryLayer(_width(input_shape), nb_concepts, **(dictionary_params or {}))
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float32))
        self.to(device)

    @property
    def running_threshold(self) -> Tensor | None:
        """Return the running average of the smallest kept code; None before the first training batch."""
        return None if self.threshold.isnan() else self.threshold

    def forward(self, x: Tensor) -> Output:
        """Return (z_pre, z, x_hat) for x (N, d)."""
        z_pre, z = self.encode(x)
        return Output(z_pre, z, self.decode(z))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z_pre, z), both (N, nb_concepts). A training batch updates the running threshold. Raises ValueError
        for a training batch with fewer codes than top_k, and for NaN or inf, which would stay in the running threshold;
        NotCalibratedError in evaluation before any training."""
        if not x.isfinite().all():
            raise ValueError("the batch holds NaN or inf")
        z_pre, codes = self.encoder(x)
        if self.training:
            return z_pre, codes * self._largest(codes.detach())
        if self.threshold.isnan():
            raise NotCalibratedError("BatchTopKSAE: no running threshold yet, train on a batch first")
        return z_pre, codes * (codes >= self.threshold)

    def decode(self, z: Tensor) -> Tensor:
        """Return reconstructions (N, d) from codes (N, nb_concepts)."""
        return z @ self.get_dictionary()

    def get_dictionary(self) -> Tensor:
        """Return the dictionary (nb_concepts, d)."""
        dictionary: Tensor = self.dictionary()
        return dictionary

    @torch.no_grad()
    def _largest(self, codes: Tensor) -> Tensor:
        """Return a mask of the top_k largest codes, with ties broken by position; update the running threshold."""
        if codes.numel() < self.top_k:
            raise ValueError(f"top_k {self.top_k} of a batch with {codes.numel()} codes (top_k is for the whole batch)")
        flat = codes.flatten()
        least = flat.topk(self.top_k, sorted=False).values.amin()
        moved = self.threshold_momentum * self.threshold + (1 - self.threshold_momentum) * least
        self.threshold.copy_(torch.where(self.threshold.isnan(), least, moved))
        above, tied = flat > least, flat == least
        return (above | (tied & (tied.cumsum(0) <= self.top_k - above.sum()))).view_as(codes)


def _encoder(module: str | nn.Module | None, input_shape: int | tuple[int, ...], nb_concepts: int) -> nn.Module:
    if isinstance(module, nn.Module):
        return module
    name = "linear" if module is None else module
    if name not in ENCODERS:
        raise ValueError(f"encoder_module: {name!r} must be one of {', '.join(ENCODERS)}; or give a module")
    if not isinstance(input_shape, int):
        raise ValueError(f"input_shape: {input_shape} needs an encoder module of its own, {name!r} takes one dimension")
    return ENCODERS[name](input_shape, nb_concepts)


def _width(input_shape: int | tuple[int, ...]) -> int:
    """Return d from d, (tokens, d) or (d, height, width)."""
    if isinstance(input_shape, int):
        return input_shape
    if len(input_shape) not in (2, 3):
        raise ValueError(f"input_shape: {input_shape}, expected d, (tokens, d) or (d, height, width)")
    return input_shape[1] if len(input_shape) == 2 else input_shape[0]
