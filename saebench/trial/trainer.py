"""Train one SAE: the step and its state.

    training = Training.start(sae_config, train_config, seed, store, device)
    for step in train(training, store):              # ends at train_config.samples
        ...                                          # step.metrics are tensors on the device; reading one waits for it
    training.calibrate()
    evaluation = evaluate(training.sae, store)       # trial/evaluation.py

Nothing here logs, saves, or uses global random numbers. A step syncs with the device only to list the dead latents, a
few times per dead window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from saebench.config import SAEConfig, TrainConfig, log_interval
from saebench.errors import UserError
from saebench.saes import SAE, Loss, Moment, make_sae
from saebench.saes.kernels import add_deferred_gradients, stash_gradients
from saebench.saes.ortho import Orthogonality
from saebench.saes.penalty import Margins, SparsityControl
from saebench.trial.calibration import SAMPLE_ROWS, set_aside, without_calibration
from saebench.trial.dead import DeadLatents, default_dead_after
from saebench.trial.health import Health
from saebench.trial.optim import Adam, schedule
from saebench.trial.replay import CudaRecorder, Metrics, Recorder, Replay
from saebench.trial.store import Store

STATE_VERSION = 13
"""Version of the checkpoint and of the recipe: a run is resumed only by the rules that it started with."""


@dataclass(frozen=True)
class Step:
    """A training step. Its metrics are on the device; reading one waits for it."""

    step: int
    before: int
    """Examples seen before it."""
    samples: int
    """Examples seen after it."""
    metrics: Metrics


class _Now(NamedTuple):
    """The position of the run before a step: as tensors () if a replay of the step must read them again."""

    progress: Tensor | float
    """Completed share of the run, 0 to 1."""
    lr: Tensor | float
    samples: Tensor | int


class Training:
    """An SAE in training: weights, optimiser, dead counters, sparsity control. `Training.start` makes a new one,
    `load_state_dict` restores the state of another one, to the last bit."""

    def __init__(self, train: TrainConfig, sae: SAE, num_train: int, calibration: Tensor) -> None:
        self.train, self.sae = train, sae
        self.device = sae.b_dec.device
        self.steps = -(-train.samples // train.batch_size)
        self.lr = train.lr_factor * (train.lr or sae.default_lr(train.batch_size, train.samples, num_train))
        decay = sae.default_encoder_decay if train.encoder_decay is None else train.encoder_decay
        self.decay = min(0.5, decay * train.batch_size / num_train)
        after = train.dead_after or default_dead_after(sae.config, sae.dict_size, train, num_train)
        self.step = self.samples = 0
        moving = [(name, p) for name, p in sae.named_parameters() if p.requires_grad]
        self.optimizer = Adam(moving, sae.learning_rate_factors(), train, self.lr)
        self.control = SparsityControl(sae.config, self.lr, self.device)
        self.dead = DeadLatents(sae.dict_size, after, revives=sae.config.revives, device=self.device)
        self.health = Health(self.device)
        self.calibration = calibration
        self.ortho = Orthogonality.of(sae.config, sae.dict_size, self.device)
        recorder = CudaRecorder(self.device) if self.device.type == "cuda" and train.cuda_graph else None
        self._replay = None if recorder is None else self._recorded_steps(recorder)

    def _recorded_steps(self, recorder: Recorder) -> Replay:
        def step(x: Tensor, numbers: Tensor) -> Metrics:
            progress, lr, samples = numbers.unbind()
            return self._step(x, _Now(progress.float(), lr.float(), samples.long()))

        return Replay(step, recorder, self.device, self._drop_gradients)

    def _drop_gradients(self) -> None:
        """Gradients of a recorded step must be its own: the memory of others may be freed."""
        self.sae.zero_grad(set_to_none=True)

    @classmethod
    def start(
        cls, sae: SAEConfig, train: TrainConfig, seed: int, store: Store, device: str | torch.device = "cpu"
    ) -> Self:
        """Return a new training of a new SAE, from the seed and the store's training rows, some of which are set aside
        for calibration."""
        sample = store.sample(SAMPLE_ROWS)
        calibration = set_aside(store, sample).to(device)
        made = make_sae(sae, store.d_in, without_calibration(sample, store.num_train), seed).to(device)
        made.check_memory()
        return cls(train, made, store.num_train, calibration)

    def advance(self, x: Tensor) -> Metrics:
        """Make one optimiser step on embeddings x (B, d_in); return the training metrics, on the device."""
        x = self.sae.check_shape(x).to(self.device)
        budget = self.train.samples
        progress = self.samples / budget
        lr = self.lr * schedule(progress, (self.samples + len(x)) / budget, self.train)
        self.dead.relist(self.step, self.train.batch_size)
        if self._replay is not None:
            metrics = self._replay(self.dead.index.numel(), x, (progress, lr, self.samples))
        else:
            metrics = self._step(x, _Now(progress, lr, self.samples))
        self.samples += len(x)
        self.step += 1
        return metrics | {"train/lr": lr}

    def _step(self, x: Tensor, now: _Now) -> Metrics:
        """Do the part of a step that runs on the device. It can be recorded: it changes tensors in place, and needs no
        sync on a GPU."""
        moment = Moment(now.progress, self.control.coeff(now.progress), self.dead.listed(), self.train.precision)
        loss = self.sae.loss(x, moment)
        if self.ortho is not None:
            loss = loss.plus(self.sae.config.ortho_coeff, self.ortho.penalty(self.sae.W_dec), "train/ortho_loss")
        self._descend(loss.total, now.lr)
        self._remember(loss, x, now)
        return self._metrics(loss, moment)

    def _descend(self, total: Tensor, lr: Tensor | float) -> None:
        stash_gradients(self.sae.parameters())
        total.backward()  # type: ignore[no-untyped-call]
        add_deferred_gradients(self.sae.parameters())
        self.sae.project_gradient()
        self.sae.decay_encoder(self.decay * lr / self.lr)
        self.optimizer.step(lr, self.train.grad_clip)
        self.sae.constrain()

    @torch.no_grad()
    def _remember(self, loss: Loss, x: Tensor, now: _Now) -> None:
        self.health.update(loss, x, now.samples)
        self.dead.update(loss.fired, len(x))
        if self.control.steers:
            if loss.margins is None:
                raise TypeError(
                    f"{type(self.sae).__name__}: target_l0 needs a loss with margins: Loss.of(..., margins)"
                )
            margins = Margins.of(loss.margins, loss.codes.rows)
            self.sae.raise_thresholds(self.control.update(loss.l0, margins, now.progress, now.lr))

    def _metrics(self, loss: Loss, moment: Moment) -> Metrics:
        metrics: Metrics = {
            "train/loss": loss.total.detach(),
            "train/fvu": loss.fvu,
            "train/l0": loss.l0,
            "train/dead_features": self.dead.count(),
            **loss.parts,
        }
        if self.sae.config.penalty is not None:
            metrics["train/sparsity_coeff"] = moment.coeff
        return metrics

    def check(self) -> None:
        """Wait for the device; raise BadBatchError or DivergedError if a batch or loss was not finite."""
        self.health.check()

    def check_collapse(self) -> None:
        """At the end: raise CollapsedError if an architecture without a penalty, whose FVU has no reason to rise, ends
        far above its best."""
        if self.sae.config.penalty is None:
            self.health.check_collapse(self.step, self.lr)

    def calibrate(self) -> None:
        """Set the thresholds of inference from the calibration rows; the same weights give the same result."""
        self.sae.calibrate(self.calibration)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, JSON): all that later steps depend on, except the store's position. Checks first."""
        self.check()
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimizer.state_dict().items()}
        tensors |= {f"control.{name}": tensor for name, tensor in self.control.state_dict().items()}
        tensors |= {f"state.{name}": tensor for name, tensor in self.sae.training_state().items()}
        tensors |= {f"ortho.{name}": tensor for name, tensor in self._ortho_state().items()}
        tensors |= {"since_fired": self.dead.since_fired, "dead_index": self.dead.index, "fvu": self.health.fvu}
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return copies, {
            "version": STATE_VERSION,
            "type": self.sae.config.type,
            "step": self.step,
            "samples": self.samples,
        }

    def _ortho_state(self) -> dict[str, Tensor]:
        return {} if self.ortho is None else self.ortho.state_dict()

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned. Raises UserError if another version of saebench wrote it,
        ValueError for another config."""
        if meta.get("version") != STATE_VERSION:
            raise UserError(
                f"checkpoint of version {meta.get('version')!r}, this saebench reads {STATE_VERSION}: resume with the "
                "saebench that wrote it, or run the sweep under another name"
            )
        ours = self.sae.state_dict()
        theirs = {name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")}
        if (
            meta.get("type") != self.sae.config.type
            or ours.keys() != theirs.keys()
            or any(ours[name].shape != theirs[name].shape for name in ours)
        ):
            raise ValueError("the checkpoint holds another SAE type, width or dict_size")
        self.sae.load_state_dict(theirs)
        adam, state = (
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in ("adam.", "state.")
        )
        self.sae.load_training_state(state)
        self.optimizer.load_state_dict(adam)
        self.control.load_state_dict({n: tensors[f"control.{n}"] for n in self.control.state_dict()})
        self.dead.load(tensors["since_fired"], tensors["dead_index"])
        self.health.fvu.copy_(tensors["fvu"])
        for name, tensor in self._ortho_state().items():
            tensor.copy_(tensors[f"ortho.{name}"])
        if self._replay is not None:
            self._replay.forget()
        self.step, self.samples = int(meta["step"]), int(meta["samples"])


def steps(training: Training, store: Store) -> Iterator[Step]:
    """Train to the end of the budget, and yield each step. The last batch is cut, so that the run ends at exactly
    `samples` examples."""
    budget = training.train.samples
    while training.samples < budget:
        before = training.samples
        metrics = training.advance(store.next_batch()[: budget - before])
        yield Step(training.step, before, training.samples, metrics)


def train(training: Training, store: Store) -> Iterator[Step]:
    """Yield the steps that reach a multiple of `log_every` examples, and the last one.

    Raises DivergedError or BadBatchError at such a mark, CollapsedError at the last.
    """
    budget = training.train.samples
    every = log_interval(training.train)
    for step in steps(training, store):
        if step.samples // every > step.before // every or step.samples >= budget:
            training.check()
            if step.samples >= budget:
                training.check_collapse()
            yield step
