"""`train_sae(sae, store, model, cfg)`: saebench's trainer behind the flat `cfg`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from saebench.compat.settings import Settings, read_settings
from saebench.compat.trainable import TrainableSAE
from saebench.config import DataConfig, TrainConfig
from saebench.errors import DataError
from saebench.stores.sbert import ActivationsStoreSBERT
from saebench.trial.calibration import SAMPLE_ROWS, set_aside
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

Record = Callable[[int, Mapping[str, float]], None]
"""Called with the number of examples seen and the metrics."""


def train_sae(
    sae: TrainableSAE,
    store: ActivationsStoreSBERT,
    model: Any,  # noqa: ARG001 - callers pass the encoder; the store has it already
    cfg: Mapping[str, Any],
) -> dict[str, float]:
    """Train `sae` in place on `num_examples` embeddings of `store` (on all that remain, if the store makes one pass and
    has fewer), with saebench's trainer: learning rate with warm-up and decay, decoder constrained after every step,
    thresholds calibrated at the end on held-back training rows. Return the last metrics, with those on the validation
    part if the store has one; with `wandb_project`, mirror the run to Weights & Biases.

    Raises DataError if the store has no batch left, SettingsError for an invalid cfg.
    """
    settings = read_settings({**cfg, "sae_type": sae.kind})
    training = _training(sae, store, settings)
    last: dict[str, float] = {}
    with mirrored(settings.wandb_project, settings.name, cfg) as record:
        for step in train(training, store):
            last = {name: float(value) for name, value in step.metrics.items()}
            record(step.samples, last)
        training.calibrate()
        sae.idle.copy_(training.dead.since_fired // settings.batch_size)
        if store.num_validation:
            held = evaluate(training.sae, store).values
            record(training.samples, held)
            last |= held
    sae.eval()
    return last


def _training(sae: TrainableSAE, store: ActivationsStoreSBERT, settings: Settings) -> Training:
    if store.d_in != sae.sae.d_in:
        raise DataError(f"cfg: act_size: {sae.sae.d_in}, but the store's embeddings have {store.d_in} dimensions")
    samples = settings.num_examples
    if not isinstance(store.cfg, DataConfig):
        samples = min(samples, store.num_train - store.examples_used)
    if samples < 1:
        raise DataError("every text of the store has been read; make a new store to train on")
    sample = store.sample(SAMPLE_ROWS)
    if not sae.started:
        sae.start(sample)
    inner = sae.to_saebench()
    train = TrainConfig(
        samples=samples,
        batch_size=settings.batch_size,
        lr=settings.lr,
        beta1=settings.beta1,
        beta2=settings.beta2,
        grad_clip=settings.max_grad_norm,
        dead_after=settings.n_batches_to_dead * settings.batch_size,
        log_every=settings.perf_log_freq * settings.batch_size,
    )
    return Training(train, inner, store.num_train, set_aside(store, sample).to(inner.b_dec.device))


@contextmanager
def mirrored(project: str | None, name: str, cfg: Mapping[str, Any]) -> Iterator[Record]:
    """Open a run in Weights & Biases inside the context (WANDB_MODE=offline writes it to disk only). Without a project
    nothing is recorded, nor if wandb is not installed, which one line on stderr reports."""
    if project is None:
        yield lambda _samples, _values: None
        return
    try:
        import wandb
    except ImportError:
        print(f"wandb_project {project!r}: wandb is not installed (pip install 'saebench[wandb]')", file=sys.stderr)
        yield lambda _samples, _values: None
        return
    shown = {
        key: value if isinstance(value, bool | int | float | str | None) else str(value) for key, value in cfg.items()
    }
    run = wandb.init(project=project, name=name or None, config=shown)
    failed = True
    try:
        yield lambda samples, values: run.log({"samples": samples, **values}, step=samples)
        failed = False
    finally:
        run.finish(exit_code=int(failed))
