"""The real `run_trial`, on rows that need no texts, as a target."""

from __future__ import annotations

from typing import Any

from rows import open_rows

from saebench import stores
from saebench.config import BatchTopKConfig, TrainConfig, TrialConfig
from saebench.trial import run as trial

warm_up = trial.warm_up


def trains(config: TrialConfig, *others: Any, **named: Any) -> None:
    """63 steps; a mark every 500 examples, checkpoints at odd places."""
    stores.open_store = open_rows
    train = TrainConfig(samples=4000, batch_size=64, lr=3e-3, eval_every=500, checkpoint_every=300)
    config = config.model_copy(update={"sae": BatchTopKConfig(k=4, dict_size=48), "train": train})
    trial.run_trial(config, *others, **named)


plain = trial.run_trial
"""The real trial under another name: a sweep measures no floors beside it."""
