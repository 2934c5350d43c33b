"""The SAE types: one config class per architecture; its SAE is in the file of the same name in `saes/`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from saebench.config.base import Coefficient, Fraction, PositiveFloat, PositiveInt
from saebench.config.sae import Control, Penalty, SAEConfig


class _RefineConfig(SAEConfig):
    refine: Annotated[int, Field(ge=0)] = 0
    """Sweeps of coordinate descent at inference that improve the values of the chosen latents; 0: values stay as
    encoded."""

    @property
    def sweeps(self) -> int:
        return self.refine


class _RefinedTrainingConfig(_RefineConfig):
    refine_training: bool = False
    """Train the decoder on refined values; the encoder still trains on the values that it computed. Needs refine of at
    least 1, excludes k_start."""

    @property
    def training_sweeps(self) -> int:
        return self.refine if self.refine_training else 0

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.refine_training and not self.refine:
            raise ValueError("refine_training needs refine: at least 1 sweep")
        if self.refine_training and self.anneals_k:
            raise ValueError("give refine_training or k_start, not both: refined values would undo the fall of k")
        return self


class KSparseConfig(SAEConfig):
    """Fields of the types that keep k latents per example, among them AuxK for dead latents."""

    sparsity: ClassVar[tuple[str, ...]] = ("k",)

    k: PositiveFloat
    """Latents kept per example, averaged over the batch; may be fractional."""
    aux_coeff: Coefficient = 1 / 32
    """Weight of the AuxK loss, which revives dead latents (Gao et al. 2024, arXiv 2406.04093, A.2); 0: off."""
    k_aux: PositiveInt | None = None
    """Dead latents that AuxK uses to reconstruct the residual; null: the power of two nearest d_in / 2."""
    multi_coeff: Coefficient = 0.0
    """Weight of Multi-TopK's second loss, measured with `multi_factor` times k latents (arXiv 2406.04093, 4.2); 0:
    off."""
    multi_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0
    """Latents kept for the second loss, as a multiple of k; above 1."""
    multi_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of each batch on which the second loss is measured."""
    k_start: PositiveFloat | None = None
    """k at the start of the run, above `k`; it falls linearly to `k` (arXiv 2602.05735, for k of 8 and less). Every
    step costs as much as one with k_start latents. null: k is constant."""
    k_anneal: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run over which k falls from `k_start`."""

    @model_validator(mode="after")
    def _k_falls(self) -> Self:
        if self.k_start is not None and self.k_start <= self.k:
            raise ValueError(f"k_start {self.k_start:g} must exceed k {self.k:g}, to which it falls")
        return self

    @property
    def revives(self) -> bool:
        return self.aux_coeff > 0

    @property
    def anneals_k(self) -> bool:
        return self.k_start is not None

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:
        """One product for the encoder, then four over the k active latents only."""
        return float(2 * d_in * dict_size + 8 * d_in * k)


class _PenaltyConfig(SAEConfig):
    target_l0: PositiveFloat | None = None
    """L0 (mean latents per example) to reach: a controller shifts all thresholds and adjusts the penalty's weight
    during training, then calibration on rows set aside corrects the last few per cent."""
    sparsity_warmup: Fraction = 0.1
    """Share of the run over which a fixed penalty rises to its weight, or the controller's set point falls to the
    target."""


class _L1Config(_PenaltyConfig):
    sparsity: ClassVar[tuple[str, ...]] = ("target_l0", "l1_coeff")

    l1_coeff: Coefficient | None = None
    """Fixed weight of the L1 penalty in FVU units. Give this or target_l0."""

    @model_validator(mode="after")
    def _one_penalty(self) -> Self:
        if (self.l1_coeff is None) == (self.target_l0 is None):
            raise ValueError("give l1_coeff or target_l0, one of the two")
        return self

    @property
    def penalty(self) -> Penalty:
        return Penalty("l1", self.l1_coeff, self.target_l0, self.sparsity_warmup)


class VanillaConfig(_L1Config):
    """ReLU with an L1 penalty weighted by decoder norms (Bricken et al. 2023)."""

    type: Literal["vanilla"] = "vanilla"


class TopKConfig(KSparseConfig, _RefinedTrainingConfig):
    """Exactly k latents per example (Gao et al. 2024, arXiv 2406.04093)."""

    type: Literal["topk"] = "topk"
    k: PositiveInt
    """Latents kept per example."""


class BatchTopKConfig(KSparseConfig, _RefinedTrainingConfig):
    """k latents per example, averaged over the batch (Bussmann et al. 2024, arXiv 2412.06410)."""

    type: Literal["batchtopk"] = "batchtopk"


class AbsTopKConfig(KSparseConfig):
    """The k latents of largest magnitude per example, with their sign (arXiv 2510.00404)."""

    signed: ClassVar[bool] = True

    type: Literal["abs_topk"] = "abs_topk"
    k: PositiveInt
    """Latents kept per example."""


class HierarchicalTopKConfig(KSparseConfig):
    """TopK trained on the mean error of its 1, 2, ... k largest latents (arXiv 2505.24473): one SAE for every k."""

    type: Literal["hierarchical_topk"] = "hierarchical_topk"
    k: PositiveInt
    """Latents kept per example at most; the trained SAE can be used with any smaller number."""

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        for name, off in (("multi_coeff", 0.0), ("k_start", None)):
            if getattr(self, name) != off:
                raise ValueError(f"{name}: hierarchical_topk trains every k up to {self.k} at once; leave it out")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        return (*(1 << n for n in range(self.k.bit_length()) if 1 << n < self.k), self.k)

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:
        """FLOPs of TopK plus three passes over the k errors."""
        return super().flops_per_example(d_in, dict_size, k) + 6 * d_in * k


class JumpReLUConfig(_PenaltyConfig, _RefineConfig):
    """A learned threshold per latent, trained with straight-through estimators (Rajamanoharan et al. 2024)."""

    sparsity: ClassVar[tuple[str, ...]] = ("target_l0", "l0_coeff")

    type: Literal["jumprelu"] = "jumprelu"
    l0_coeff: Coefficient | None = None
    """Fixed weight of the L0 penalty in FVU units. Give this or target_l0."""
    bandwidth: PositiveFloat = 0.1
    """Width of the straight-through estimator's kernel, in standard deviations of the pre-activations."""
    threshold_lr_factor: PositiveFloat = 1.0
    """Learning rate of the thresholds divided by that of the weights. At 5, L0 oscillates if lr is above 1e-3."""

    @model_validator(mode="after")
    def _one_penalty(self) -> Self:
        if (self.l0_coeff is None) == (self.target_l0 is None):
            raise ValueError("give l0_coeff or target_l0, one of the two")
        return self

    @property
    def penalty(self) -> Penalty:
        return Penalty("l0", self.l0_coeff, self.target_l0, self.sparsity_warmup)


