"""Training one SAE: the step and what it remembers.

    training = Training.start(sae_config, train_config, seed, store, device)
    for step in train(training, store):              # ends at train_config.samples
        ...                                          # step.metrics are tensors on the device; reading one waits for it
    training.calibrate()
    evaluation = evaluate(training.sae, store)       # trial/evaluation.py

Nothing here logs, saves, or reads or sets a global random number. A step waits for the device at most to list the dead
latents, a few times per dead window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from saebench.config import SAEConfig, TrainConfig
from saebench.errors import DataError
from saebench.saes import SAE, Dead, Loss, Moment, make_sae
from saebench.saes.kernels import add_deferred_gradients, on_host, stash_gradients
from saebench.saes.penalty import SparsityControl
from saebench.trial.optim import Adam, schedule
from saebench.trial.replay import CudaRecorder, Metrics, Recorder, Replay

SAMPLE_ROWS = 16_384
"""Training rows that preprocessing, b_dec and thresholds start from."""
STATE_VERSION = 4
"""Of the checkpoint and of the recipe: a run is resumed by the rules it began with, or not at all."""
COLLAPSE = 2.5
"""Training FVU at the end, over the least that it has been, above which the training has fallen apart."""
_FVU_WEIGHT, _STEPS_TO_COLLAPSE = 0.1, 50
"""Of one step in the running average; steps before which nothing is said."""
SHORTEST_LIST = 64
"""Least length of a list of dead latents on a GPU, where it is not empty; others are powers of two."""


class Store(Protocol):
    """What training needs of an activation store (stores.ActivationsStoreSBERT has it)."""

    @property
    def d_in(self) -> int: ...
    @property
    def num_train(self) -> int: ...
    def next_batch(self) -> Tensor: ...
    def sample(self, n: int) -> Tensor: ...
    def set_aside(self, n: int, places: Tensor) -> None:
        """From now on `next_batch` serves none of these rows of `sample(n)`."""

    def train_labels(self, n: int) -> list[Any] | None: ...
    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]: ...
    def validation_labels(self) -> list[Any] | None: ...
    def test(self, batch_size: int = 8192) -> Iterator[Tensor]: ...
    def test_labels(self) -> list[Any] | None: ...


class DivergedError(FloatingPointError):
    """The loss became NaN or infinite; `samples` is the count at the first such step."""

    def __init__(self, samples: int) -> None:
        super().__init__(f"the loss became NaN or infinite at {samples} samples")
        self.samples = samples


class CollapsedError(FloatingPointError):
    """The training fell apart: at its end the training FVU, a running average, is a multiple of what it had been."""

    def __init__(self, now: float, best: float, lr: float) -> None:
        said = f"training FVU {now:.3g} at its end, {best:.3g} before"
        super().__init__(f"the training fell apart: {said}; lr {lr:g} is too high")


class BadBatchError(DataError, ValueError):
    """A training batch held NaN or infinity; `samples` is the count at the first such step. The user's data is at
    fault: another attempt would end the same way."""

    def __init__(self, samples: int) -> None:
        super().__init__(f"the training batch at {samples} samples holds NaN or inf")
        self.samples = samples


@dataclass(frozen=True)
class Step:
    """A training step. Its metrics are on the device; to read one is to wait for it."""

    step: int
    before: int
    """Examples seen before it."""
    samples: int
    """Examples seen after it."""
    metrics: Metrics


class _Now(NamedTuple):
    """Where the run stands before a step: as tensors (), where a replay of the step must read them anew."""

    progress: Tensor | float
    """Share of the run that is done, 0 to 1."""
    lr: Tensor | float
    samples: Tensor | int


class Training:
    """An SAE in training: weights, optimiser, dead counters, sparsity control. `Training.start` makes a new one,
    `load_state_dict` takes it to where another one was, to the last bit."""

    def __init__(self, train: TrainConfig, sae: SAE, num_train: int, calibration: Tensor) -> None:
        self.train, self.sae = train, sae
        self.device = sae.b_dec.device
        self.steps = -(-train.samples // train.batch_size)
        self.lr = train.lr_factor * (train.lr or sae.default_lr(train.batch_size))
        decay = sae.default_encoder_decay() if train.encoder_decay is None else train.encoder_decay
        self.decay = min(0.5, decay * train.batch_size / num_train)
        self.dead_after = train.dead_after or default_dead_after(num_train, train.batch_size)
        self.step = self.samples = 0
        moving = [(name, p) for name, p in sae.named_parameters() if p.requires_grad]
        self.optimizer = Adam(moving, sae.learning_rate_factors(), train, self.lr)
        self.control = SparsityControl(sae.config, self.steps, self.lr, self.device)
        self.since_fired = torch.zeros(sae.dict_size, dtype=torch.int64, device=self.device)
        self.dead_index = torch.empty(0, dtype=torch.int64, device=self.device)
        self._bad = torch.full((2,), -1, device=self.device)
        # running average of the FVU, the least that it has been
        self._fvu = torch.full((2,), torch.inf, device=self.device, dtype=torch.float32)
        self.calibration = calibration
        self._revives = sae.config.revives
        self._lists: dict[int, Tensor] = {}
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
        """A new training of a new SAE, from the seed and the store's training rows; the store sets some of them aside
        for calibration."""
        sample = store.sample(SAMPLE_ROWS)
        calibration = set_aside(store, sample).to(device)
        made = make_sae(sae, store.d_in, without_calibration(sample, store.num_train), seed).to(device)
        return cls(train, made, store.num_train, calibration)

    def advance(self, x: Tensor) -> Metrics:
        """One optimiser step on embeddings x (B, d_in); returns the training metrics, unread."""
        x = self.sae.check_shape(x).to(self.device)
        budget = self.train.samples
        progress = self.samples / budget
        lr = self.lr * schedule(progress, (self.samples + len(x)) / budget, self.train)
        self._list_dead()
        if self._replay is not None:
            metrics = self._replay(self.dead_index.numel(), x, (progress, lr, self.samples))
        else:
            metrics = self._step(x, _Now(progress, lr, self.samples))
        self.samples += len(x)
        self.step += 1
        return metrics | {"train/lr": lr}

    def _step(self, x: Tensor, now: _Now) -> Metrics:
        """What of a step happens on the device. It may be recorded: it changes tensors in place, and on a GPU waits for
        no number."""
        moment = Moment(now.progress, self.control.coeff(now.progress), self._dead(), self.train.precision)
        loss = self.sae.loss(x, moment)
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
        fine = torch.stack([x.sum(), loss.total]).isfinite()
        self._bad.copy_(torch.where((self._bad >= 0) | fine, self._bad, now.samples))
        level = torch.where(self._fvu[0].isinf(), loss.fvu, self._fvu[0].lerp(loss.fvu, _FVU_WEIGHT))
        self._fvu.copy_(torch.stack([level, torch.minimum(level, self._fvu[1])]))
        self.since_fired.add_(len(x)).masked_fill_(loss.fired, 0)
        self.control.update(loss.l0, now.progress, now.lr / self.lr)

    def _list_dead(self) -> None:
        """Draw up the list of dead latents, eight times per window: its length is the one thing the host must wait for.
        On a GPU it is filled up to one of a few lengths, so that a step is one of a few kinds."""
        every = max(1, self.dead_after // (8 * self.train.batch_size))
        if self._revives and self.step % every == 0:
            self._set_dead((self.since_fired >= self.dead_after).nonzero().squeeze(1))

    def _set_dead(self, latents: Tensor) -> None:
        if on_host(latents):
            self.dead_index = latents
            return
        count, none = latents.numel(), self.sae.dict_size
        length = 0 if count == 0 else min(none, max(SHORTEST_LIST, 1 << (count - 1).bit_length()))
        self.dead_index = self._lists.setdefault(length, latents.new_empty(length)).fill_(none)
        self.dead_index[:count] = latents

    def _dead(self) -> Dead | None:
        """Latents that have not fired for `dead_after` examples: those on the list that have not since."""
        if not self._revives:
            return None
        latents = self.dead_index.clamp_max(self.sae.dict_size - 1)
        listed = self.dead_index < self.sae.dict_size
        return Dead(latents, listed & (self.since_fired[latents] >= self.dead_after))

    def _metrics(self, loss: Loss, moment: Moment) -> Metrics:
        metrics: Metrics = {
            "train/loss": loss.total.detach(),
            "train/fvu": loss.fvu,
            "train/l0": loss.l0,
            "train/dead_features": (self.since_fired >= self.dead_after).sum(),
            **loss.parts,
        }
        if self.sae.config.penalty is not None:
            metrics["train/sparsity_coeff"] = moment.coeff
        return metrics

    def check(self) -> None:
        """Wait for the device and raise BadBatchError or DivergedError where a batch or loss was not finite."""
        batch, loss = self._bad.tolist()
        if batch >= 0:
            raise BadBatchError(batch)
        if loss >= 0:
            raise DivergedError(loss)

    def check_collapse(self) -> None:
        """At the end: raise CollapsedError where an architecture without a penalty, whose FVU has no reason to rise,
        ends far above its best."""
        if self.sae.config.penalty is None and self.step >= _STEPS_TO_COLLAPSE:
            now, best = self._fvu.tolist()
            if now > COLLAPSE * best:
                raise CollapsedError(now, best, self.lr)

    def calibrate(self) -> None:
        """Set what inference needs (thresholds) from the calibration rows; the same weights give the same result."""
        self.sae.calibrate(self.calibration)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON): all that the steps to come depend on, but for the store's position. Checks first."""
        self.check()
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimizer.state_dict().items()}
        tensors |= {f"control.{name}": tensor for name, tensor in self.control.state_dict().items()}
        tensors |= {f"state.{name}": tensor for name, tensor in self.sae.training_state().items()}
        tensors |= {"since_fired": self.since_fired, "dead_index": self.dead_index, "fvu": self._fvu}
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return copies, {
            "version": STATE_VERSION,
            "type": self.sae.config.type,
            "step": self.step,
            "samples": self.samples,
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, of a training of the same config. Raises ValueError where it is not."""
        if meta.get("version") != STATE_VERSION:
            raise ValueError(f"checkpoint version {meta.get('version')!r}: this saebench reads {STATE_VERSION}")
        ours = self.sae.state_dict()
        theirs = {name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")}
        if (
            meta.get("type") != self.sae.config.type
            or ours.keys() != theirs.keys()
            or any(ours[name].shape != theirs[name].shape for name in ours)
        ):
            raise ValueError("the checkpoint is of another architecture or width")
        self.sae.load_state_dict(theirs)
        adam, state = (
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in ("adam.", "state.")
        )
        self.sae.load_training_state(state)
        self.optimizer.load_state_dict(adam)
        self.control.load_state_dict({n: tensors[f"control.{n}"] for n in self.control.state_dict()})
        self.since_fired.copy_(tensors["since_fired"])
        self._fvu.copy_(tensors["fvu"])
        listed = tensors["dead_index"].to(self.device)
        self._set_dead(listed[listed < self.sae.dict_size])
        if self._replay is not None:
            self._replay.forget()
        self.step, self.samples = int(meta["step"]), int(meta["samples"])


def steps(training: Training, store: Store) -> Iterator[Step]:
    """Train to the end of the budget, step by step. The last batch is cut, so that the run ends at exactly `samples`
    examples."""
    budget = training.train.samples
    while training.samples < budget:
        before = training.samples
        metrics = training.advance(store.next_batch()[: budget - before])
        yield Step(training.step, before, training.samples, metrics)


def train(training: Training, store: Store) -> Iterator[Step]:
    """The steps that reach a multiple of `log_every` examples, and the last one.

    Raises DivergedError or BadBatchError at such a mark, CollapsedError at the last.
    """
    budget = training.train.samples
    every = training.train.log_every or max(1, budget // 100)
    for step in steps(training, store):
        if step.samples // every > step.before // every or step.samples >= budget:
            training.check()
            if step.samples >= budget:
                training.check_collapse()
            yield step


def default_dead_after(num_train: int, batch_size: int) -> int:
    """min(one epoch, 100,000) examples, but at least five steps: fewer say nothing about a latent."""
    return max(min(num_train, 100_000), 5 * batch_size)


def calibration_places(count: int, num_train: int) -> Tensor:
    """Which of `count` sampled rows are never trained on: a twentieth of the training rows, but between 512 (or a fifth
    of them) and 4096. A threshold read off rows the SAE has learnt by heart would let too many latents through on new
    ones: by 4 to 12% on 18,000 glosses."""
    held = min(4096, count, max(num_train // 20, min(512, num_train // 5), 1))
    return torch.arange(held) * count // held


def set_aside(store: Store, sample: Tensor) -> Tensor:
    """Keep calibration rows out of the batches of the store; those rows. `sample` is store.sample(SAMPLE_ROWS)."""
    store.set_aside(SAMPLE_ROWS, calibration_places(len(sample), store.num_train))
    return calibration_rows(sample, store.num_train)


def calibration_rows(sample: Tensor, num_train: int) -> Tensor:
    """Those rows of the store's sample."""
    return sample[calibration_places(len(sample), num_train).to(sample.device)]


def without_calibration(sample: Tensor, num_train: int) -> Tensor:
    """The other rows of the sample: a decoder that starts from rows must not know those that calibration reads. All of
    them where fewer than two would be left."""
    rest = torch.ones(len(sample), dtype=torch.bool, device=sample.device)
    rest[calibration_places(len(sample), num_train).to(sample.device)] = False
    return sample[rest] if rest.sum() >= 2 else sample
