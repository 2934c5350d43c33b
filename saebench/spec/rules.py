"""Rules between the fields of a spec. Each yields (key, rule) per problem; all run, even after earlier problems.

A draft may lack values that could not be read: rules about these yield nothing.
"""

from __future__ import annotations

import re

from saebench.arrays import open_embeddings
from saebench.config import FILE_FORMATS, HoldoutConfig
from saebench.errors import DataError
from saebench.metrics import EVAL, METRICS
from saebench.spec.accepts import did_you_mean
from saebench.spec.arm_rules import ARM_RULES
from saebench.spec.draft import Draft, Found, at
from saebench.spec.strata import refusal, too_many_enqueued

MAX_MARKS = 10_000
LARGEST_SEED = 2**32 - 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check(draft: Draft) -> list[tuple[str, str]]:
    """Return all problems as (key, rule)."""
    return [found for rule in (*SECTION_RULES, *ARM_RULES) for found in rule(draft)]


def _name_is_a_directory(draft: Draft) -> Found:
    name = draft.get("name")
    if isinstance(name, str) and not NAME.fullmatch(name):
        yield "name", "must be letters, digits, dots, dashes and underscores, at most 100, a letter or digit first"


def _seeds(draft: Draft) -> Found:
    seeds = draft.get("seeds")
    if seeds == ():
        yield "seeds", "needs at least one seed"
    for i, seed in enumerate(seeds or ()):
        if not 0 <= seed <= LARGEST_SEED:
            yield f"seeds[{i}]", f"must be between 0 and {LARGEST_SEED}"
        if seed in seeds[:i]:
            yield f"seeds[{i}]", "is in the list twice"


def _devices(draft: Draft) -> Found:
    devices = draft.get("run", "devices")
    if devices == ():
        yield "run.devices", "needs at least one device; for the CPU write cpu"
    for i, device in enumerate(devices if isinstance(devices, tuple) else ()):
        if isinstance(device, int) and device < 0:
            yield f"run.devices[{i}]", "must be at least 0"
        if device in devices[:i]:
            yield f"run.devices[{i}]", "is in the list twice"


def _corpus(draft: Draft) -> Found:
    examples, holdout = draft.get("data", "num_examples"), draft.get("data", "holdout")
    if not isinstance(examples, int) or not isinstance(holdout, float | HoldoutConfig):
        return
    if isinstance(holdout, HoldoutConfig) and any(bad.startswith("data.holdout") for bad in draft.unread):
        return
    parts = draft.spec.data.parts
    for part, share in (("validation", parts.validation), ("test", parts.test)):
        if examples * share < 1:
            yield "data.num_examples", f"the {part} part, {share:.3g} of {examples} texts, is less than one text"
            break
    largest = max(draft.train("batch_size"), default=0)
    if examples * (1 - parts.total) < largest:
        yield (
            "data.num_examples",
            f"about {examples * (1 - parts.total):.0f} texts to train on are less than one batch of {largest}",
        )


def _own_embeddings(draft: Draft) -> Found:
    path = draft.get("data", "embeddings")
    if not isinstance(path, str):
        for key in ("texts", "ids", "labels"):
            if draft.get("data", key) is not None:
                yield f"data.{key}", "belongs to embeddings of your own: give data.embeddings too"
        return
    if draft.get("data", "cache") is False:
        yield "data.cache", "must be on: your embeddings are not encoded in a trial"
    try:
        open_embeddings(path)
    except DataError as error:
        yield "data.embeddings", str(error).removeprefix(f"data.embeddings: {path}: ")


def _near_duplicates(draft: Draft) -> Found:
    if draft.get("data", "deduplicate") is not None and draft.get("data", "cache") is False:
        yield "data.deduplicate", "compares embeddings of all texts, which are not kept: set data.cache to on"


def _dataset(draft: Draft) -> Found:
    """Check the format of data_files: a misspelt one would be taken for the name of a dataset on the hub."""
    path, files = draft.get("data", "dataset", "path"), draft.get("data", "dataset", "data_files")
    if isinstance(path, str) and files and path not in FILE_FORMATS and not re.search(r"[/\\.]", path):
        hint = 'use "json", which reads JSON lines too' if "json" in path else did_you_mean(path, sorted(FILE_FORMATS))
        if hint:
            yield "data.dataset.path", f"is not a file format ({hint})"


def _budget(draft: Draft) -> Found:
    limit, samples = draft.get("budget", "samples"), draft.get("train", "samples")
    if isinstance(limit, int) and isinstance(samples, int) and limit < samples:
        yield "budget.samples", f"is less than one trial takes (train.samples: {samples})"


def _schedule(draft: Draft) -> Found:
    samples, every = draft.get("train", "samples"), draft.get("train", "eval_every")
    warmup, decay = max(draft.train("warmup"), default=0), max(draft.train("decay"), default=0)
    if warmup + decay > 1 + 1e-9:
        yield (
            "train.warmup" if "warmup" in draft.spec.train else "train.decay",
            f"warmup and decay can reach {warmup:g} + {decay:g} of the run, which is more than all of it",
        )
    if not isinstance(samples, int):
        return
    largest = max(draft.train("batch_size"), default=0)
    if samples < largest:
        yield "train.samples", f"must be at least one batch, which is {largest}"
    if isinstance(every, int):
        if every > samples:
            yield "train.eval_every", f"must be at most train.samples, which is {samples}"
        elif every < largest <= samples:
            yield "train.eval_every", f"must be at least one batch, which is {largest}"
        elif samples / every > MAX_MARKS:
            yield "train.eval_every", f"makes {samples // every:,} evaluations per trial; at most {MAX_MARKS:,}"