class GatedConfig(_L1Config):
    """A gate decides which latents fire, a magnitude path how strongly (Rajamanoharan et al. 2024, arXiv
    2404.16014)."""

    dense_products: ClassVar[int] = 8
    """The gate has a decoder pass of its own."""

    type: Literal["gated"] = "gated"


def _whole(groups: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(groups) - 1) > 1e-6:
        raise ValueError(f"the shares must add up to 1, not {sum(groups):g}")
    return groups


class MatryoshkaConfig(KSparseConfig):
    """BatchTopK whose nested prefixes each reconstruct the input (Bussmann et al. 2025, arXiv 2503.17547)."""

    type: Literal["matryoshka"] = "matryoshka"
    groups: Annotated[tuple[PositiveFloat, ...], AfterValidator(_whole)] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Share of the latents that each nested level adds; the shares sum to 1."""


def nested_widths(groups: tuple[float, ...], dict_size: int) -> tuple[int, ...]:
    """Return the number of latents in each nested level of a matryoshka SAE: strictly increasing, the last is
    dict_size. Raises ValueError if a level adds no latent."""
    whole = sum(groups)
    widths = [round(total / whole * dict_size) for total in accumulate(groups)]
    if any(high <= low for low, high in pairwise((0, *widths))):
        shown = ", ".join(f"{share:g}" for share in groups[:8]) + (", ..." if len(groups) > 8 else "")
        raise ValueError(f"groups [{shown}] leave a level of {dict_size} latents empty")
    return tuple(widths)


class PAnnealConfig(_L1Config):
    """An Lp penalty whose p falls from 1 to `p_end` (Karvonen et al. 2024, arXiv 2408.00113)."""

    type: Literal["p_anneal"] = "p_anneal"
    p_end: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Exponent p of the penalty at the end of the run; above 0, at most 1."""
    anneal_start: Fraction = 0.3
    """Share of the run after which p starts to fall."""


class OMPConfig(SAEConfig):
    """Non-negative orthogonal matching pursuit in a dictionary trained for it; latents are picked one by one."""

    sparsity: ClassVar[tuple[str, ...]] = ("k", "target_l0")
    pursues: ClassVar[bool] = True
    without: ClassVar[Mapping[Control, str]] = {
        "frozen_encoder": "its encoder is the pursuit in its own decoder; frozen_decoder freezes both"
    }

    type: Literal["omp"] = "omp"
    k: PositiveInt | None = None
    """Latents picked per example at most. Give this or target_l0."""
    target_l0: PositiveFloat | None = None
    """Mean latents per example: picking stops once no latent explains more than a calibrated threshold."""
    refit_every: PositiveInt = 8
    """Picks between two refits of all values."""
    at_a_time: PositiveInt = 1
    """Latents picked at once; if above 1, values are refitted after each such group in place of `refit_every`. More
    give steadier codes and a larger error."""

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if (self.k is None) == (self.target_l0 is None):
            raise ValueError("give k or target_l0, one of the two")
        return self

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:
        """One product for the encoder; per pick 2.5 passes over a row of the Gram matrix (refits included) and 7 over
        d_in."""
        return float(2 * d_in * dict_size + 5 * k * dict_size + 14 * d_in * k)
