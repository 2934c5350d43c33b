"""`saebench explain` for one trial: read the targets, rank, measure, compare with other seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.latents import explain as effects_of
from saebench.latents.analysis import Latents
from saebench.latents.codes import Codes
from saebench.latents.contrast import contrast, other_corpus, stacked
from saebench.latents.corpus import open_part
from saebench.latents.encode import Encoder
from saebench.latents.explain import Effect
from saebench.latents.targets import Kind, Target, read_column, targets
from saebench.latents.trial import TrainedSAE
from saebench.runs.paths import cache_dir as default_cache_dir


@dataclass(eq=False)
class Explained:
    """Effects of the latents of one trial on some targets."""

    latents: Latents
    effects: list[Effect]
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """A row per effect, in the order of the ranking."""
        place = {latent: i for i, latent in enumerate(self.latents.live.tolist())}
        rows = []
        for effect in self.effects:
            end = self.latents.trial.ends.of(effect.latent, effects_of.direction_of(effect))
            end = end if end in place else self.latents.main_end(effect.latent)
            i = place.get(end)
            top = self.latents.by_latent.top(end, 3)
            sign = {"end": self.latents.trial.ends.mark(end)} if self.latents.signed else {}
            rows.append(
                {
                    "trial": self.latents.trial.name,
                    **vars(effect),
                    **sign,
                    "seeds": len(self.latents.others),
                    "keywords": ", ".join(k.term for k in self.latents.keywords[i]) if i is not None else "",
                    "texts": [self.latents.example(example.row, 300) for example in top],
                }
            )
        return rows


def explain_columns(
    one: Latents, columns: Sequence[str], *, kind: Kind = "auto", cache_dir: str | Path | None = None,
    most: int = effects_of.MOST,
) -> Explained:  # fmt: skip
    """Return which latents are related to these columns of the data set."""
    train = open_part(one.trial.config, "train", default_cache_dir(cache_dir))
    found: list[Target] = []
    notes: list[str] = []
    for name in columns:
        some, said = targets(name, read_column(one.trial.config.data, name, (train, one.part)), kind)
        found += some
        notes += said
    effects = effects_of.explain(one.trial.codes(train), one.codes, found, most)
    others = [(other.decoder, other.codes(one.part)) for other in one.others]
    return Explained(one, _confirmed(one, effects, found, others), notes)


def explain_contrast(
    one: Latents, name: str, texts: Iterable[str], *, model: Any = None, cache_dir: str | Path | None = None,
    most: int = effects_of.MOST,
) -> Explained:  # fmt: skip
    """Return which latents separate the texts of another corpus from those of the sweep."""
    train = open_part(one.trial.config, "train", default_cache_dir(cache_dir))
    encoder = Encoder(one.trial, model=model)
    theirs, halves = other_corpus(encoder, texts, {int(h) for h in train.entry.hashes.tolist()})
    target = contrast(name, (len(train), len(one.part)), (theirs[0].rows, theirs[1].rows))
    effects = effects_of.explain(
        stacked([one.trial.codes(train), theirs[0]]), stacked([one.codes, theirs[1]]), [target], most
    )
    others = [(other.decoder, _of_both(one, other, halves[1], encoder)) for other in one.others]
    note = f"{name}: {theirs[0].rows:,} texts to rank on, {theirs[1].rows:,} to measure on"
    return Explained(one, _confirmed(one, effects, [target], others), [note])


def _of_both(one: Latents, other: TrainedSAE, texts: list[str], encoder: Encoder) -> Codes:
    theirs = Encoder(other, model=encoder.model)
    return stacked([other.codes(one.part), *(codes for _, codes in theirs.stream(texts))])


def _confirmed(one: Latents, effects: list[Effect], found: list[Target], others: list[Any]) -> list[Effect]:
    targets_of = {target.name: target for target in found}
    return effects_of.confirm(effects, one.trial.decoder, targets_of, others, signed=one.signed)
