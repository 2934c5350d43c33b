"""What one trial is made of, and the parts of a sweep around it: frozen, typed, without torch or MLflow.

Every field is declared here once. `spec.py` lets the fields of an arm and of `train` be searched, `plan.py` turns the
result into `TrialConfig`s, a worker reads one of those and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    model_validator,
)

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Frozen, refuses unknown keys; a field's docstring is its description in the JSON schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def required(cls, given: Collection[str]) -> list[str]:
        """Fields that must be given beside these."""
        return [name for name, field in cls.model_fields.items() if field.is_required() and name not in given]


# --- data ------------------------------------------------------------------------------------------------------------


FILE_FORMATS = frozenset(
    {"arrow", "conll", "csv", "eval", "hdf5", "json", "lance", "pandas", "parquet", "sql", "text", "tsfile", "vortex"}
    | {"webdataset", "xml"}
)
"""Dataset paths that name a format: their `data_files` are files of this machine, found from the spec's folder and
known by their content. These are the formats from which `datasets` reads texts."""


def template_fields(template: str) -> list[str]:
    """Columns of a template. Raises ValueError if it is not one, or names no column."""
    parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    if not parts or not all(name and not spec and not how for name, spec, how in parts):
        raise ValueError('must name columns in braces, such as "{title}. {abstract}"')
    return [name for name, _, _ in parts]


def _template(template: str) -> str:
    template_fields(template)
    return template


class DatasetConfig(Config):
    """What goes to `datasets.load_dataset(path, name, data_files=..., split=..., revision=..., streaming=True)`."""

    path: str
    """Hub name, a local folder, or a builder such as "parquet", "json", "csv", "text"."""
    name: str | None = None
    """Configuration of the dataset, where it has several."""
    data_files: str | list[str] | None = None
    """File or files for a builder; relative ones are resolved against the spec's folder."""
    split: str = "train"
    """Split to read."""
    text_column: str = "text"
    """Column that holds the texts; a dot leads into a nested one ("paper.abstract")."""
    text: Annotated[str, AfterValidator(_template)] | None = None
    """Template over columns in the place of `text_column`, such as "{title}. {abstract}"."""
    label_column: str | None = None
    """Column with class labels, for probing; the SAE never sees it."""
    revision: str | None = None
    """Commit or tag of a hub dataset."""
    delimiter: str | None = None
    """What separates the fields of a CSV file; null: a comma. "\\t" is a tab."""
    encoding: str | None = None
    """Encoding of csv, json and text files, such as cp1252; null: UTF-8."""


LARGEST_CORPUS = 2**31
"""num_examples of embeddings of one's own, until their number is known."""


