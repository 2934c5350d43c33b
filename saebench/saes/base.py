"""The base class of all architectures: affine encoder, unit-norm decoder, loss in units of the variance.

z is an embedding after preprocessing ("model space"), pre = (z - b_dec) W_enc + b_enc, latents = activate(pre),
z_hat = latents W_dec + b_dec. An architecture is a file beside this one that defines `activate` and `loss`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from inspect import get_annotations
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from saebench.config import SAEConfig
from saebench.saes import sparse
from saebench.saes.calibrate import rows_per_chunk, threshold_for, usual_l0
from saebench.saes.checks import check_finite, check_type, check_width
from saebench.saes.constraint import remove_along, shrink_across, to_unit_length
from saebench.saes.control import keep_near
from saebench.saes.initial import (
    component_count,
    component_rows,
    data_rows,
    geometric_median,
    training_variance,
    unit_rows,
)
from saebench.saes.kernels import Precision, affine
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import EXAMPLES, L1_LR, LR, WIDE_INPUT, LrRule
from saebench.saes.preprocess import Preprocessing, Side
from saebench.saes.refit import refined
from saebench.saes.sparse import Codes

SAE_TYPES: dict[str, type[SAE]] = {}
"""Type -> its class; a class is registered when it is defined, under the type of its config class."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder over embeddings of width d_in with dict_size latents.

    W_enc (d_in, dict_size) is stored latent by latent (the transpose of a contiguous tensor), as the sparse gradients
    write it; W_dec (dict_size, d_in) has rows of length 1.
    """

    default_encoder_decay: ClassVar[float] = 1.0
    """Decay of the encoder per epoch used if `train.encoder_decay` is null (experiments/recipe)."""
    lr_rule: ClassVar[LrRule] = LrRule()
    """How the default learning rate of the type is found (experiments/recipe)."""

    config: SAEConfig
    variance: Tensor
    offset: Tensor
    start_rows: Tensor

    def __init__(self, config: SAEConfig, d_in: int) -> None:
        super().__init__()
        self.config, self.d_in, self.dict_size = config, d_in, config.width(d_in)
        if self.dict_size < 1:
            raise ValueError(f"dict_size {self.dict_size} must be at least 1")
        if (self.target_l0 or 0) >= self.dict_size:
            raise ValueError(f"target_l0 must be below dict_size {self.dict_size}")
        self.make_encoder()
        self.W_dec = nn.Parameter(torch.zeros(self.dict_size, d_in, dtype=torch.float32))
        self.b_dec = nn.Parameter(torch.zeros(d_in, dtype=torch.float32))
        self.preprocessing = Preprocessing(config.preprocess, d_in)
        self.register_buffer("variance", torch.ones((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))
        self.W_dec.requires_grad_(config.control != "frozen_decoder")
        if config.control == "soft_decoder":
            self.register_buffer("start_rows", torch.zeros_like(self.W_dec), persistent=False)

    def extra_repr(self) -> str:
        """Return the widths and the sparsity parameter, for `print`."""
        sparsity = [f"{name}={value:g}" for name, value in self.config.level.items()]
        return ", ".join([f"d_in={self.d_in}", f"dict_size={self.dict_size}", *sparsity])

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register a class in `SAE_TYPES` if its annotation `config` names a concrete config class."""
        super().__init_subclass__(**kwargs)
        if "config" in get_annotations(cls):
            name = get_type_hints(cls)["config"].model_fields["type"].default
            if isinstance(name, str):
                SAE_TYPES[name] = cls

    @property
    def target_l0(self) -> float | None:
        """Return the L0 that the controller aims for in training; None without a controller."""
        return None if self.config.penalty is None else self.config.penalty.target_l0

    def make_encoder(self) -> None:
        """Create the encoder's parameters."""
        moves = self.config.control != "frozen_encoder"
        self.W_enc = nn.Parameter(torch.zeros(self.dict_size, self.d_in, dtype=torch.float32).t(), requires_grad=moves)
        self.b_enc = nn.Parameter(torch.zeros(self.dict_size, dtype=torch.float32))

    # --- defined by an architecture ---

    @abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """Return latents from pre-activations (B, dict_size), by the inference rule: an example's code does not depend
        on the other examples of its batch."""

    @abstractmethod
    def loss(self, x: Tensor, moment: Moment) -> Loss:
        """Return the training loss on embeddings x (B, d_in)."""

    def check_memory(self) -> None:
        """Raise UserError if the tensors that the type keeps besides its parameters do not fit the memory of its
        device."""

    def initialise_from(self, z: Tensor) -> None:
        """Initialise the parameters that depend on the data from training rows z (N, d_in) in model space."""

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Set the parameters that only inference uses from training rows (N, d_in); deterministic.

        With `target_l0`: set `offset` so that the mean L0 on the rows is exactly the target. The controller has brought
        the L0 of training batches there, but a trained SAE fires a few per cent more on rows it has not seen.
        Subtracting one number from every bias (or adding it to every threshold) does not change the architecture. If
        the target is out of reach, every latent with a finite margin fires.
        """
        if self.target_l0 is not None and len(rows):
            margins = (self.margins(pre) for pre in self.pre_activations_of(rows))
            self.offset.fill_(threshold_for(margins, max(1, round(self.target_l0 * len(rows))), floor=-torch.inf))

    def margins(self, pre: Tensor) -> Tensor:
        """Return by how much each pre-activation (B, dict_size) exceeds its latent's threshold, without `offset`."""
        return pre

    def pre_activations_of(self, rows: Tensor) -> Iterator[Tensor]:
        """Return the pre-activations of embeddings (N, d_in), a chunk of rows at a time."""
        return (self.pre_activations(z) for z in self.in_chunks(rows))

    def in_chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield embeddings (N, d_in) in model space, as many rows at a time as their pre-activations fill a chunk."""
        for chunk in torch.split(rows, rows_per_chunk(self.dict_size)):
            yield self.preprocessing(self.check(chunk.to(self.b_dec.device)))[0]

    def inference_values(self) -> dict[str, float]:
        """Return the numbers of the inference rule to record beside the metrics."""
        return {}

    def learning_rate_factors(self) -> dict[str, float]:
        """Return name -> factor of the parameters whose learning rate is a multiple of the others'."""
        return {}

    def default_lr(self, batch_size: int, samples: int, num_train: int) -> float:
        """Return the peak learning rate used if `train.lr` is null, for a run of `samples` examples from `num_train`
        distinct ones (experiments/recipe)."""
        l0 = usual_l0(self)
        lr = self.lr_rule.factor(l0, self.d_in, self.dict_size, samples / batch_size, batch_size)
        lr *= math.sqrt(batch_size / self.dict_size) * math.cbrt(min(1.0, EXAMPLES / min(samples, num_train)))
        penalty = self.config.penalty
        if penalty is not None and penalty.norm == "l1":
            return L1_LR * lr * math.sqrt(math.sqrt(self.dict_size / l0) / self.d_in)
        return LR * lr * math.cbrt(min(1.0, WIDE_INPUT / self.d_in))

    def training_state(self) -> dict[str, Tensor]:
        """Return the tensors on which further training depends and inference does not: part of a checkpoint, not of a
        saved SAE."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Load a state that `training_state` returned."""

    # --- use ---

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, dict_size) of embeddings (B, d_in), by the inference rule."""
        z, _ = self.preprocessing(self.check(x))
        return self.latents_of(z)

    def latents_of(self, z: Tensor) -> Tensor:
        """Return latents (B, dict_size) of embeddings z (B, d_in) in model space, by the inference rule."""
        latents = self.activate(self.pre_activations(z))
        return refined(z - self.b_dec, self.W_dec, latents, self.config.sweeps) if self.config.sweeps else latents

    def decode(self, latents: Tensor, side: Side | None = None) -> Tensor:
        """Return embeddings (B, d_in) in the original space from latents (B, dict_size).

        If preprocessing is per example (unit, layer_norm) and `side` is not given, the means over the training sample
        replace each example's length (and mean), which the code does not carry.
        """
        check_type(latents, "latents")
        check_width(latents, self.dict_size, "latents")
        return self.preprocessing.undo(affine(latents.to(self.W_dec.dtype), self.W_dec, self.b_dec), side)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (reconstruction in the original space (B, d_in), latents (B, dict_size)) of embeddings (B, d_in)."""
        z, side = self.preprocessing(self.check(x))
        latents = self.latents_of(z)
        return self.decode(latents, side), latents

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of x (B, d_in) in the original space, by the inference rule."""
        return self.reconstruct(x)[0]

    def pre_activations(self, z: Tensor, precision: Precision = "float32") -> Tensor:
        """Return (z - b_dec) W_enc + b_enc for z (B, d_in) in model space; `precision` applies to the product only."""
        return affine(z - self.b_dec, self.W_enc, self.b_enc, precision)

    def check(self, x: Tensor) -> Tensor:
        """Return x as float32. Raises TypeError if x is not a floating-point tensor, or the weights are not float32;
        ValueError for a wrong shape, NaN or inf."""
        return check_finite(self.check_shape(x))

    def check_shape(self, x: Tensor) -> Tensor:
        """Do the part of `check` that does not read values, so that a training step needs no device-to-host sync."""
        check_type(x, "embeddings")
        if self.W_dec.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"weights of type {self.W_dec.dtype}: an SAE computes in float32: sae.float()")
        check_width(x, self.d_in, "embeddings")
        return x.float()

    # --- training ---

    @torch.no_grad()
    def initialise(self, sample: Tensor, generator: torch.Generator) -> None:
        """Initialise from training rows `sample` (N, d_in), on the CPU: preprocessing, variance, b_dec = geometric
        median, decoder = unit rows (`start`), encoder = `encoder_scale` times its transpose, at every dict_size."""
        sample = self.check(sample)
        if len(sample) < 2:
            raise ValueError(f"{len(sample)} training rows: at least 2 are needed to start from")
        self.preprocessing.fit(sample)
        z, _ = self.preprocessing(sample)
        self.variance.copy_(training_variance(z))
        self.b_dec.copy_(geometric_median(z))
        self.W_dec.copy_(self._start_rows(z, generator))
        self.start_encoder()
        if self.config.control == "soft_decoder":
            self.start_rows.copy_(self.W_dec)
        self.initialise_from(z)

    def start_encoder(self) -> None:
        """Initialise the encoder's parameters from the decoder's."""
        scale = 1.0 if self.config.control == "frozen_encoder" else self.config.encoder_scale
        self.W_enc.copy_(self.W_dec.t() * scale)

    def _start_rows(self, z: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.start == "random" or self.config.control is not None:
            return unit_rows(self.dict_size, self.d_in, generator)
        if self.config.start == "data":
            return data_rows(self.dict_size, z, self.b_dec, generator)
        signed = self.config.signed
        count = component_count(usual_l0(self), self.dict_size, self.d_in, signed=signed)
        return component_rows(self.dict_size, z, self.b_dec, count, generator, signed=signed)

    @torch.no_grad()
    def decay_encoder(self, share: Tensor | float) -> None:
        """Shrink by `share` the part of each encoder column that is orthogonal to its latent's decoder row. This
        reduces memorisation and keeps the size of latents (plain weight decay shrinks them, as an L1 penalty does)."""
        if not self.W_enc.requires_grad or (not isinstance(share, Tensor) and share == 0):
            return
        shrink_across(self.W_enc.t(), self.W_dec, share)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient the part along each row: a step may rotate rows, not stretch them."""
        if self.W_dec.grad is not None:
            remove_along(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def constrain(self) -> None:
        """Normalize decoder rows to length 1 after the step, and keep them as near to their start as `control`
        requires."""
        if self.config.control == "frozen_decoder":
            return
        to_unit_length(self.W_dec)
        if self.config.control == "soft_decoder":
            keep_near(self.W_dec, self.start_rows)

    @torch.no_grad()
    def raise_thresholds(self, shift: Tensor) -> None:
        """Raise the threshold of every latent by `shift`, a scalar; a lower bias is a higher threshold."""
        self.b_enc.sub_(shift)

    def training_input(self, x: Tensor) -> Tensor:
        """Return a batch (B, d_in), B >= 1, in model space."""
        if len(x) == 0:
            raise ValueError("an empty batch has no loss")
        z: Tensor = self.preprocessing(self.check_shape(x))[0]
        return z

    def fvu(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """Return the mean squared length of the error over the variance of the training rows."""
        return self.share(z - z_hat)

    def share(self, residual: Tensor) -> Tensor:
        """Return the mean squared row length of a residual (B, d_in) over the variance of the training rows."""
        return residual.square().sum() / (len(residual) * self.variance)

    def l1(self, codes: Codes) -> Tensor:
        """Return the mean over examples of the L1 norm of codes >= 0, each latent weighted by its decoder row's length,
        in units of the standard deviation of the training rows."""
        weights = codes.spread(torch.linalg.vector_norm(self.W_dec, dim=1))
        l1: Tensor = (codes.values * weights).sum() / (codes.rows * self.variance.sqrt())
        return l1

    def above(self, z: Tensor, floor: Tensor | float, precision: Precision) -> Codes:
        """Return the pre-activations of z (B, d_in) above `floor` as pairs if they are few, else all of them, dense."""
        return sparse.encode_above(z - self.b_dec, self.W_enc, self.b_enc, floor, precision)

    def rebuilt(self, codes: Codes) -> Tensor:
        """Return z_hat (B, d_in) of training codes."""
        return sparse.decode(codes, self.W_dec, self.b_dec)
