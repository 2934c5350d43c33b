"""One trial, from its config to a saved SAE: the function that every worker executes.

It does not depend on other trials, Optuna or MLflow. It reports events, follows verdicts to stop, and resumes from its
newest checkpoint with the same numbers as an uninterrupted run: bit for bit on the CPU (for which it keeps the number
of threads of its first attempt) and on CUDA with `deterministic: true`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saebench import stores
from saebench.config import TrialConfig, log_interval, marks
from saebench.latents.second import second_data
from saebench.runs.durable import remove_temporary, replacing, sync
from saebench.runs.events import Event, Verdict, read
from saebench.runs.paths import SAE_CONFIG, TrialPaths
from saebench.saes import save_sae
from saebench.stores import cache
from saebench.trial import checkpoint
from saebench.trial.best import KEY, BestMark
from saebench.trial.environment import about, exact
from saebench.trial.evaluation import Measurement, Part
from saebench.trial.metrics import Evaluation
from saebench.trial.recorded import finite, numbers, recorded_end, recorded_threads
from saebench.trial.trainer import Training, steps
from saebench.trial.usage import Speed, Usage, gpu_uuid

if TYPE_CHECKING:
    from saebench.stores import ActivationsStoreSBERT
    from saebench.stores.entry import CacheEntry

Report = Callable[[Event], Verdict]
CHECKPOINT_SECONDS = 10.0
"""Without `checkpoint_every`, an evaluation is followed by a checkpoint if the last one is older than this."""


def always_go() -> Verdict:
    """Return the verdict for a trial that runs without a scheduler."""
    return Verdict.GO


def warm_up() -> None:
    """Import the modules that a trial imports later; runs in the process from which workers are forked, so no CUDA."""
    import torch._dynamo  # noqa: F401 (torch.optim does at its first step: 2 s)

    stores.open_store  # noqa: B018 (importing it is the point)


def run_trial(
    config: TrialConfig,
    paths: TrialPaths,
    device: str,
    report: Report,
    *,
    cache_dir: Path,
    attempt: int = 1,
    pending: Callable[[], Verdict] = always_go,
) -> None:
    """Train, evaluate at every mark, save; return after a `done` or a `left` event, raise any error.

    report: receives every event and returns the verdict on an `eval`. pending: returns the scheduler's current request,
    polled after every step. If the trial's record already has an end, report that event again and do nothing else.
    """
    recorded = [event for event, _ in read(paths.events)]
    end = recorded_end(recorded)
    if end is not None and (paths.sae / SAE_CONFIG).exists():
        report(end)
        return
    if device == "cpu":
        torch.set_num_threads(recorded_threads(recorded) or torch.get_num_threads())
    with exact(config.train, device):
        checkpoint.seed_generators(config.seed)
        data, train = config.data, config.train
        store = stores.open_store(
            data,
            batch_size=train.batch_size,
            seed=config.seed,
            device=device,
            cache_dir=cache_dir,
            cache_key=config.cache_key,
        )
        training = Training.start(config.sae, train, config.seed, store, device)
        second = second_entry(config, cache_dir)
        _Trial(config, paths, report, pending, training, store, second).run(attempt)


def second_entry(config: TrialConfig, cache_dir: Path) -> CacheEntry | None:
    """Return the texts' embeddings by `eval.second_encoder`; None without one, or if they are not in the cache."""
    if config.second_encoder is None:
        return None
    return cache.find(second_data(config.data, config.second_encoder), cache_dir, config.second_key)


