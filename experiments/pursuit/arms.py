"""The arms of the study: types of the product, variants that it does not have, other projects' pursuits, and floors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saebench.config import OMPConfig, PositiveInt, TopKConfig
from saebench.saes import sparse
from saebench.saes.base import Loss, Moment, Precision
from saebench.saes.ksparse import KSparseSAE
from saebench.saes.omp import OMPSAE
from saebench.saes.pursuit import pursue
from saebench.saes.refit import refit
from saebench.saes.sparse import SparseCodes


@dataclass(frozen=True)
class Arm:
    """A type at its defaults, but for some fields."""

    type: str
    fields: dict[str, Any]
    level: Literal["k", "target_l0"] = "k"


REFINED: dict[str, Any] = {"refine": 2, "refine_training": True}
ARMS: dict[str, Arm] = {
    "omp": Arm("omp", {}),
    "omp, 8 at a time": Arm("omp", {"at_a_time": 8}),
    "omp, target_l0": Arm("omp", {}, "target_l0"),
    "topk": Arm("topk", {}),
    "topk, multi": Arm("topk", {"multi_coeff": 0.125}),
    "topk, refined": Arm("topk", REFINED),
    "batchtopk": Arm("batchtopk", {}),
    "batchtopk, refined": Arm("batchtopk", REFINED),
    "matryoshka": Arm("matryoshka", {}),
    "jumprelu": Arm("jumprelu", {}, "target_l0"),
    "jumprelu, refined": Arm("jumprelu", {"refine": 2}, "target_l0"),
    "omp, 16 at a time": Arm("omp", {"at_a_time": 16}),
    "omp, 32 at a time": Arm("omp", {"at_a_time": 32}),
    "topk, 2 passes": Arm("passes", REFINED),
    "omp, second loss at k/4": Arm("omp_second", {"factor": 0.25, "weight": 1.0}),
    "omp, second loss at 4k": Arm("omp_second", {"factor": 4.0, "weight": 0.125}),
}
"""The first eleven are types of the product; the others look for what brings a pursuit's latents back."""


# --- variants that are not in the product ----------------------------------------------------------------------------


class PassesConfig(TopKConfig):
    """TopK in passes: each encodes the residual of the one before and adds its share of the k latents."""

    type: Literal["passes"] = "passes"  # type: ignore[assignment]
    passes: PositiveInt = 2


class PassesSAE(KSparseSAE):
    """Half of the latents by W_enc (x - b_dec), the values refined; the other half by W_enc of what is left."""

    config: PassesConfig

    def activate(self, pre: Tensor) -> Tensor:  # noqa: ARG002
        raise TypeError("passes need the embedding")

    def latents_of(self, z: Tensor) -> Tensor:
        centred = z - self.b_dec
        codes = self.select(centred)
        values = refit(centred, self.W_dec, codes, self.config.refine)
        dense = values.new_zeros(len(z), self.dict_size)
        return dense.index_put_((codes.row_of_pair, codes.indices), values, accumulate=True)

    def select(
        self,
        centred: Tensor,
        precision: Precision = "float32",  # noqa: ARG002
        k: float | None = None,
    ) -> SparseCodes:
        k = round(k or self.config.k)
        each = -(-k // self.config.passes)
        parts: list[tuple[Tensor, Tensor]] = []
        left, taken = centred, None
        for _ in range(self.config.passes):
            pre = left @ self.W_enc + self.b_enc
            if taken is not None:
                pre = pre.scatter(1, taken, -torch.inf)
            values, indices = pre.topk(each, dim=1)
            parts.append((values.relu(), indices))
            all_values, taken = (torch.cat(both, 1) for both in zip(*parts, strict=True))
            codes = _rows(all_values, taken, self.dict_size)
            with torch.no_grad():
                better = codes.with_values(refit(centred, self.W_dec, codes, self.config.refine, taken.shape[1]))
                left = centred - sparse.decode(better, self.W_dec)
        return codes


def _rows(values: Tensor, indices: Tensor, dict_size: int) -> SparseCodes:
    offsets = torch.arange(len(values) + 1) * values.shape[1]
    return SparseCodes(values.flatten(), indices.flatten(), offsets, dict_size)


class SecondConfig(OMPConfig):
    """omp with a second loss at another k, on a quarter of the batch."""

    type: Literal["omp_second"] = "omp_second"  # type: ignore[assignment]
    factor: float
    weight: float


class SecondSAE(OMPSAE):
    config: SecondConfig

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        first = super().loss(x, moment)
        z = self.training_input(x[: len(x) // 4])
        found = pursue(
            (z - self.b_dec).detach(), self.W_dec, self._training_gram, round(self.picks * self.config.factor),
            self.config.refit_every,
        )  # fmt: skip
        fvu = self.share(z - sparse.decode(_rows(found.values, found.indices, self.dict_size), self.W_dec, self.b_dec))
        total = first.total + self.config.weight * fvu
        return Loss(total, first.fvu, first.l0, first.fired, first.codes, first.parts)


# --- other projects' pursuits ----------------------------------------------------------------------------------------

PEERS: dict[str, tuple[str, float]] = {
    "overcomplete OMPSAE": ("omp", 0.012),
    "overcomplete MpSAE": ("mp", 0.012),
    "sae-lens matching_pursuit": ("lens", 0.012),
}
"""Name -> which, and the best of three rates that were tried before (0.0015, 0.004, 0.012)."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


def train_peer(
    name: str, rows: Tensor, next_batch: Callable[[], Tensor], k: int, dict_size: int, steps: int, lr: float
) -> Encode:
    """Train their pursuit and dictionary in a plain Adam loop: warm-up, linear fall over the last half, rows centred
    and scaled as ours. Return a function of x that gives (codes, x_hat)."""
    import peers  # experiments/benchmarks

    mean = rows.mean(0)
    scale = (rows - mean).square().sum(1).mean().sqrt()
    model, encode = peers.pursuit_model(PEERS[name][0], rows.shape[1], dict_size, k)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        share = step / steps
        for group in adam.param_groups:
            group["lr"] = lr * min((step + 1) / (0.05 * steps), 1.0, 2 * (1 - share))
        x = (next_batch() - mean) / scale
        (x - model.decode(encode(model, x))).square().mean().backward()
        adam.step()
        adam.zero_grad()

    @torch.no_grad()
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = encode(model, (x - mean) / scale)
        return codes, model.decode(codes) * scale + mean

    return apply
