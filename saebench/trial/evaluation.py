"""The evaluation of an SAE: the metrics that every evaluation has, and those that `eval.metrics` adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from saebench.errors import UserError
from saebench.latents.final import ENTRIES, final_scores
from saebench.metrics import EVAL, TEST, TRAIN_SAMPLE
from saebench.saes import SAE
from saebench.saes.calibrate import rows_per_chunk
from saebench.trial import probing
from saebench.trial.calibration import SAMPLE_ROWS, calibration_places
from saebench.trial.decoder import mean_absolute_cosine, random_floor
from saebench.trial.levels import AtLevels
from saebench.trial.metrics import EXTRAS, Evaluation, Extras, Sums
from saebench.trial.stability import CodeStability
from saebench.trial.store import Store

if TYPE_CHECKING:
    from saebench.stores.entry import CacheEntry

Part = Literal["validation", "test"]
"""The texts on which an evaluation is made."""
TRAIN_ROWS = 4096
"""Maximum number of training rows on which `train_sample/fvu` is measured."""


def evaluate(
    sae: SAE,
    store: Store,
    extra: Sequence[str] = (),
    part: Part = "validation",
    second: CacheEntry | None = None,
) -> Evaluation:
    """Return metrics on a whole part, by the inference rule, in the original space; `sae` is not changed. Keys begin
    with `eval/` for validation and with `test/` for test; the latter has `train_sample/fvu` too. A metric of `extra`
    that cannot be measured is left out and named in `left_out`. `second`: the texts under `eval.second_encoder`."""
    return Measurement(sae, store, extra, part, second).complete()


class Measurement:
    """An evaluation in two steps, so that an SAE can be saved before metrics that may run out of memory: the
    constructor measures `basic`, `complete()` adds the others."""

    @torch.no_grad()
    def __init__(
        self, sae: SAE, store: Store, extra: Sequence[str], part: Part, second: CacheEntry | None = None
    ) -> None:
        self._sae, self._store, self._extra, self._part, self._second = sae, store, extra, part, second
        levels = AtLevels(sae) if part == "test" else None
        sums, self._examples = Sums(), Extras([name for name in extra if name in EXTRAS])
        self._stable = CodeStability(sae.encode, "code_stability_duplicates" in extra)
        for batch in store.test() if part == "test" else store.validation():
            for x in torch.split(batch.to(sae.b_dec.device), rows_per_chunk(sae.dict_size)):
                x_hat, latents = sae.reconstruct(x)
                sums.update(x, x_hat, latents)
                self._examples.update(x, x_hat)
                self._stable.update(x, latents)
                if levels is not None:
                    levels.update(x, latents)
        self.basic = sums.result()
        self.basic.values.update(sae.inference_values())
        self.basic.values.update(levels.values(self.basic.values) if levels is not None else {})

    @torch.no_grad()
    def complete(self) -> Evaluation:
        """Return the evaluation with the metrics of `extra`."""
        found = self.basic
        _attempt("code_stability", lambda: found.values.update(self._stable.values()), found)
        for name in self._examples.names:
            _attempt(name, partial(self._examples.measure, name, found), found)
        if "probing" in self._extra:
            _attempt("probing", lambda: found.values.update(probe(self._sae, self._store, self._part)), found)
        if wanted := (set(ENTRIES) & set(self._extra)) - {"example_auroc"}:
            _attempt("scores of latents", partial(self._add_scores, wanted, found), found)
        if "example_auroc" in self._extra:
            _attempt("example_auroc", partial(self._add_scores, ["example_auroc"], found), found)
        if self._part == "validation":
            return found
        _attempt("c_dec", lambda: found.values.update(self._spread()), found)
        found = found.on(TEST)
        _attempt("train_sample", lambda: found.values.update(on_training_rows(self._sae, self._store)), found)
        return found

    def _spread(self) -> dict[str, float]:
        rows = self._sae.W_dec.detach()[(self.basic.firing > 0).to(self._sae.W_dec.device)]
        return {"eval/c_dec": mean_absolute_cosine(rows), "eval/c_dec_floor": random_floor(self._sae.d_in)}

    def _add_scores(self, names: Iterable[str], found: Evaluation) -> None:
        entry = getattr(self._store, "entry", None)
        found.values.update(final_scores(self._sae, entry, self._part, names, self._second))


def _attempt(name: str, measure: Callable[[], None], evaluation: Evaluation) -> None:
    """Run `measure`; if it raises, record the error in `left_out`: a failed extra metric must not cost the SAE or the
    other metrics."""
    try:
        measure()
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, UserError, ValueError) as error:
        evaluation.left_out[name] = (str(error).splitlines() or [type(error).__name__])[0]


def on_training_rows(sae: SAE, store: Store) -> dict[str, float]:
    """Return the FVU on rows that the SAE was trained on; the gap to the FVU of the other parts shows memorisation."""
    sample = store.sample(SAMPLE_ROWS)
    trained = torch.ones(len(sample), dtype=torch.bool)
    trained[calibration_places(len(sample), store.num_train)] = False
    rows, sums = sample[trained.to(sample.device)][:TRAIN_ROWS], Sums()
    for x in torch.split(rows.to(sae.b_dec.device), rows_per_chunk(sae.dict_size)):
        sums.update(x, *sae.reconstruct(x))
    return {f"{TRAIN_SAMPLE}fvu": sums.result().values[f"{EVAL}fvu"]}


def probe(sae: SAE, store: Store, part: Part = "validation") -> dict[str, float]:
    """Run k-sparse probing on the codes, the raw embeddings and their principal components; {} without labels."""
    here = store.sample(probing.TRAIN_ROWS)
    train_labels = store.train_labels(probing.TRAIN_ROWS)
    test_labels = store.test_labels() if part == "test" else store.validation_labels()
    if train_labels is None or test_labels is None:
        return {}
    rows = store.test(probing.TEST_ROWS) if part == "test" else store.validation(probing.TEST_ROWS)
    there = next(iter(rows))
    components = probing.principal_components(here.cpu(), there.cpu())
    train: dict[str, probing.Features] = {"": partial(_codes, sae, here), "_raw": here, "_pca": components[0]}
    test: dict[str, probing.Features] = {"": partial(_codes, sae, there), "_raw": there, "_pca": components[1]}
    return probing.probing(train, train_labels, test, test_labels[: len(there)])


def _codes(sae: SAE, x: Tensor) -> Iterator[Tensor]:
    for part in torch.split(x, rows_per_chunk(sae.dict_size)):
        yield sae.encode(part.to(sae.b_dec.device))
