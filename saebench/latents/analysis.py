"""The meaning of one trial's latents, as one object; everything is computed from the codes on first use."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.errors import DataError
from saebench.latents import families as by_family
from saebench.latents import keywords as by_term
from saebench.latents import neighbours
from saebench.latents.codes import Codes
from saebench.latents.corpus import Part, open_part
from saebench.latents.ends import unfolded
from saebench.latents.facts import ByLatent, Facts, facts_of
from saebench.latents.neighbours import SAME, TWIN, Nearest
from saebench.latents.ranks import Classes, classes_of
from saebench.latents.trial import TrainedSAE, open_trial, siblings
from saebench.latents.words import Terms, count_terms, membership
from saebench.runs.paths import cache_dir as default_cache_dir

UNSPACED = 0.02
"""Share of tokens in scripts without spaces above which a note says so."""


@dataclass(eq=False)
class Latents:
    """The latents of `trial` on `part`. Arrays over live latents are in the order of `live`."""

    trial: TrainedSAE
    part: Part
    codes: Codes
    others: list[TrainedSAE] = field(default_factory=list)
    """Other seeds of the same point."""
    against: TrainedSAE | None = None
    """A trial to compare with, latent by latent."""
    plan: str = "pca"
    """How the map is drawn: a name of neighbours.PLANS."""

    @property
    def signed(self) -> bool:
        """Whether activations have both signs: then each end of a latent stands for itself (ends.py), and "latent" in
        what follows means an end."""
        return self.trial.config.sae.signed

    @cached_property
    def ends(self) -> Codes:
        """The codes, with a column per end."""
        return unfolded(self.codes) if self.signed else self.codes

    def main_end(self, latent: int) -> int:
        """The end of a latent that fires more often."""
        firing, other = self.facts.firing, self.trial.ends.of(latent, -1.0)
        return other if firing[other] > firing[latent] else latent

    @cached_property
    def facts(self) -> Facts:
        return facts_of(self.ends)

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """Latents that fire on some text of the part."""
        return self.facts.live

    @cached_property
    def live_latents(self) -> int:
        """How many latents fire, whatever the end."""
        return len(np.unique(self.live % self.codes.dict_size))

    @cached_property
    def by_latent(self) -> ByLatent:
        return ByLatent(self.ends)

    @cached_property
    def terms(self) -> Terms | None:
        """None if the texts are missing."""
        return None if self.part.texts is None else count_terms(self.part.texts)

    @cached_property
    def keywords(self) -> list[list[by_term.Keyword]]:
        if self.terms is None:
            return [[] for _ in self.live]
        return by_term.keywords(self.ends, self.terms, self.live.tolist())

    @cached_property
    def decoder(self) -> NDArray[np.float32]:
        """Rows of the live latents."""
        return self.trial.ends.directions(self.trial.decoder)[self.live]

    @cached_property
    def near(self) -> Nearest:
        """Nearest live latents by cosine of decoder rows (positions in `live`)."""
        return neighbours.nearest_by_cosine(self.decoder)

    @cached_property
    def together(self) -> Nearest:
        """Nearest live latents by co-activation (positions in `live`)."""
        return neighbours.coactivation(self.ends, self.live)

    @cached_property
    def families(self) -> tuple[NDArray[np.int64], float]:
        """The family of each live latent (-1: alone), and the modularity."""
        return by_family.families(self.together)

    @cached_property
    def found(self) -> NDArray[np.float64]:
        """Share of the other seeds that find each live latent; NaN without other seeds."""
        others = [self.trial.ends.directions(other.live_decoder()) for other in self.others]
        return neighbours.found_again(self.decoder, others)

    @cached_property
    def matched(self) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """The nearest latent of `against` and the cosine; None if nothing is compared."""
        if self.against is None:
            return None
        theirs = self.against.decoder
        near = neighbours.nearest_by_cosine(self.decoder, self.against.ends.directions(theirs), 1)
        return near.index[:, 0], near.value[:, 0]

    @cached_property
    def classes(self) -> Classes:
        return classes_of(self.part.labels or [])

    @cached_property
    def labels(self) -> list[by_term.Keyword | None]:
        """Return each live latent's best label, judged as a keyword is, or None if no label goes with it."""
        if not self.classes.names:
            return [None for _ in self.live]
        rows, members = self.classes.rows[0], self.classes.members[0]
        found = by_term.keywords(
            self.ends, membership(self.classes.names, rows, members, self.codes.rows), self.live.tolist(), 1
        )
        return [some[0] if some else None for some in found]

    def compute(self) -> None:
        """Compute what rows and pages show, on two threads: reading the texts is Python, the rest is compiled."""
        compiled = ("by_latent", "near", "together", "found", "matched", "map")
        _ = self.live  # the others need it
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(lambda: [getattr(self, name) for name in compiled])
            _ = self.terms
            beside.result()

    @cached_property
    def map(self) -> NDArray[np.float64]:
        """(live, 2) positions of the decoder rows in a plane."""
        return neighbours.PLANS[self.plan](self.decoder)

    def sharing(self, pairs: Sequence[tuple[int, float]], most: int = 5) -> list[tuple[str, float]]:
        """The texts of the part whose codes are nearest to a code of these (latent, value), with the cosine."""
        code = np.zeros(self.codes.dict_size)
        for latent, value in pairs:
            code[latent] = value
        matrix = self.codes.matrix()
        length = np.sqrt(np.asarray((matrix * matrix).sum(axis=1), np.float64).ravel()) * np.linalg.norm(code)
        cosine = (matrix @ code) / np.maximum(length, 1e-30)
        best = np.argsort(-cosine, kind="stable")[:most]
        return [(self.example(int(i)), float(cosine[i])) for i in best if cosine[i] > 0]

    @property
    def notes(self) -> list[str]:
        """Notes for the reader: missing parts, and why."""
        found = []
        dead = self.codes.dict_size - self.live_latents
        if not len(self.live):
            found.append("no latent fires on any of these texts: nothing to show")
        elif dead:
            found.append(f"{dead:,} of {self.codes.dict_size:,} latents never fire on these texts and are left out")
        if self.terms is None:
            found.append(
                f"the texts of {self.part.entry.cache_key} cannot be read: row numbers are shown instead, and no "
                "keywords"
            )
        elif not self.terms.names:
            found.append("no word is in three of these texts: no keywords")
        elif self.terms.unspaced > UNSPACED:
            found.append(
                f"{self.terms.unspaced:.0%} of the tokens are in scripts without spaces between words: keywords there "
                "are character n-grams"
            )
        if self.part.labels is None:
            found.append("no labels: the corpus was read without data.dataset.label_column")
        elif not self.classes.names:
            found.append("no label has at least ten texts and ten texts without it: labels are left out")
        if not self.others:
            found.append("no other seed of this point was found: stability is unknown")
        return found

    def example(self, row: int, characters: int | None = None) -> str:
        """Return the text of a row, or its number if the texts are missing."""
        if self.part.texts is None:
            return f"(row {int(self.part.index[row])})"
        text = self.part.texts[row]
        return text if characters is None or len(text) <= characters else text[: characters - 1] + "…"

    def summary(self) -> dict[str, Any]:
        """Return one row about the trial."""
        sae, live = self.trial.config.sae, len(self.live)
        family, modularity = self.families
        has_twin = self.near.value[:, 0] > TWIN if self.near.value.size else np.zeros(0, bool)
        return {
            "trial": self.trial.name,
            "type": sae.type,
            "stratum": self.trial.config.stratum,
            "seed": self.trial.config.seed,
            "part": self.part.name,
            "texts": len(self.part),
            "dict_size": self.codes.dict_size,
            "live": self.live_latents,
            "l0": len(self.codes.values) / max(self.codes.rows, 1),
            "median_density": float(np.median(self.facts.density[self.live])) if live else float("nan"),
            "twins": float(has_twin.mean()) if live else float("nan"),
            "families": len(set(family.tolist()) - {-1}),
            "modularity": modularity,
            "found_by_other_seeds": float(self.found.mean()) if live and self.others else float("nan"),
            "shared": float((self.matched[1] > SAME).mean()) if self.matched and live else float("nan"),
        }

    def rows(self, latents: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return a row per live latent (per end if they are signed), or per given one, the most frequent first."""
        place = {latent: i for i, latent in enumerate(self.live.tolist())}
        wanted = self.live.tolist() if latents is None else [latent for latent in latents if latent in place]
        wanted.sort(key=lambda latent: (-self.facts.firing[latent], latent))
        return [self._row(latent, place[latent]) for latent in wanted]

    def _row(self, latent: int, i: int) -> dict[str, Any]:
        label = self.labels[i]
        ends = self.trial.ends
        near = [(ends.name(int(self.live[j])), v) for j, v in self.near.pairs(i)]
        together = [(ends.name(int(self.live[j])), v) for j, v in self.together.pairs(i)]
        sign = ends.sign(latent)
        row = {
            "trial": self.trial.name,
            "latent": ends.latent(latent),
            **({"end": ends.mark(latent)} if self.signed else {}),
            "keywords": ", ".join(k.term for k in self.keywords[i]),
            "density": float(self.facts.density[latent]),
            "texts": int(self.facts.firing[latent]),
            "mean": sign * float(self.facts.mean[latent]),
            "max": sign * float(self.facts.largest[latent]),
            "label": label.term if label else None,
            "label_share": label.share if label else float("nan"),
            "label_silent": label.silent if label else float("nan"),
            "family": int(self.families[0][i]) if self.families[0][i] >= 0 else None,
            "found_by_other_seeds": float(self.found[i]),
            "twin": near[0][0] if near and near[0][1] > TWIN else None,
            "nearest": near,
            "together": together,
            "top": self.example(self.by_latent.top(latent, 1)[0].row, 300),
        }
        if self.matched and self.against:
            row |= {
                "against": self.against.ends.name(int(self.matched[0][i])),
                "against_cosine": float(self.matched[1][i]),
            }
        return row


def analyse(
    trial: str | Path | TrainedSAE,
    part: str = "test",
    *,
    against: str | Path | TrainedSAE | None = None,
    cache_dir: str | Path | None = None,
    build: bool = False,
) -> Latents:
    """Return the meaning of a trial's latents (the trial's directory, or an exported folder) on a part of its corpus.

    The codes are encoded once and kept in the trial's folder. Raises UserError in one line: no weights, no embeddings
    in the cache (`build` encodes the texts again), an SAE of another width.
    """
    opened = trial if isinstance(trial, TrainedSAE) else open_trial(Path(trial))
    other = against if against is None or isinstance(against, TrainedSAE) else open_trial(Path(against))
    texts = open_part(opened.config, part, default_cache_dir(cache_dir), build=build)
    for sae in filter(None, (opened, other)):
        if sae.decoder.shape[1] != texts.entry.d_in:
            raise DataError(
                f"{sae.name}: an SAE of embeddings of width {sae.decoder.shape[1]}, but the cache "
                f"{texts.entry.cache_key} has width {texts.entry.d_in}"
            )
    same = [sibling for sibling in siblings(opened) if sibling.decoder.shape[1] == texts.entry.d_in]
    return Latents(opened, texts, opened.codes(texts), same, other)
