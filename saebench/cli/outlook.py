"""What `plan` reports beyond the spec: the texts, an existing sweep of the same name, the expected duration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saebench.cli.decidable import too_few_points, too_few_seeds, too_few_texts
from saebench.errors import PreflightError, SpecError
from saebench.hub import not_here
from saebench.plan import Plan, Stratum
from saebench.runs.clock import duration, time_of_day
from saebench.runs.paths import SweepPaths
from saebench.spec import Scalar, SweepSpec

if TYPE_CHECKING:
    from saebench.stores.look import Look

FIRST = 60
"""Characters of the first text that are shown."""
EPOCHS, TEXTS_PER_LATENT = 10, 10
"""With more epochs and fewer texts per latent than this, latents may memorise single texts."""
SURE_EPOCHS, SURE_TEXTS_PER_LATENT = 20, 3
"""With more epochs and fewer texts per latent than this, latents memorise single texts."""
START_SECONDS = 2.0
"""Seconds to start a trial's process and write its SAE."""
MOST_MEASURED = 6


@dataclass(frozen=True)
class Corpus:
    """Texts that a sweep would train and evaluate on."""

    train: int
    validation: int
    test: int
    look: Look | None = None
    """Counts and first texts of the files that were read; None if the numbers come from the embedding cache."""

    @property
    def texts(self) -> int:
        return self.train + self.validation + self.test


def corpus(spec: SweepSpec, entry: Mapping[str, Any]) -> Corpus | None:
    """Return the numbers of texts from the cache, else from the local files; None for a dataset on the hub. Raises
    DataError if a sweep would."""
    from saebench.stores.look import is_local, look

    if entry.get("cached"):
        return Corpus(*entry["parts"])
    if not is_local(spec.data):
        return None
    seen = look(spec.data)
    parts = seen.parts
    return Corpus(parts.get("train", 0), parts.get("validation", 0), parts.get("test", 0), seen)


def about_texts(spec: SweepSpec, found: Corpus) -> str:
    """Return the numbers of texts, those left out, and the first text."""
    data = spec.data
    held_out = f"{found.validation:,} for validation, {found.test:,} for the test"
    lines = [f"{found.texts:,}: {found.train:,} to train on, {held_out}"]
    if found.look is None:
        return lines[0]
    counts = found.look.counts
    words = {"duplicate": "duplicates", "empty": "empty", "non_string": "not text"}
    left_out = ", ".join(f"{counts[key]:,} {word}" for key, word in words.items() if counts[key])
    if not found.look.whole:
        lines[0] = f"at least {lines[0]}"
    elif counts["kept"] < data.num_examples:
        lines.append(f"num_examples is {data.num_examples:,}, but there are no more than {counts['kept']:,}")
    if left_out:
        lines.append(f"of {counts['read']:,} rows read, left out: {left_out}")
    first = found.look.first
    shown = first if len(first) <= FIRST else f"{first[: FIRST - 3].rsplit(' ', 1)[0]} ..."
    labels = f" ({data.dataset.label_column}: {found.look.first_label})" if data.dataset.label_column else ""
    return "\n".join([*lines, f"first: {json.dumps(shown, ensure_ascii=False)}{labels}"])


def memorising(plan: Plan, found: Corpus) -> list[str]:
    """Return a warning per width that has too few texts for its budget."""
    lines = []
    epochs = plan.samples / max(1, found.train)
    for width in sorted({_width(plan, stratum) for stratum in plan.strata} - {0}):
        per_latent = found.train / width
        if epochs <= EPOCHS or per_latent >= TEXTS_PER_LATENT:
            continue
        sure = epochs > SURE_EPOCHS and per_latent < SURE_TEXTS_PER_LATENT
        lines.append(
            f"{epochs:,.0f} epochs, {width:,} latents for {found.train:,} training texts: an SAE "
            f"{'will' if sure else 'may'} memorise them; more texts, a smaller dict_size or a smaller train.samples "
            "help"
        )
    return lines


def _width(plan: Plan, stratum: Stratum) -> int:
    """Return dict_size of a stratum's widest points; 0 if it is unknown."""
    try:
        return plan.trial(stratum, _a_point(stratum), plan.spec.seeds[0], 0).sae.dict_size or 0
    except (ValueError, SpecError):
        return 0


