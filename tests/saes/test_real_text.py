"""On embeddings of real sentences: the sparsity that was asked for is the sparsity on text nobody trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_examples import PENALISED, example
from torch import Tensor

from saebench.config import TrainConfig
from saebench.saes import Moment
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

TEXTS, HOLDOUT = 4000, 1200


class Glosses:
    """A store over the embeddings."""

    def __init__(self, rows: Tensor, batch_size: int) -> None:
        self.train, self.rows, self.batch_size = rows[HOLDOUT:], rows[:HOLDOUT], batch_size
        self.d_in, self.num_train = rows.shape[1], len(rows) - HOLDOUT
        self.served = self.train
        self.generator = torch.Generator().manual_seed(0)

    def next_batch(self) -> Tensor:
        return self.served[torch.randint(len(self.served), (self.batch_size,), generator=self.generator)]

    def sample(self, n: int) -> Tensor:
        return self.train[:n]

    def set_aside(self, n: int, places: Tensor) -> None:  # noqa: ARG002 - a store's signature
        self.served = self.train[torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)]

    def train_labels(self, n: int) -> list[Any] | None:  # noqa: ARG002 - a store's signature
        return None

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self.rows.split(batch_size)

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return self.validation(batch_size)

    def test_labels(self) -> list[Any] | None:
        return self.validation_labels()

    def validation_labels(self) -> list[Any] | None:
        return None


@pytest.fixture(scope="session")
def gloss_embeddings(glosses: Path, minilm: Any) -> Tensor:
    """(4000, 384) all-MiniLM-L6-v2 embeddings of WordNet glosses."""
    import pandas as pd

    texts = pd.read_parquet(glosses)["text"].drop_duplicates().sample(TEXTS, random_state=0).tolist()
    embeddings = minilm.encode(sorted(texts, key=len), batch_size=64, convert_to_numpy=True)
    order = torch.randperm(TEXTS, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(embeddings)[order]


def trained(rows: Tensor, kind: str, steps: int = 180, **fields: Any) -> tuple[Training, Glosses]:
    store = Glosses(rows, 256)
    sae, budget = example(kind, dict_size=768, **fields), TrainConfig(samples=256 * steps, batch_size=256, lr=2e-3)
    training = Training.start(sae, budget, 0, store)
    for _ in train(training, store):
        pass
    return training, store


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_the_calibrated_threshold_gives_k_and_the_error_of_batch_mode_on_the_hold_out(
    kind: str, gloss_embeddings: Tensor
) -> None:
    training, store = trained(gloss_embeddings, kind, k=24.0)
    training.sae.calibrate(store.train)
    by_heart = evaluate(training.sae, store).values["eval/l0"]
    training.calibrate()
    values = evaluate(training.sae, store).values
    assert abs(values["eval/l0"] / 24 - 1) <= 0.02 < by_heart / 24 - 1, "rows learnt by heart give another threshold"
    mean_over_split = (store.rows - store.rows.mean(0)).square().sum() / len(store.rows)
    mode = float(training.sae.loss(store.rows, Moment()).fvu * training.sae.variance)
    mode *= float(training.sae.preprocessing.scale) ** 2 / float(mean_over_split)
    assert values["eval/fvu"] == pytest.approx(mode, rel=0.02)
    assert values["eval/explained_variance"] > 0.4
    assert values["eval/dead_fraction"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", PENALISED)
def test_the_target_l0_is_reached_on_the_hold_out(kind: str, gloss_embeddings: Tensor) -> None:
    """The controller brings training batches there, in 180 steps from three times the target; calibration takes what
    is left on rows nobody trained on."""
    training, store = trained(gloss_embeddings, kind, target_l0=24.0)
    with torch.no_grad():
        in_training = training.sae.loss(store.train[:2048], Moment()).l0
    assert abs(float(in_training) / 24 - 1) <= 0.2
    training.calibrate()
    values = evaluate(training.sae, store).values
    assert abs(values["eval/l0"] / 24 - 1) <= 0.05
    assert values["eval/explained_variance"] > 0.3