class _Trial:
    def __init__(
        self,
        config: TrialConfig,
        paths: TrialPaths,
        report: Report,
        pending: Callable[[], Verdict],
        training: Training,
        store: ActivationsStoreSBERT,
        second: CacheEntry | None,
    ) -> None:
        self.config, self.paths, self.training, self.store = config, paths, training, store
        self.report, self.pending, self.second = report, pending, second
        self.budget = config.train.samples
        self.log_every = log_interval(config.train)
        self.marks = marks(config.train)
        self.best = BestMark(training.sae, config.train.keep)
        self.speed = Speed(training.samples)
        self.usage = Usage(gpu_uuid(training.device))
        self.saved_at = time.monotonic()

    def run(self, attempt: int) -> None:
        resumed = self._resume()
        before = self.training.samples
        self.report(Event("start", self.training.samples, info=about(self.training.device, attempt, resumed)))
        self.speed = Speed(self.training.samples)
        verdict = Verdict.GO
        for step in steps(self.training, self.store):
            before, verdict = step.before, self._after_step(step.before, step.metrics)
            if verdict is not Verdict.GO:
                break
        if self.training.samples >= self.budget:
            self._finish([mark for mark in self.marks if mark > before])
        elif verdict is Verdict.PRUNE:
            self._prune()
        else:
            self._checkpoint()
            self.report(Event("left", self.training.samples, info={"why": "leave"}))

    def _after_step(self, before: int, metrics: dict[str, Tensor | float]) -> Verdict:
        now = self.training.samples
        if before // self.log_every < now // self.log_every or now >= self.budget:
            self._log(metrics)
        if now >= self.budget:
            return Verdict.GO
        verdict, passed = self.pending(), [mark for mark in self.marks if before < mark <= now]
        if passed:
            verdict = self._evaluate(passed)
        if verdict is Verdict.GO and self._checkpoint_is_due(before, bool(passed)):
            self._checkpoint()
        return verdict

    def _checkpoint_is_due(self, before: int, evaluated: bool) -> bool:
        every = self.config.train.checkpoint_every
        if every is not None:
            return before // every < self.training.samples // every
        return evaluated and time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def _log(self, metrics: dict[str, Tensor | float]) -> None:
        """Log the metrics. Reading them waits for the device; nothing else in a step does."""
        self.training.check()
        values = numbers(metrics)
        values["system/samples_per_second"] = self.speed(self.training.samples)
        values |= self.usage(now=self.training.samples >= self.budget)
        self.report(Event("step", self.training.samples, finite(values, self.training.samples)))

    def _evaluate(self, passed: list[int]) -> Verdict:
        """Evaluate once and record it for every mark that the step passed (a large batch may pass several)."""
        values = self._measured(self._measurement(()).complete()).values
        self.best.offer(self.training.sae, values, self.training.samples)
        verdicts = [self.report(Event("eval", mark, values)) for mark in passed]
        return next((verdict for verdict in verdicts if verdict is not Verdict.GO), Verdict.GO)

    def _measurement(self, extra: tuple[str, ...], part: Part = "validation") -> Measurement:
        self.training.check()
        self.training.calibrate()
        return self._measure(extra, part)

    def _measure(self, extra: tuple[str, ...], part: Part = "validation") -> Measurement:
        """Measure the calibrated SAE."""
        begin = time.monotonic()
        measurement = Measurement(self.training.sae, self.store, extra, part, self.second)
        finite(measurement.basic.values, self.training.samples)
        self.speed.pause(time.monotonic() - begin)
        return measurement

    def _measured(self, evaluation: Evaluation) -> Evaluation:
        """Move values that are not finite to `left_out`, and print a warning for each metric that is left out."""
        for key in [key for key, value in evaluation.values.items() if not isfinite(value)]:
            evaluation.left_out[key] = f"is {evaluation.values.pop(key)}"
        for name, reason in evaluation.left_out.items():
            print(f"warning: {name} is not recorded: {reason}", file=sys.stderr, flush=True)
        return evaluation

    def _finish(self, passed: list[int]) -> None:
        """Evaluate, save and report `done`; the last verdict is ignored, since the budget is spent. Save the SAE before
        measuring `eval.metrics`, so that a failing metric cannot lose it."""
        measurement, kept = self._kept(self._measurement(self.config.extra_metrics))
        self._save_sae()
        begin = time.monotonic()
        evaluation = self._measured(measurement.complete())
        self.speed.pause(time.monotonic() - begin)
        for mark in passed:
            self.report(Event("eval", mark, evaluation.values))
        final = self._save(self._measure(self.config.extra_metrics, "test"))
        left_out = evaluation.left_out | final.left_out
        info = kept | ({"left_out": left_out} if left_out else {})
        self.report(Event("done", self.budget, evaluation.values | final.values, info))
        shutil.rmtree(self.paths.checkpoint, ignore_errors=True)

    def _kept(self, last: Measurement) -> tuple[Measurement, dict[str, Any]]:
        """Return the measurement of the SAE that is kept, now in `training.sae`, and its fields of the `done` event."""
        now, fvu = self.training.samples, last.basic.values[KEY]
        self.best.offer(self.training.sae, last.basic.values, now)
        if not self.best.restore(self.training.sae, now):
            return last, {}
        return self._measure(self.config.extra_metrics), {"kept": self.best.samples, "fvu_at_end": fvu}

    def _prune(self) -> None:
        self.training.check()
        kept = self.best.restore(self.training.sae, self.training.samples)
        measurement = self._measure((), "test") if kept else self._measurement((), "test")
        self._save_sae()
        self._save(measurement)
        info = {"why": "prune"} | ({"kept": self.best.samples} if kept else {})
        self.report(Event("left", self.training.samples, info=info))
        shutil.rmtree(self.paths.checkpoint, ignore_errors=True)

    def _save_sae(self) -> None:
        """Save the SAE and remove temporary files of an attempt that was killed while saving."""
        save_sae(self.training.sae, self.paths.sae)
        for folder in (self.paths.sae, self.paths.root):
            remove_temporary(folder)

    def _save(self, measurement: Measurement) -> Evaluation:
        """Complete the evaluation, write its arrays per text and latent to evaluation.safetensors, and return it."""
        evaluation = self._measured(measurement.complete())
        tensors = {**evaluation.per_text, "firing": evaluation.firing.long()}
        with replacing(self.paths.evaluation) as new:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, new.file.name)
        return evaluation

    def _checkpoint(self) -> None:
        begin = time.monotonic()
        sync(self.paths.events)  # the record is never behind the checkpoint
        tensors, training = self.training.state_dict()
        generators, drawn = checkpoint.generator_state(self.training.device)
        best, mark = self.best.state_dict()
        values = {
            "training": training,
            "best": mark,
            "store": self.store.state_dict(),
            "generators": drawn,
            "record": self._recorded(),
        }
        place = checkpoint.save(self.paths.checkpoint, self.training.samples, (tensors | generators | best, values))
        self.report(Event("checkpoint", self.training.samples, info={"name": place.name}))
        self.saved_at = time.monotonic()
        self.speed.pause(self.saved_at - begin)

    def _recorded(self) -> int:
        """Return the size of the record in bytes."""
        return self.paths.events.stat().st_size if self.paths.events.exists() else 0

    def _resume(self) -> str | None:
        """Load the newest checkpoint and return its name. Skip one that is newer than the record: resuming from it
        would leave a gap in the record."""
        recorded = self._recorded()
        found = checkpoint.load(self.paths.checkpoint, lambda values: bool(values["record"] <= recorded))
        if found is None:
            return None
        (tensors, values), place = found
        self.training.load_state_dict(
            {k: v for k, v in tensors.items() if not k.startswith("rng.")}, values["training"]
        )
        self.best.load_state_dict(tensors, values["best"])
        self.store.load_state_dict(values["store"])
        checkpoint.restore_generators(tensors, values["generators"], self.training.device)
        return place.name
