"""The torch module around an SAE that computes the loss of the user's own training loop; `compat/modules.py` has one
class per type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from saebench.compat.settings import Settings, SettingsError, read_settings, resolve_device
from saebench.config import SAE_CONFIGS, KSparseConfig, SAEConfig
from saebench.saes import SAE, SAE_TYPES, Dead, Moment, make_sae
from saebench.saes.batchtopk import BatchSparseSAE
from saebench.saes.initial import unit_rows
from saebench.saes.loss import Loss
from saebench.saes.sparse import DenseCodes

_MEMORY = 100
"""Time constant of the running threshold, in batches."""
_COEFFICIENT = {"vanilla": "l1_coeff", "jumprelu": "l0_coeff"}
"""Type -> field of its typed config that holds the penalty's coefficient."""


class TrainableSAE(nn.Module, ABC):
    """Built from the flat `cfg`, or from a typed config and d_in:

    TopKSAE(cfg)                                             # cfg: see compat/settings.py; its sae_type is not read
    TopKSAE(TopKConfig(dict_size=6144, k=32), d_in=384)      # saebench's own fields and units (FVU)

    Raises SettingsError, a ValueError, for an invalid cfg.
    """

    kind: ClassVar[str]
    idle: Tensor
    seen: Tensor
    started: Tensor

    def __init__(self, cfg: Mapping[str, Any] | SAEConfig, d_in: int | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        if isinstance(cfg, Mapping):
            settings = read_settings({**cfg, "sae_type": self.kind})
            self.settings: Settings | None = settings
            d_in, self.seed = settings.act_size, settings.seed
            config = self.typed(settings).model_copy(update={"start": "random", "encoder_scale": 1.0})
            self.n_batches_to_dead, device = settings.n_batches_to_dead, resolve_device(settings.device)
        else:
            if not isinstance(cfg, SAE_CONFIGS[self.kind]) or d_in is None:
                raise SettingsError(
                    f"{type(self).__name__}: give a cfg, or a {SAE_CONFIGS[self.kind].__name__} and d_in"
                )
            if cfg.control is not None:
                raise SettingsError(f"control {cfg.control}: only saebench's own trainer freezes a part")
            self.settings, config, self.seed, self.n_batches_to_dead, device = None, cfg, 0, 5, "cpu"
        self.sae: SAE = SAE_TYPES[self.kind](config, d_in)
        self.register_buffer("idle", torch.zeros(self.sae.dict_size, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.tensor(False))
        self._known_started = False
        with torch.no_grad():
            self.sae.W_dec.copy_(unit_rows(self.sae.dict_size, d_in, torch.Generator().manual_seed(self.seed)))
            self.sae.W_enc.copy_(self.sae.W_dec.t())
        try:
            self.to(device)
        except (AssertionError, RuntimeError) as error:  # torch raises these for an unknown or missing device
            raise SettingsError(f"cfg: device: {device}: {str(error).splitlines()[0]}") from error

    @staticmethod
    @abstractmethod
    def typed(settings: Settings) -> SAEConfig:
        """Return the typed config of these settings; a penalty's coefficient is converted to FVU units at the first
        batch."""

    # --- use ---

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return, for x (B, d_in), sae_out (B, d_in) in the original space, feature_acts (B, dict_size) and scalars:
        loss (to minimise), its terms l2_loss, l1_loss and, for topk and batchtopk, aux_loss; l0_norm, l1_norm (per
        example), num_dead_features.

        In training mode, use the training rule and count dead latents; loss, sae_out and feature_acts carry gradients.
        After `eval()`, use the inference rule: an example's code does not depend on its batch, and no state changes;
        l1_loss is then 0 for a typed config with target_l0, whose coefficient is set by the trainer.
        """
        return self._trained(x) if self.training else self._inferred(x)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, dict_size) of embeddings (B, d_in), by the inference rule."""
        return self.sae.encode(x)

    def decode(self, latents: Tensor) -> Tensor:
        """Return embeddings (B, d_in) from latents (B, dict_size); see `SAE.decode` for the effect of
        input_unit_norm."""
        return self.sae.decode(latents)

    def calibrate(self, rows: Tensor) -> None:
        """Set the inference threshold from embeddings `rows` (N, d_in), if the type has one."""
        self.sae.calibrate(rows)

    def make_decoder_weights_and_grad_unit_norm(self) -> None:
        """Normalize decoder rows to length 1 and remove the gradient along them; call it between `backward` and the
        optimiser's step."""
        self.sae.constrain()
        self.sae.project_gradient()

    def start(self, rows: Tensor) -> Self:
        """Initialise from training rows (N, d_in), N >= 2, everything that depends on data: with a `cfg` all but the
        directions of W_enc and W_dec, with a typed config these too, by its `start`."""
        fresh = make_sae(self.sae.config, self.sae.d_in, rows, self.seed).state_dict()
        stay = () if self.settings is None else ("W_enc", "W_dec")
        self.sae.load_state_dict({n: t for n, t in fresh.items() if n not in stay}, strict=False)
        self.started.fill_(True)
        return self

    def to_saebench(self) -> SAE:
        """Return the SAE inside, for `save_sae` and the exports: decoder rows of length 1, its config in FVU units."""
        self.sae.constrain()
        if self.settings is not None and (name := _COEFFICIENT.get(self.kind)):
            self.sae.config = self.sae.config.model_copy(update={name: float(self.coeff())})
        return self.sae

    # --- units ---

    def scale(self) -> Tensor | float:
        """Return the factor from FVU to mean squared error per element: the variance per element."""
        if self.settings is None:
            return 1.0
        return self.sae.variance if self.settings.input_unit_norm else self.sae.variance / self.sae.d_in

    def coeff(self) -> Tensor | float:
        """Return the coefficient of the penalty beside the FVU."""
        if (name := _COEFFICIENT.get(self.kind)) is None:
            return 0.0
        if self.settings is None:
            penalty = self.sae.config.penalty
            if penalty is None or (fixed := penalty.fixed) is None:
                raise SettingsError(f"target_l0 is steered by the trainer (saebench.train); a loop needs {name}")
            return fixed
        per_l1: Tensor | float = 1.0
        if self.kind == "vanilla":
            per_l1 = self.sae.variance.sqrt() * (self.sae.d_in**0.5 if self.settings.input_unit_norm else 1.0)
        return self.settings.l1_coeff * per_l1 / self.scale()

    # --- the two rules ---

    def _trained(self, x: Tensor) -> dict[str, Tensor]:
        x = self.sae.check(x)
        if not self._known_started:
            if not self.started:
                self.start(x)
            self._known_started = True
        dead = (self.idle >= self.n_batches_to_dead).nonzero().squeeze(1)
        moment = Moment(coeff=self.coeff(), dead=Dead(dead, torch.ones_like(dead, dtype=torch.bool)))
        loss = self.sae.loss(x, moment)
        self._remember(loss)
        _, side = self.sae.preprocessing(x)
        penalty = loss.parts.get("train/sparsity_loss", 0.0)
        output = {
            "sae_out": self.sae.preprocessing.undo(self.sae.rebuilt(loss.codes), side),
            "feature_acts": loss.codes.dense(),
            "loss": self.scale() * loss.total,
            "l2_loss": self.scale() * loss.fvu,
            "l1_loss": self._scalar(self.scale() * self.coeff() * penalty),
            "l0_norm": loss.l0,
            "l1_norm": loss.codes.values.detach().sum() / loss.codes.rows,
            "num_dead_features": self._dead(),
        }
        if isinstance(self.sae.config, KSparseConfig):
            share = loss.parts.get("train/aux_loss", 0.0)
            output["aux_loss"] = self._scalar(self.scale() * self.sae.config.aux_coeff * share)
        return output

    def _inferred(self, x: Tensor) -> dict[str, Tensor]:
        z, side = self.sae.preprocessing(self.sae.check(x))
        if len(z) == 0:
            raise ValueError("an empty batch has no loss")
        latents = self.sae.activate(self.sae.pre_activations(z))
        z_hat = self.sae.rebuilt(codes := DenseCodes(latents))
        l0 = (latents != 0).sum(1).float().mean()
        l2 = self.scale() * self.sae.fvu(z, z_hat)
        penalty = self.sae.l1(codes) if self.kind == "vanilla" else l0
        steered = self.settings is None and self.sae.target_l0 is not None
        l1 = self._scalar(0.0 if steered else self.scale() * self.coeff() * penalty)
        output = {
            "sae_out": self.sae.preprocessing.undo(z_hat, side),
            "feature_acts": latents,
            "loss": l2 + l1,
            "l2_loss": l2,
            "l1_loss": l1,
            "l0_norm": l0,
            "l1_norm": latents.sum(1).mean(),
            "num_dead_features": self._dead(),
        }
        return output if self.kind in _COEFFICIENT else output | {"aux_loss": self._scalar(0.0)}

    @torch.no_grad()
    def _remember(self, loss: Loss) -> None:
        self.seen += 1
        self.idle.copy_(torch.where(loss.fired, 0, self.idle + 1))
        if isinstance(self.sae, BatchSparseSAE):
            values = loss.codes.values
            least = torch.where(values > 0, values, torch.inf).amin()
            before = self.sae.threshold
            moved = before + (least - before) / self.seen.clamp_max(_MEMORY)
            after = torch.where(before.isnan(), least, moved)
            before.copy_(torch.where(least.isfinite(), after, before))

    def _dead(self) -> Tensor:
        return (self.idle >= self.n_batches_to_dead).sum()

    def _scalar(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=self.idle.device)