def _prune(draft: Draft) -> Found:
    pruner, warmup = draft.get("prune", "pruner"), draft.get("prune", "warmup")
    samples, lower, upper = draft.get("train", "samples"), draft.get("prune", "lower"), draft.get("prune", "upper")
    if pruner != "none" and isinstance(warmup, int) and isinstance(samples, int) and warmup >= samples:
        yield "prune.warmup", f"must be below train.samples, which is {samples}: nothing could be stopped early"
    if pruner == "threshold" and lower is None and upper is None:
        yield "prune.pruner", "needs prune.lower or prune.upper"
    if lower is not None and upper is not None and lower >= upper:
        yield "prune.lower", f"must be below prune.upper, which is {upper:g}"


def _objective(draft: Draft) -> Found:
    objective, direction = draft.get("search", "objective"), draft.get("search", "direction")
    if not isinstance(objective, str):
        return
    known = [EVAL + name for name, metric in METRICS.items() if not metric.test_only]
    metric = METRICS[objective.removeprefix(EVAL)] if objective in known else None
    if metric is None:
        yield "search.objective", f"is not a metric ({did_you_mean(objective, known) or ', '.join(known)})"
        return
    if metric.direction is not None and direction != metric.direction:
        said = _COMPARATIVE[metric.direction]
        yield "search.objective", f"is better when it is {said}: set search.direction to {metric.direction}"
    if metric.extra is not None:
        if draft.get("eval", "extra") != "final" or metric.extra not in (draft.get("eval", "metrics") or ()):
            yield "search.objective", f"is not measured in this sweep: add {metric.extra} to eval.metrics"
        if draft.get("prune", "pruner") != "none":
            yield "search.objective", "is measured only at the end of a trial: set prune.pruner to none"


_COMPARATIVE = {"minimize": "smaller", "maximize": "larger"}


def _primary(draft: Draft) -> Found:
    names = draft.get("eval", "primary")
    if names == ():
        yield "eval.primary", "needs at least one metric"
    known = [name for name, metric in METRICS.items() if metric.direction is not None]
    for i, name in enumerate(names if isinstance(names, tuple) else ()):
        if name not in known:
            why = "has no direction" if name in METRICS else did_you_mean(str(name), known) or ", ".join(known)
            yield f"eval.primary[{i}]", f"is not a metric that can be judged ({why})"
        elif (extra := METRICS[name].extra) is not None and extra not in (draft.get("eval", "metrics") or ()):
            yield f"eval.primary[{i}]", f"is not measured in this sweep: add {extra} to eval.metrics"


def _extra_metrics(draft: Draft) -> Found:
    metrics = draft.get("eval", "metrics") or ()
    for i, metric in enumerate(metrics):
        if metric in metrics[:i]:
            yield f"eval.metrics[{i}]", "is in the list twice"
    labels = draft.get("data", "dataset", "label_column") or draft.get("data", "labels")
    without_labels = draft.get("data", "dataset") and not labels
    for metric in ("probing", "label_match"):
        if metric in metrics and without_labels:
            yield at("eval.metrics", metrics, metric), "needs the classes: set data.dataset.label_column"
    for metric in ("coherence", "example_auroc", "label_match"):
        if metric in metrics and draft.get("data", "cache") is False:
            yield at("eval.metrics", metrics, metric), "needs the texts in the cache: leave data.cache on"


def _second_encoder(draft: Draft) -> Found:
    metrics, second = draft.get("eval", "metrics") or (), draft.get("eval", "second_encoder")
    wanted = "example_auroc" in metrics
    if wanted and second is None:
        yield at("eval.metrics", metrics, "example_auroc"), "needs another encoder: set eval.second_encoder"
    if second is None:
        return
    if not wanted:
        yield "eval.second_encoder", "is read by example_auroc only: add that to eval.metrics"
    elif isinstance(draft.get("data", "embeddings"), str):
        yield (
            "eval.second_encoder",
            "encodes the texts of data.dataset; your own embeddings (data.embeddings) have none",
        )


def _tracking(draft: Draft) -> Found:
    if draft.get("tracking", "log_model") and draft.get("tracking", "log_sae") == "none":
        yield (
            "tracking.log_model",
            "logs the SAEs that tracking.log_sae copies: set that to all or best",
        )


def _enqueue(draft: Draft) -> Found:
    """Every point must belong to a stratum: some arm must have its parameters, search them or fix them at its values,
    and have its value of each axis as a level."""
    points = draft.get("search", "enqueue") or ()
    if not draft.arms or any(key.startswith(("sae", "train", "search.enqueue")) for key in draft.unread):
        return
    for i, point in enumerate(points):
        why = [
            (arm.type, *refused) for _, arm in draft.arms if (refused := refusal(draft.spec, arm, point)) is not None
        ]
        if not point or len(why) < len(draft.arms):
            continue
        names, rules = {name for _, name, _ in why}, {rule for _, _, rule in why}
        said = rules if len(rules) == 1 else dict.fromkeys(f"{kind}: {rule}" for kind, _, rule in why)
        key = f".{names.pop()}" if len(names) == 1 else ""
        yield f"search.enqueue[{i}]{key}", f"matches no stratum ({'; '.join(said)})"
    if draft.get("search", "sampler") not in (None, "grid") and not any("search.points" in key for key in draft.unread):
        for _, arm in draft.arms:
            if found := too_many_enqueued(draft.spec, arm):
                yield "search.enqueue", found
                return


SECTION_RULES = (
    _name_is_a_directory,
    _seeds,
    _devices,
    _corpus,
    _near_duplicates,
    _own_embeddings,
    _dataset,
    _budget,
    _schedule,
    _prune,
    _objective,
    _primary,
    _extra_metrics,
    _second_encoder,
    _enqueue,
    _tracking,
)