def existing(spec: SweepSpec, paths: SweepPaths) -> str | None:
    """Return what `sweep` would do with the existing sweep of this name, or None if none exists."""
    from saebench.runs.lock import differences, is_extension, is_moved, is_per_start, read_lock
    from saebench.runs.secrets import mask_all

    lock = read_lock(paths)
    if lock is None:
        return None
    changes = {
        key: values
        for key, values in differences(lock.spec, mask_all(json.loads(json.dumps(spec.plain(), default=str)))).items()
        if not is_per_start(key) and not is_moved(key, *values)
    }
    where = os.path.relpath(paths.root)
    if not changes:
        return f"{where} exists with this spec ({len(paths.trials())} trials begun): saebench sweep resumes it"
    shown = "; ".join(f"{key}: {_shown(old)}, now {_shown(new)}" for key, (old, new) in list(changes.items())[:3])
    more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
    if all(is_extension(key, *values) for key, values in changes.items()):
        return f"{where} exists with less ({shown}{more}): saebench sweep --extend applies the change to it"
    return f"{where} exists with another spec ({shown}{more}): give this one another name (--set name=NAME)"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- minutes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minutes:
    """Upper bounds in seconds, extrapolated from a short measurement."""

    encode: float | None
    """None if the texts are in the cache already."""
    trial: float
    """Of one trial, on average."""
    trials: int
    slots: int
    device: str

    @property
    def total(self) -> float:
        """Seconds for encoding and then all trials, as many at a time as there are slots."""
        return (self.encode or 0.0) + self.trial * -(-self.trials // self.slots)


def minutes(plan: Plan, found: Corpus | None, cached: bool) -> Minutes | None:
    """Measure a training step of each type and width, and the encoding of a few texts; None if that is impossible
    (unknown width or device, too little memory)."""
    from saebench.devices import make_slots
    from saebench.trial.measure import measure

    if plan.d_in is None:
        return None
    try:
        slots = make_slots(plan.spec.run)
    except PreflightError:
        return None
    kinds = list({(stratum.type, _width(plan, stratum)): stratum for stratum in plan.strata}.values())[:MOST_MEASURED]
    texts = [] if cached or found is None or found.look is None else found.look.some
    configs = [plan.trial(stratum, _a_point(stratum), plan.spec.seeds[0], 0) for stratum in kinds]
    done = measure(configs, plan.d_in, slots[0].device, slots[0].threads, texts)
    if done is None:
        return None
    known = {(stratum.type, _width(plan, stratum)): s for stratum, s in zip(kinds, done.examples, strict=True)}
    slowest = max(known.values())
    examples = plan.samples + _evaluated(plan, found)
    points = sum(stratum.points for stratum in plan.strata)
    each = sum(
        stratum.points * (START_SECONDS + examples * known.get((stratum.type, _width(plan, stratum)), slowest))
        for stratum in plan.strata
    )
    total = found.texts if found is not None else plan.spec.data.num_examples
    encode = None if cached or done.text is None else done.text * total
    return Minutes(encode, each / points, plan.n_trials, len(slots), slots[0].name.partition(" (")[0])


def _evaluated(plan: Plan, found: Corpus | None) -> float:
    """Return the number of training examples that cost as much as a trial's evaluations; without a backward pass an
    example costs a third."""
    data = plan.spec.data
    texts = found.validation if found is not None else data.num_examples * data.parts.validation
    return len(plan.marks()) * texts / 3


def _a_point(stratum: Stratum) -> dict[str, Scalar]:
    """Return one value of each searched parameter, the largest width: a step's duration hardly depends on the
    others."""
    point: dict[str, Scalar] = {}
    for name, value in stratum.space.items():
        wide = name in ("dict_size", "expansion_factor")
        if isinstance(value, tuple):
            point[name] = max(v for v in value if isinstance(v, int | float)) if wide else value[0]
        else:
            point[name] = value.high if wide else value.low
    return point


def about_time(found: Minutes) -> str:
    """Return one sentence about the longest duration."""
    encode = f"encoding {duration(found.encode)}, " if found.encode is not None else ""
    at_once = f"{found.slots} at once" if found.slots > 1 else "one at a time"
    each = f"{found.trials:,} trials of {duration(found.trial)} {at_once} on {found.device}"
    done = f"started now, done around {time_of_day(found.total)}"
    return f"at most about {duration(found.total)} ({done}): {encode}{each}"


def warnings(plan: Plan, found: Corpus | None) -> Iterator[str]:
    """Return the warnings about a plan."""
    if found is not None:
        yield from memorising(plan, found)
    yield from too_few_points(plan)
    yield from too_few_seeds(plan)
    yield from too_few_texts(plan, found.test if found is not None else None)
    data = plan.spec.data
    if data.embeddings is None and (found is None or found.look is not None):  # not in the embedding cache
        missing = not_here(data.model, data.revision)
        if missing:
            yield f"{missing}. Until then its width and the minutes are unknown"
