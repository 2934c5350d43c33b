"""The base class of all SAE types and the table of types; the types themselves are in `architectures.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from saebench.config.base import Coefficient, Config, PositiveFloat, PositiveInt

Preprocess = Literal["none", "center", "unit", "center_scale", "layer_norm"]
Start = Literal["random", "data", "components"]
Control = Literal["frozen_decoder", "frozen_encoder", "soft_decoder"]


@dataclass(frozen=True)
class Penalty:
    """How the weight of a sparsity penalty is set: fixed, or adjusted by a controller to reach a target L0."""

    norm: Literal["l0", "l1"]
    """The norm that is penalised."""
    fixed: float | None
    """The weight in FVU units; None: a controller adjusts it to reach `target_l0`."""
    target_l0: float | None
    warmup: float
    """Share of the run over which the weight, or the controller's set point, reaches its final value."""


SAE_CONFIGS: dict[str, type[SAEConfig]] = {}
"""Type name -> config class. A class with a default for `type` is added when it is defined; every other table of types
derives from this one."""


class SAEConfig(Config):
    """Fields of every architecture. Give `dict_size` or `expansion_factor`; a trial's config always has `dict_size`.

    An architecture is a subclass with `type: Literal["name"] = "name"`, and `saes/name.py`.
    """

    sparsity: ClassVar[tuple[str, ...]] = ()
    """Fields that set the sparsity, one of them per arm; a stratum axis by default."""
    dense_products: ClassVar[int] = 5
    """Products of d_in x dict_size in a training step, 2 FLOPs each: encode, decode, three backward."""

    without: ClassVar[Mapping[Control, str]] = {}
    """Controls that the architecture does not support -> the reason."""
    pursues: ClassVar[bool] = False
    """Whether its encoder is a pursuit, which is fast only with compiled kernels."""
    signed: ClassVar[bool] = False
    """Whether activations may be negative; positive and negative values of a latent then have different meanings."""

    type: str
    """Name of the architecture."""
    dict_size: PositiveInt | None = None
    """Number of latents. Give this or expansion_factor."""
    expansion_factor: PositiveFloat | None = None
    """Number of latents divided by the width of the embeddings; the result is rounded. Give this or dict_size."""
    preprocess: Preprocess = "center_scale"
    """Invertible transformation of embeddings before the encoder, saved with the SAE. Metrics are always measured in
    the original space."""
    start: Start = "components"
    """Decoder rows at the start, of length 1: random directions; training rows minus b_dec; or independent components
    of the training rows, both ways (abs_topk: one way), and training rows without their part in these."""
    encoder_scale: PositiveFloat = 0.1
    """Initial W_enc as a multiple of the decoder's transpose."""
    control: Control | None = None
    """Train a control instead of an ordinary SAE: the decoder or the encoder keeps its random initial weights, or the
    decoder stays near them (arXiv 2602.14111); null: an ordinary SAE."""
    ortho_coeff: Coefficient = 0.0
    """Weight of OrtSAE's penalty: for each latent the squared cosine between its decoder row and the nearest other row,
    averaged over latents (arXiv 2509.22033); 0: off."""
    ortho_chunk: Annotated[int, Field(ge=2)] = 8192
    """Most latents among which `ortho_coeff` searches the nearest row; they are redrawn in every step."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["type"].default
        if isinstance(name, str):
            if name in SAE_CONFIGS:
                raise TypeError(f"{cls.__name__}: type {name!r} is taken by {SAE_CONFIGS[name].__name__}")
            SAE_CONFIGS[name] = cls

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if (self.dict_size is None) == (self.expansion_factor is None):
            raise ValueError("give dict_size or expansion_factor, one of the two")
        return self

    @model_validator(mode="after")
    def _possible_control(self) -> Self:
        if self.control is not None and self.control in self.without:
            raise ValueError(f"control {self.control}: {self.type} cannot have it: {self.without[self.control]}")
        return self

    @model_validator(mode="after")
    def _decoder_moves_for_ortho(self) -> Self:
        if self.ortho_coeff and self.control == "frozen_decoder":
            raise ValueError("ortho_coeff: a frozen decoder does not move, so that the penalty changes nothing")
        return self

    def width(self, d_in: int) -> int:
        """Return dict_size for embeddings of width `d_in`."""
        return self.dict_size if self.dict_size is not None else round((self.expansion_factor or 0) * d_in)

    @property
    def level(self) -> dict[str, float]:
        """Return the sparsity field that is set, with its value."""
        return {name: value for name, value in self if name in self.sparsity and value is not None}

    @property
    def penalty(self) -> Penalty | None:
        """The sparsity penalty; None for an architecture without one."""
        return None

    @property
    def anneals_k(self) -> bool:
        """Whether k falls during the run."""
        return False

    @property
    def sweeps(self) -> int:
        """Refinement sweeps over the values of the chosen latents at inference."""
        return 0

    @property
    def training_sweeps(self) -> int:
        """Refinement sweeps over the values of the chosen latents in training."""
        return 0

    @property
    def levels(self) -> tuple[int, ...]:
        """Values of k at which a single trained SAE is evaluated; () if only one."""
        return ()

    @property
    def revives(self) -> bool:
        """Whether training revives dead latents and therefore needs a list of them."""
        return False

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:  # noqa: ARG003 - k-sparse types read it
        """Return FLOPs per training example; a multiplication and an addition count as two."""
        return float(2 * cls.dense_products * d_in * dict_size)


def _sae_config(value: Any) -> SAEConfig:
    """Validate `value`, a mapping or a config, with the class that its `type` names."""
    if isinstance(value, SAEConfig):
        return value
    name = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in SAE_CONFIGS:
        raise ValueError(f"type {name!r}: must be one of {', '.join(SAE_CONFIGS)}")
    return SAE_CONFIGS[name].model_validate(value)


AnySAEConfig = Annotated[SAEConfig, PlainValidator(_sae_config), SerializeAsAny()]
"""A config of any class in `SAE_CONFIGS`; `type` selects the class."""