class HoldoutConfig(Config):
    """Shares of the texts that are not trained on. The part of a text is decided by its hash."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share for pruning, the choice of points and the curves."""
    test: Annotated[float, Field(gt=0, lt=1)]
    """Share for the verdict and every final number; measured once per trial, at its end."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.total >= 1:
            raise ValueError(f"validation and test leave nothing to train on: {self.validation:g} + {self.test:g}")
        return self

    @property
    def total(self) -> float:
        """Share of both."""
        return self.validation + self.test


class DataConfig(Config):
    """Texts, the encoder, and how they become rows of an embedding matrix; or `embeddings` of one's own in their place,
    for which model, dataset and num_examples need not be given."""

    model: str
    """Any SentenceTransformer name or path."""
    dataset: DatasetConfig
    """Where the texts come from."""
    num_examples: PositiveInt
    """Cap on the distinct, non-empty texts read, hold-out included."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | HoldoutConfig = 0.1
    """Share of the texts, chosen by their hash, that is only evaluated on: one number (a third of it is for validation,
    two thirds for test), or {validation, test}."""
    deduplicate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out a text whose embedding has a cosine above this with that of an earlier text, before the parts are
    divided; null: only texts that are equal are left out."""
    clean: Literal["whitespace", "none"] = "whitespace"
    """What happens to a text before it is compared, hashed and encoded. whitespace: every run of whitespace becomes one
    space, none is kept at the ends; none: the text is encoded as it is."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    prompt: str | None = None
    """Text put before every text; null: the model's own default prompt, if it has one; "": none."""
    normalize: bool = False
    """Scale every embedding to length 1 (many models do it themselves)."""
    max_seq_length: PositiveInt | None = None
    """Tokens kept of a text; null: the model's own limit."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored embeddings."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the encoder."""
    encode_batch_size: PositiveInt | None = None
    """Texts (of median length) per forward pass of the encoder; null: 64 on a CPU, 1,024 on a GPU."""
    embeddings: str | None = None
    """Embeddings of one's own: a .npy file (rows, values), a folder of such files, a .safetensors file with one
    tensor, or a .parquet file with one column of lists."""
    texts: str | None = None
    """With `embeddings`: a text per row, as a .txt (a line each), .npy or .json file, or a column of the .parquet
    file."""
    ids: str | None = None
    """With `embeddings`: an id per row, likewise. The part of a row is decided by its text, else its id, else its
    number."""
    labels: str | None = None
    """With `embeddings`: a class per row, likewise, for probing."""
    cache: bool = True
    """Encode once into the shared cache; `off`: stream and encode inside every trial."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_own_embeddings(cls, values: Any) -> Any:
        """Model and dataset are called after the file, where nothing else is said."""
        if not isinstance(values, dict) or not isinstance(values.get("embeddings"), str):
            return values
        path = values["embeddings"]
        names = {"model": path, "dataset": {"path": "embeddings", "data_files": path}, "num_examples": LARGEST_CORPUS}
        return {**names, **values}

    @classmethod
    def required(cls, given: Collection[str]) -> list[str]:
        """Own embeddings need no model and no dataset."""
        return [] if "embeddings" in given else super().required(given)

    @property
    def parts(self) -> HoldoutConfig:
        """Shares of validation and test."""
        if isinstance(self.holdout, HoldoutConfig):
            return self.holdout
        return HoldoutConfig(validation=self.holdout / 3, test=self.holdout * 2 / 3)


# --- SAEs ------------------------------------------------------------------------------------------------------------

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


class _RefineConfig(SAEConfig):
    refine: Annotated[int, Field(ge=0)] = 0
    """Sweeps of coordinate descent that move the values of the chosen latents towards the best ones; 0: as encoded."""

    @property
    def sweeps(self) -> int:
        return self.refine


class _RefinedTrainingConfig(_RefineConfig):
    refine_training: bool = False
    """Train the decoder on refined values too (the encoder learns from its own)."""

    @property
    def training_sweeps(self) -> int:
        return self.refine if self.refine_training else 0

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.refine_training and not self.refine:
            raise ValueError("refine_training needs refine: at least 1 sweep")
        return self


class KSparseConfig(SAEConfig):
    """What the types have that keep k latents: AuxK for dead latents."""

    sparsity: ClassVar[tuple[str, ...]] = ("k",)

    k: PositiveFloat
    """Latents kept per example, on average; may be fractional."""
    aux_coeff: Coefficient = 1 / 32
    """Weight of AuxK (Gao et al. 2024, 2406.04093, A.2); 0 turns it off."""
    k_aux: PositiveInt | None = None
    """Dead latents that rebuild the residual; null: the power of two nearest d_in / 2."""
    multi_coeff: Coefficient = 0.0
    """Weight of Multi-TopK's second loss, that of the code with `multi_factor` times k (2406.04093, 4.2); 0: off."""
    multi_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0
    """The second loss keeps this many times k latents."""
    multi_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of a batch that the second loss is measured on."""

    @property
    def revives(self) -> bool:
        return self.aux_coeff > 0

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:
        """The encoder's product, then four over the k active latents only."""
        return float(2 * d_in * dict_size + 8 * d_in * k)


class _PenaltyConfig(SAEConfig):
    target_l0: PositiveFloat | None = None
    """L0 that a controller steers to; calibration then takes the last few per cent on rows set aside."""
    sparsity_warmup: Fraction = 0.1
    """Share of the run over which the penalty ramps up, or the controller's set point falls to the target."""


class _L1Config(_PenaltyConfig):
    sparsity: ClassVar[tuple[str, ...]] = ("target_l0", "l1_coeff")

    l1_coeff: Coefficient | None = None
    """Weight of the L1 penalty in FVU units; give this or target_l0."""

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
    encoder_scale: PositiveFloat = 1.0
    """W_enc at the start, in units of the decoder's transpose: a smaller one would die under the penalty."""


