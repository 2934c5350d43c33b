"""Training settings, and the complete config of one trial."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from saebench.config.base import Coefficient, Config, Fraction, PositiveFloat, PositiveInt
from saebench.config.data import DataConfig
from saebench.config.sae import AnySAEConfig


class TrainConfig(Config):
    """Training settings. Schedules and windows are fractions of the run or counts of examples, never steps."""

    samples: PositiveInt
    """Budget of a trial: embeddings trained on, repetitions included. The same for every trial."""
    batch_size: PositiveInt = 512
    """Embeddings per optimiser step. If a spec leaves it out: the power of two nearest sqrt(samples), 64 to 4,096."""
    lr: PositiveFloat | None = None
    """Peak learning rate of Adam; null: one for the type, its dict_size and L0, d_in, batch size, steps and number of
    different texts, about 0.0176 sqrt(batch_size / dict_size); all of it is in docs/choosing.md."""
    lr_factor: PositiveFloat = 1.0
    """Factor on lr. Use a range to search around the default lr: {low: 0.25, high: 4, log: true}."""
    warmup: Fraction = 0.1
    """Share of the run over which lr rises from 0 to its peak."""
    decay: Fraction = 0.5
    """Share of the run, at the end, over which lr falls to 0."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's decay rate of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Adam's decay rate of the second moment."""
    eps: PositiveFloat = 6.25e-10
    """Adam's epsilon; small because the gradients are small."""
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    encoder_decay: Coefficient | None = None
    """Decay per epoch of the part of W_enc that is orthogonal to the decoder rows (arXiv 2405.13698); null: 1, but
    2 for matryoshka."""
    dead_after: PositiveInt | None = None
    """A latent is dead if it has not fired for this many examples; null: min(one epoch, 100,000); where AuxK revives
    latents, the longer of a sixteenth of the run and 64 firings of the average latent, if that is shorter; at least
    five steps."""
    eval_every: PositiveInt | None = None
    """Examples between two evaluations on the validation part; null: a twentieth of `samples`."""
    keep: Literal["best", "last"] = "best"
    """SAE to save. best: from the evaluation with the lowest eval/fvu (under a fixed penalty, from the last one). last:
    from the end of the run."""
    log_every: PositiveInt | None = None
    """Examples between two records of training metrics; null: a hundredth of `samples`."""
    checkpoint_every: PositiveInt | None = None
    """Examples between two checkpoints; null: at evaluations, but at least 10 s apart."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of the encoder's matrix product; weights stay float32."""
    deterministic: bool = False
    """Use deterministic CUDA kernels, so that a resumed run is bit-identical on a GPU too; on the CPU it always is."""
    cuda_graph: bool = True
    """On CUDA, record a training step once and replay it as a CUDA graph. Turn it off to debug operation by
    operation."""


def default_batch_size(samples: int) -> int:
    """Return the power of two nearest sqrt(samples) on a log scale, between 64 and 4,096."""
    return min(4096, max(64, 1 << round(math.log2(max(samples, 1)) / 2)))


DEAD_WINDOW = 100_000
"""Most examples of the default of `dead_after`."""


def default_eval_every(samples: int) -> int:
    """Return a twentieth of the budget, rounded up."""
    return -(-samples // 20)


def log_interval(train: TrainConfig) -> int:
    """Return `log_every`, by default a hundredth of the budget."""
    return train.log_every or max(1, train.samples // 100)


def marks(train: TrainConfig) -> tuple[int, ...]:
    """Return the numbers of examples after which a trial is evaluated and may be stopped: multiples of `eval_every`,
    then the end."""
    every = train.eval_every or default_eval_every(train.samples)
    return (*range(every, train.samples, every), train.samples)


FIXED_TRAIN_FIELDS = frozenset(
    {"samples", "keep", "eval_every", "log_every", "checkpoint_every", "deterministic", "cuda_graph"}
)
"""Fields of `train` that cannot be searched: compared trials must agree in them."""


class TrialConfig(Config):
    """One point with one seed: everything that a worker needs."""

    sweep: str
    """Name of the sweep."""
    number: Annotated[int, Field(ge=0)]
    """Number of the trial in the sweep, from 0; its directory is trials/NNNN."""
    stratum: str
    """Id of the stratum."""
    point: str
    """Id of the point, the same for all seeds."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the initialisation and of the order of the data."""
    data: DataConfig
    """Texts and encoder, or precomputed embeddings."""
    sae: AnySAEConfig
    """Architecture, with dict_size filled in."""
    train: TrainConfig
    """Budget, optimiser and schedules."""
    extra_metrics: tuple[str, ...] = ()
    """Metrics of `eval.metrics` to compute at the end."""
    second_encoder: str | None = None
    """Encoder that `example_auroc` is computed with."""
    second_key: str | None = None
    """Key of the cache entry with the second encoder's embeddings."""
    cache_key: str | None = None
    """Key of the cache entry that the sweep started with, even if the texts changed since; null: the key of `data`."""
