"""What every architecture shares: the affine encoder, the unit-norm decoder, the loss in units of the variance.

z is an embedding after preprocessing ("model space"), pre = (z - b_dec) W_enc + b_enc, latents = activate(pre),
z_hat = latents W_dec + b_dec. An architecture is a file beside this one that says how to activate and what to minimise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import get_annotations
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from saebench.config import SAEConfig
from saebench.errors import UserError
from saebench.saes import sparse
from saebench.saes.calibrate import rows_per_chunk, threshold_for
from saebench.saes.control import keep_near
from saebench.saes.initial import data_rows, geometric_median, unit_rows
from saebench.saes.kernels import Precision as Precision
from saebench.saes.kernels import affine, blocks
from saebench.saes.preprocess import Preprocessing, Side
from saebench.saes.pursuit import refit
from saebench.saes.sparse import Codes, SparseCodes

LR = 0.0176
"""Peak learning rate, in units of sqrt(batch_size / dict_size): measured, also at d_in 50 and 384 the same."""


@dataclass(frozen=True)
class Dead:
    """Latents that AuxK may revive. `index` (M,) may be longer than the list (a fixed length avoids a
    device-to-host sync); only where `still_dead` (M,) is true does an entry count."""

    index: Tensor
    still_dead: Tensor


@dataclass(frozen=True)
class Moment:
    """What a loss needs to know about the run around it."""

    progress: Tensor | float = 0.0
    """Share of the run that is done, 0 to 1."""
    coeff: Tensor | float = 0.0
    """Weight of the sparsity penalty now (schedule or controller)."""
    dead: Dead | None = None
    """Dead latents; None: AuxK is off."""
    precision: Precision = "float32"
    """Arithmetic of the encoder's matrix product."""


@dataclass(frozen=True)
class Loss:
    """The training loss of one batch, on its device."""

    total: Tensor
    """Scalar to minimise."""
    fvu: Tensor
    """Squared error over the training variance, scalar, detached."""
    l0: Tensor
    """Mean number of latents that fire, scalar, detached."""
    fired: Tensor
    """(dict_size,) bool: fired on some example of the batch."""
    codes: Codes
    """The training codes, with their gradient."""
    parts: dict[str, Tensor | float] = field(default_factory=dict)
    """Further scalars to record, detached, by metric key."""

    @classmethod
    def of(cls, total: Tensor, fvu: Tensor, codes: Codes, parts: dict[str, Tensor | float]) -> Loss:
        """The loss of a batch with these training codes."""
        firing = codes.firing()
        return cls(total, fvu.detach(), firing.sum() / codes.rows, firing > 0, codes, parts)


class NotCalibratedError(UserError, RuntimeError):
    """An inference threshold was never set; without it the code would be dense."""