class TopKConfig(KSparseConfig, _RefinedTrainingConfig):
    """Exactly k latents per example (Gao et al. 2024, 2406.04093)."""

    type: Literal["topk"] = "topk"
    k: PositiveInt
    """Latents kept per example."""


class BatchTopKConfig(KSparseConfig, _RefinedTrainingConfig):
    """k latents per example on average over the batch (Bussmann et al. 2024, 2412.06410)."""

    type: Literal["batchtopk"] = "batchtopk"


class JumpReLUConfig(_PenaltyConfig, _RefineConfig):
    """A learned threshold per latent, trained through straight-through estimators (Rajamanoharan et al. 2024)."""

    sparsity: ClassVar[tuple[str, ...]] = ("target_l0", "l0_coeff")

    type: Literal["jumprelu"] = "jumprelu"
    l0_coeff: Coefficient | None = None
    """Weight of the L0 penalty in FVU units; give this or target_l0."""
    bandwidth: PositiveFloat = 0.1
    """Width of the estimator's kernel, in units of the pre-activations' standard deviation."""
    threshold_lr_factor: PositiveFloat = 1.0
    """Learning rate of the thresholds over that of the weights; at 5, L0 swings once lr is above 1e-3."""

    @model_validator(mode="after")
    def _one_penalty(self) -> Self:
        if (self.l0_coeff is None) == (self.target_l0 is None):
            raise ValueError("give l0_coeff or target_l0, one of the two")
        return self

    @property
    def penalty(self) -> Penalty:
        return Penalty("l0", self.l0_coeff, self.target_l0, self.sparsity_warmup)


class GatedConfig(_L1Config):
    """A gate decides which latents fire, a magnitude path how strongly (Rajamanoharan et al. 2024, 2404.16014)."""

    dense_products: ClassVar[int] = 8
    """The gate has a decoder pass of its own."""

    type: Literal["gated"] = "gated"


def _whole(groups: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(groups) - 1) > 1e-6:
        raise ValueError(f"the shares must add up to 1, not {sum(groups):g}")
    return groups


class MatryoshkaConfig(KSparseConfig):
    """BatchTopK whose nested prefixes each reconstruct the input (Bussmann et al. 2025, 2503.17547)."""

    type: Literal["matryoshka"] = "matryoshka"
    groups: Annotated[tuple[PositiveFloat, ...], AfterValidator(_whole)] = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    """Share of the latents that each nested level adds; they add up to 1."""


def nested_widths(groups: tuple[float, ...], dict_size: int) -> tuple[int, ...]:
    """Latents in each nested level of a matryoshka SAE, strictly increasing, the last = dict_size. Raises ValueError
    for a level that adds none."""
    whole = sum(groups)
    widths = [round(total / whole * dict_size) for total in accumulate(groups)]
    if any(high <= low for low, high in pairwise((0, *widths))):
        shown = ", ".join(f"{share:g}" for share in groups[:8]) + (", ..." if len(groups) > 8 else "")
        raise ValueError(f"groups [{shown}] leave a level of {dict_size} latents empty")
    return tuple(widths)


