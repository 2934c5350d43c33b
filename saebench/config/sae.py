"""What every SAE type has, and the table of the types (which are in `architectures.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from saebench.config.base import Coefficient, Config, PositiveFloat, PositiveInt

Preprocess = Literal["none", "center", "unit", "center_scale", "layer_norm"]
Start = Literal["random", "data"]
Control = Literal["frozen_decoder", "frozen_encoder", "soft_decoder"]


@dataclass(frozen=True)
class Penalty:
    """How the weight of a sparsity penalty is set: fixed, or steered to an L0."""

    norm: Literal["l0", "l1"]
    """What is penalised."""
    fixed: float | None
    """The weight in FVU units; None: a controller steers it to `target_l0`."""
    target_l0: float | None
    warmup: float
    """Share of the run over which the weight, or the controller's set point, moves to its value."""


SAE_CONFIGS: dict[str, type[SAEConfig]] = {}
"""Type -> its config class. A class with a value for `type` enters here when it is defined; every other table of types
derives from this one."""


class SAEConfig(Config):
    """What every architecture has. Give `dict_size` or `expansion_factor`; a trial always holds `dict_size`.

    An architecture is a subclass with `type: Literal["name"] = "name"`, and `saes/name.py`.
    """

    sparsity: ClassVar[tuple[str, ...]] = ()
    """Fields of which the one that is given sets the sparsity; a stratum axis by default."""
    dense_products: ClassVar[int] = 5
    """Products of d_in x dict_size in a training step, 2 FLOPs each: encode, decode, three backward."""

    without: ClassVar[Mapping[Control, str]] = {}
    """Controls that the architecture cannot have, and why."""
    signed: ClassVar[bool] = False
    """Whether a latent may be negative: each end of it then means something of its own."""

    type: str
    """Architecture."""
    dict_size: PositiveInt | None = None
    """Number of latents."""
    expansion_factor: PositiveFloat | None = None
    """dict_size / d_in."""
    preprocess: Preprocess = "center_scale"
    """Invertible step before the encoder, saved with the SAE; metrics are in the original space all the same."""
    start: Start = "data"
    """Decoder rows at the start: random directions, or training rows minus b_dec, both scaled to length 1."""
    encoder_scale: PositiveFloat = 0.1
    """W_enc at the start, in units of the decoder's transpose."""
    control: Control | None = None
    """Train a control: the decoder, or the encoder, stays at its random start, or the decoder near it (2602.14111)."""
    ortho_coeff: Coefficient = 0.0
    """Weight of OrtSAE's penalty, the mean over latents of the squared cosine of the decoder row with the row nearest
    to it (2509.22033); 0: off."""
    ortho_chunk: Annotated[int, Field(ge=2)] = 8192
    """The nearest row is searched among at most this many latents, drawn anew in every step."""

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
        """dict_size for embeddings of width `d_in`."""
        return self.dict_size if self.dict_size is not None else round((self.expansion_factor or 0) * d_in)

    @property
    def level(self) -> dict[str, float]:
        """The sparsity field that is given, and its value."""
        return {name: value for name, value in self if name in self.sparsity and value is not None}

    @property
    def penalty(self) -> Penalty | None:
        """The sparsity penalty; None for an architecture without one."""
        return None

    @property
    def sweeps(self) -> int:
        """Sweeps over the values of the chosen latents at inference."""
        return 0

    @property
    def training_sweeps(self) -> int:
        """The same in training."""
        return 0

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of latents per example that one training serves, the errors of which are measured; () for one."""
        return ()

    @property
    def revives(self) -> bool:
        """Whether training revives dead latents, and so needs a list of them."""
        return False

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:  # noqa: ARG003 - k-sparse types read it
        """FLOPs of one training example, a multiplication and an addition counted as two."""
        return float(2 * cls.dense_products * d_in * dict_size)


def _sae_config(value: Any) -> SAEConfig:
    """`value`, a mapping or a config, by the class that its `type` names."""
    if isinstance(value, SAEConfig):
        return value
    name = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in SAE_CONFIGS:
        raise ValueError(f"type {name!r}: must be one of {', '.join(SAE_CONFIGS)}")
    return SAE_CONFIGS[name].model_validate(value)


AnySAEConfig = Annotated[SAEConfig, PlainValidator(_sae_config), SerializeAsAny()]
"""A config of any type in `SAE_CONFIGS`, told apart by `type`."""
