"""How a trial trains, and all that a worker needs to know about one."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from saebench.config.base import Coefficient, Config, Fraction, PositiveFloat, PositiveInt
from saebench.config.data import DataConfig
from saebench.config.sae import AnySAEConfig


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
    """Examples between two evaluations on the validation part; null: a twentieth of the budget."""
    keep: Literal["best", "last"] = "best"
    """The SAE to save: of the mark with the lowest eval/fvu (under a fixed penalty: the last mark), or of the last."""
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
    {"samples", "keep", "eval_every", "log_every", "checkpoint_every", "deterministic", "cuda_graph"}
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
    second_encoder: str | None = None
    """Encoder that judges `example_auroc`."""
    second_key: str | None = None
    """Key of the cache entry with its embeddings."""
    cache_key: str | None = None
    """Key of the cache entry that the sweep began with, whatever became of the texts since; null: the one of `data`."""