SAE_TYPES: dict[str, type[SAE]] = {}
"""Type -> its class; a class enters here when it is defined, by the type of its config class."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder over embeddings of width d_in with dict_size latents.

    W_enc (d_in, dict_size) lies in memory latent by latent, as the sparse gradients write it; W_dec
    (dict_size, d_in) has rows of length 1.
    """

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
        """What `print` shows: the widths and what sets the sparsity."""
        sparsity = [f"{name}={value:g}" for name, value in self.config.level.items()]
        return ", ".join([f"d_in={self.d_in}", f"dict_size={self.dict_size}", *sparsity])

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter a class whose annotation `config` names a concrete config class into `SAE_TYPES`."""
        super().__init_subclass__(**kwargs)
        if "config" in get_annotations(cls):
            name = get_type_hints(cls)["config"].model_fields["type"].default
            if isinstance(name, str):
                SAE_TYPES[name] = cls

    @property
    def target_l0(self) -> float | None:
        """L0 that a controller steers to while training; None where nothing is steered."""
        return None if self.config.penalty is None else self.config.penalty.target_l0

    def make_encoder(self) -> None:
        """Create the encoder's parameters."""
        moves = self.config.control != "frozen_encoder"
        self.W_enc = nn.Parameter(torch.zeros(self.dict_size, self.d_in, dtype=torch.float32).t(), requires_grad=moves)
        self.b_enc = nn.Parameter(torch.zeros(self.dict_size, dtype=torch.float32))

    # --- what an architecture defines ---

    @abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations (B, dict_size) to latents, by the rule of inference: an example's code is its own."""

    @abstractmethod
    def loss(self, x: Tensor, moment: Moment) -> Loss:
        """The training loss on embeddings x (B, d_in)."""

    def initialise_from(self, z: Tensor) -> None:
        """Set what depends on the data, given training rows z (N, d_in) in model space."""

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Set what only inference needs from training rows (N, d_in); the same rows give the same.

        With `target_l0`: `offset`, so that the mean L0 on the rows is the target exactly. The controller has brought
        the L0 of training batches there; what remains is that a trained SAE fires a few per cent more on rows it has
        not seen. Subtracting one number from every bias (or adding it to every threshold) leaves the architecture
        what it is. A target that cannot be reached leaves all firing that can.
        """
        if self.target_l0 is not None and len(rows):
            margins = (self.margins(pre) for pre in self.pre_activations_of(rows))
            self.offset.fill_(threshold_for(margins, max(1, round(self.target_l0 * len(rows))), floor=-torch.inf))

    def margins(self, pre: Tensor) -> Tensor:
        """By how much each pre-activation (B, dict_size) exceeds what makes its latent fire; `offset` not counted."""
        return pre

    def pre_activations_of(self, rows: Tensor) -> Iterator[Tensor]:
        """Pre-activations of embeddings (N, d_in), some rows at a time."""
        for chunk in torch.split(rows, rows_per_chunk(self.dict_size)):
            z, _ = self.preprocessing(self.check(chunk.to(self.b_dec.device)))
            yield self.pre_activations(z)

    def inference_values(self) -> dict[str, float]:
        """Numbers of the inference rule to record beside the metrics."""
        return {}

    def learning_rate_factors(self) -> dict[str, float]:
        """Parameters whose learning rate is a multiple of the others'."""
        return {}

    def default_lr(self, batch_size: int) -> float:
        """Peak learning rate where `train.lr` is null (experiments/recipe)."""
        return LR * math.sqrt(batch_size / self.dict_size)

    def default_encoder_decay(self) -> float:
        """Decay of the encoder per epoch where `train.encoder_decay` is null."""
        return 1.0

    def training_state(self) -> dict[str, Tensor]:
        """What the steps to come depend on and inference does not: part of a checkpoint, not of a saved SAE."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `training_state` gave."""

    # --- use ---

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings (B, d_in) to latents (B, dict_size), by the rule of inference."""
        z, _ = self.preprocessing(self.check(x))
        return self.latents_of(z)

    def latents_of(self, z: Tensor) -> Tensor:
        """Latents (B, dict_size) of embeddings z (B, d_in) in model space, by the rule of inference."""
        latents = self.activate(self.pre_activations(z))
        return self.refined(z, latents) if self.config.sweeps else latents

    @torch.no_grad()
    def refined(self, z: Tensor, latents: Tensor) -> Tensor:
        """`latents` (B, dict_size) with the values of those that fire moved towards the best ones for z (B, d_in)."""
        rows, indices = latents.nonzero().unbind(1)
        offsets = torch.searchsorted(rows, torch.arange(len(z) + 1, device=z.device))
        codes = SparseCodes(latents[rows, indices], indices, offsets, self.dict_size)
        return codes.with_values(refit(z - self.b_dec, self.W_dec, codes, self.config.sweeps)).dense()

    def decode(self, latents: Tensor, side: Side | None = None) -> Tensor:
        """Latents (B, dict_size) to embeddings (B, d_in) in the original space.

        Where preprocessing is per example (unit, layer_norm) and `side` is not given, its mean over the training
        sample stands in for the length (and mean) that the code does not carry.
        """
        _check_type(latents, "latents")
        if latents.ndim != 2 or latents.shape[1] != self.dict_size:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: expected (B, {self.dict_size})")
        return self.preprocessing.undo(affine(latents.to(self.W_dec.dtype), self.W_dec, self.b_dec), side)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, d_in) to (reconstruction in the original space (B, d_in), latents (B, dict_size))."""
        z, side = self.preprocessing(self.check(x))
        latents = self.latents_of(z)
        return self.decode(latents, side), latents

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x (B, d_in) in the original space, by the rule of inference."""
        return self.reconstruct(x)[0]

    def pre_activations(self, z: Tensor, precision: Precision = "float32") -> Tensor:
        """(z - b_dec) W_enc + b_enc for z (B, d_in) in model space; `precision` is that of the product alone."""
        return affine(z - self.b_dec, self.W_enc, self.b_enc, precision)

    def check(self, x: Tensor) -> Tensor:
        """x as float32. Raises TypeError for what is no floating tensor, and where the weights were made 16 bits wide;
        ValueError for another shape, NaN or inf."""
        x = self.check_shape(x)
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).any(1).nonzero()[0])
            raise ValueError(f"row {bad} of the batch holds NaN or inf")
        return x

    def check_shape(self, x: Tensor) -> Tensor:
        """The part of `check` that needs no look at the values (so that a training step does not wait for them)."""
        _check_type(x, "embeddings")
        if self.W_dec.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"weights of type {self.W_dec.dtype}: an SAE computes in float32: sae.float()")
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ValueError(f"embeddings of shape {tuple(x.shape)}: expected (B, {self.d_in})")
        return x.float()

    # --- training ---

    @torch.no_grad()
    def initialise(self, sample: Tensor, generator: torch.Generator) -> None:
        """Start from training rows `sample` (N, d_in), on the CPU: preprocessing, variance, b_dec = geometric median,
        decoder = unit rows (random, or from the data), encoder = `encoder_scale` times its transpose, whatever
        dict_size is."""
        sample = self.check(sample)
        if len(sample) < 2:
            raise ValueError(f"{len(sample)} training rows: at least 2 are needed to start from")
        self.preprocessing.fit(sample)
        z, _ = self.preprocessing(sample)
        variance = (z.double() - z.double().mean(0)).square().sum(1).mean()
        if not variance > 1e-12 * z.double().square().sum(1).mean():
            raise ValueError("the training rows are all the same: there is no variance to explain")
        self.variance.copy_(variance)
        self.b_dec.copy_(geometric_median(z))
        self.W_dec.copy_(self._start_rows(z, generator))
        self.start_encoder()
        if self.config.control == "soft_decoder":
            self.start_rows.copy_(self.W_dec)
        self.initialise_from(z)

    def start_encoder(self) -> None:
        """Set the encoder's parameters at the start, from the decoder's."""
        scale = 1.0 if self.config.control == "frozen_encoder" else self.config.encoder_scale
        self.W_enc.copy_(self.W_dec.t() * scale)

    def _start_rows(self, z: Tensor, generator: torch.Generator) -> Tensor:
        if self.config.start == "data" and self.config.control is None:
            return data_rows(self.dict_size, z, self.b_dec, generator)
        return unit_rows(self.dict_size, self.d_in, generator)

    @torch.no_grad()
    def decay_encoder(self, share: Tensor | float) -> None:
        """Take `share` off the part of each encoder column that is orthogonal to its latent's decoder row: what it has
        learnt by heart fades, and the size of latents stays (plain decay adds to what an L1 penalty takes off)."""
        if not self.W_enc.requires_grad or (not isinstance(share, Tensor) and share == 0):
            return
        for rows in blocks(self.dict_size, self.d_in, self.W_dec.device):
            encoder, decoder = self.W_enc.t()[rows], self.W_dec[rows]
            encoder.lerp_((encoder * decoder).sum(1, keepdim=True) * decoder, share)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take from the decoder's gradient the part along each row: a step may turn rows, not stretch them."""
        if self.W_dec.grad is not None:
            for rows in blocks(self.dict_size, self.d_in, self.W_dec.device):
                gradient, decoder = self.W_dec.grad[rows], self.W_dec[rows]
                gradient.addcmul_((gradient * decoder).sum(1, keepdim=True), decoder, value=-1)

    @torch.no_grad()
    def constrain(self) -> None:
        """After the step: decoder rows of length 1 again, and as near to their start as a control wants them."""
        if self.config.control == "frozen_decoder":
            return
        for rows in blocks(self.dict_size, self.d_in, self.W_dec.device):
            decoder = self.W_dec[rows]
            decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min(1e-12))
        if self.config.control == "soft_decoder":
            keep_near(self.W_dec, self.start_rows)

    def training_input(self, x: Tensor) -> Tensor:
        """A batch (B, d_in), B >= 1, in model space."""
        if len(x) == 0:
            raise ValueError("an empty batch has no loss")
        z: Tensor = self.preprocessing(self.check_shape(x))[0]
        return z

    def fvu(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """Mean squared length of the error over the variance of the training rows."""
        return self.share(z - z_hat)

    def share(self, residual: Tensor) -> Tensor:
        """Mean squared length of the rows of a residual (B, d_in) over the variance of the training rows."""
        return residual.square().sum() / (len(residual) * self.variance)

    def l1(self, codes: Codes) -> Tensor:
        """Mean over examples of the L1 norm of codes >= 0, each latent weighted by its decoder row's length, in units
        of the standard deviation of the training rows."""
        weights = codes.spread(torch.linalg.vector_norm(self.W_dec, dim=1))
        l1: Tensor = (codes.values * weights).sum() / (codes.rows * self.variance.sqrt())
        return l1

    def above(self, z: Tensor, floor: Tensor | float, precision: Precision) -> Codes:
        """Pre-activations of z (B, d_in), those above `floor` at least: pairs where they are few, else all."""
        return sparse.encode_above(z - self.b_dec, self.W_enc, self.b_enc, floor, precision)

    def rebuilt(self, codes: Codes) -> Tensor:
        """z_hat (B, d_in) of training codes."""
        return sparse.decode(codes, self.W_dec, self.b_dec)


def _check_type(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} of type {type(x).__name__}: expected a tensor, as torch.from_numpy makes it")
    if not x.is_floating_point():
        raise TypeError(f"{name} of type {x.dtype}: expected floating point")