class PAnnealConfig(_L1Config):
    """An Lp penalty whose p falls from 1 to `p_end` (Karvonen et al. 2024, 2408.00113)."""

    type: Literal["p_anneal"] = "p_anneal"
    encoder_scale: PositiveFloat = 1.0
    """W_enc at the start, in units of the decoder's transpose: a smaller one would die under the penalty."""
    p_end: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Exponent at the end of the run."""
    anneal_start: Fraction = 0.3
    """Share of the run after which p begins to fall."""


class OMPConfig(SAEConfig):
    """Non-negative orthogonal matching pursuit in a dictionary trained for it; latents are picked one by one."""

    sparsity: ClassVar[tuple[str, ...]] = ("k", "target_l0")
    without: ClassVar[Mapping[Control, str]] = {
        "frozen_encoder": "its encoder is the pursuit in its own decoder; frozen_decoder freezes both"
    }

    type: Literal["omp"] = "omp"
    start: Start = "data"
    """Decoder rows at the start: random directions, or training rows minus b_dec, both scaled to length 1."""
    k: PositiveInt | None = None
    """Latents picked per example at most; give this or target_l0."""
    target_l0: PositiveFloat | None = None
    """Latents per example on average: picks end where none explains more than a calibrated threshold."""
    refit_every: PositiveInt = 8
    """Picks between two refits of all values."""
    at_a_time: PositiveInt = 1
    """Latents picked at once, with a refit after each such group in the place of `refit_every`; more: steadier codes,
    more error."""

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if (self.k is None) == (self.target_l0 is None):
            raise ValueError("give k or target_l0, one of the two")
        return self

    @classmethod
    def flops_per_example(cls, d_in: int, dict_size: int, k: float) -> float:
        """The first product, then per pick a row of the Gram matrix (two and a half: refits), and three in d_in."""
        return float(2 * d_in * dict_size + 5 * k * dict_size + 14 * d_in * k)


# --- training --------------------------------------------------------------------------------------------------------


class TrainConfig(Config):
    """How a trial trains. Schedules and windows are fractions of the run or counts of examples."""

    samples: PositiveInt
    """The budget: embeddings seen, the same for every trial."""
    batch_size: PositiveInt = 512
    """Embeddings per optimiser step; without it a spec gets the power of two nearest sqrt(samples), 64 to 4,096."""
    lr: PositiveFloat | None = None
    """Peak learning rate of Adam; null: 0.0176 sqrt(batch_size / dict_size), for jumprelu 0.0117 times that root."""
    lr_factor: PositiveFloat = 1.0
    """Multiplies lr; a range of it searches around the default: {low: 0.25, high: 4, log: true}."""
    warmup: Fraction = 0.1
    """Share of the run over which lr rises from 0 to its peak."""
    decay: Fraction = 0.5
    """Share of the run, at its end, over which lr falls to 0."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Adam's decay of the second moment."""
    eps: PositiveFloat = 6.25e-10
    """Adam's epsilon; small, because the gradients are."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    encoder_decay: Coefficient | None = None
    """Decay per epoch of what in W_enc is orthogonal to decoder rows (2405.13698); null: 1, under an L1 penalty 0."""
    dead_after: PositiveInt | None = None
    """Examples without firing after which a latent is dead; null: min(one epoch, 100,000), at least five steps."""
    eval_every: PositiveInt | None = None
    """Examples between two evaluations on the hold-out; null: a twentieth of the budget."""
    log_every: PositiveInt | None = None
    """Examples between two records of training metrics; null: a hundredth of the budget."""
    checkpoint_every: PositiveInt | None = None
    """Examples between two checkpoints; null: at evaluations, 10 s apart or more."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder's matrix product; weights stay float32."""
    deterministic: bool = False
    """Deterministic CUDA kernels, so that resuming is bit-exact there too (CPU always is)."""
    cuda_graph: bool = True
    """On CUDA, record a step once and replay it; off, to look for errors operation by operation."""


def default_batch_size(samples: int) -> int:
    """The power of two nearest sqrt(samples), on the scale of exponents, between 64 and 4,096."""
    return min(4096, max(64, 1 << round(math.log2(max(samples, 1)) / 2)))


def marks(train: TrainConfig) -> tuple[int, ...]:
    """Examples seen at which a trial evaluates and may be stopped: multiples of `eval_every`, then the end."""
    every = train.eval_every or -(-train.samples // 20)
    return (*range(every, train.samples, every), train.samples)


FIXED_TRAIN_FIELDS = frozenset(
    {"samples", "eval_every", "log_every", "checkpoint_every", "deterministic", "cuda_graph"}
)
"""Fields of `train` that cannot be searched: trials are compared at the same of these."""


class TrialConfig(Config):
    """One point with one seed: all that a worker needs to know."""

    sweep: str
    """Name of the sweep."""
    number: Annotated[int, Field(ge=0)]
    """Number of the trial in the sweep; its directory is trials/NNNN."""
    stratum: str
    """Id of the stratum."""
    point: str
    """Id of the point: the same for all seeds."""
    seed: Annotated[int, Field(ge=0)]
    """Fixes initialisation and data order."""
    data: DataConfig
    """Texts and encoder."""
    sae: AnySAEConfig
    """Architecture, with dict_size filled in."""
    train: TrainConfig
    """Budget and optimiser."""
    extra_metrics: tuple[str, ...] = ()
    """Embedding-aware metrics to compute at the end."""
    cache_key: str | None = None
    """Key of the cache entry that the sweep began with, whatever became of the texts since; null: the one of `data`."""
