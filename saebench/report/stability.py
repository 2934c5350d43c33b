"""Stability of latents: whether other seeds find the same dictionary.

Matching two dictionaries takes seconds, so results are cached in the sweep's directory. Without `--table stability` a
report measures only the best points, if that is cheap and their SAEs are in the sweep's directory, and notes which
points it left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.errors import PreflightError
from saebench.report.dictionaries import Dictionary, Trained, from_mlflow, local, trained
from saebench.report.matching import CELLS, Match, match
from saebench.report.points import cells
from saebench.report.sources import Source
from saebench.report.table import Row, counted, missing, number_of
from saebench.runs.durable import write_json
from saebench.runs.paths import EVALUATION, SweepPaths
from saebench.tracking.server import open_reader

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.record import Record

QUICK = 32_000_000
"""Cosines that a report computes without `--table stability`: about three seconds of one core."""
ASK = "--table stability"


@dataclass(frozen=True)
class Pair:
    """Two seeds of one point."""

    seeds: tuple[int, int]
    match: Match
    firing_known: bool
    """Whether latents that never fire were left out."""


def stability(record: Record, frame: DataFrame, best: DataFrame, quick: bool) -> list[Row]:
    """Return a row per point that several seeds have completed, the best points first. `quick`: only the best points,
    and of these only what is cached or takes seconds. Each omission is added to the record's notes with its reason."""
    points = _points(frame, best, record.sources, quick)
    if quick and points and all(_not_requested(source) for source in record.sources):
        record.note(f"stability of latents: not measured (eval.extra: none); {ASK} measures it anyway")
        return []
    measuring, rows = _Measuring(quick), []
    for facts, trials in points:
        pairs = measuring.pairs(facts, trials)
        if pairs:
            rows.append(facts | _summary(pairs))
    for text in measuring.notes():
        record.note(f"stability of latents: {text}")
    return rows


def _points(
    frame: DataFrame, best: DataFrame, sources: Sequence[Source], quick: bool
) -> list[tuple[Row, list[Trained]]]:
    """Return the points, the best first: the columns that identify each, and its complete trials by seed."""
    by_name, found = {source.name: source for source in sources}, []
    for (group, arm, level, width), cell in cells(frame):
        complete = cell[(cell["state"] == "complete") & cell["sweep"].isin(list(by_name))]
        chosen = set(complete.loc[complete.index.isin(best.index), "point"])
        seeds = complete.groupby("point")["seed"].nunique(dropna=False)
        several = set(seeds.index[seeds > 1])
        wanted = cell[cell["point"].isin(several & chosen if quick else several)]
        for point, trials in wanted.groupby("point", sort=False):
            facts: Row = {"group": group, "arm": arm, "level_name": cell["level_name"].iloc[0], "level": level}
            facts |= {"dict_size": width, "stratum": trials["stratum"].iloc[0], "point": point, "best": point in chosen}
            done = trials[(trials["state"] == "complete") & trials["sweep"].isin(list(by_name))]
            rows = done.drop_duplicates("seed").sort_values("seed").to_dict("records")
            found.append((facts | counted(trials["state"]), [trained(by_name[r["sweep"]], dict(r)) for r in rows]))
    return sorted(found, key=lambda item: not item[0]["best"])


def _not_requested(source: Source) -> bool:
    spec = source.lock.get("spec")
    section = spec.get("eval") if isinstance(spec, dict) else None
    return isinstance(section, dict) and section.get("extra") == "none"


def _summary(pairs: Sequence[Pair]) -> Row:
    """Return means over pairs of seeds, with the range instead of an interval: pairs that share a seed are not
    independent."""
    cosine = [pair.match.cosine for pair in pairs]
    return {
        "seeds": len({seed for pair in pairs for seed in pair.seeds}),
        "pairs": len(pairs),
        "cosine": float(np.mean(cosine)),
        "cosine_lowest": min(cosine),
        "cosine_highest": max(cosine),
        "same_share": float(np.mean([pair.match.same for pair in pairs])),
        "alive": float(np.mean([pair.match.latents for pair in pairs])) if all(p.firing_known for p in pairs) else None,
        "sampled": min((p.match.rows for p in pairs if p.match.rows < p.match.latents), default=None),
        "shares": {(min(pair.seeds), max(pair.seeds)): pair.match.same for pair in pairs},
        "by_pair": ", ".join(f"{a}-{b}: {pair.match.cosine:.3f}" for pair in pairs for a, b in [pair.seeds]),
    }


@dataclass
class _Measuring:
    """One pass over the points: the cosines computed so far, and the points and SAEs left out."""

    quick: bool
    spent: float = 0
    kept: dict[str, _Kept] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    with_dead: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    """Tracking URI -> error of that server; "" if it answers."""

    def pairs(self, facts: Row, trials: Sequence[Trained]) -> list[Pair]:
        """Return every pair of these seeds that is cached or can be measured."""
        kept = self.kept.setdefault(trials[0].source.run_id, _Kept(trials[0].source.paths))
        known = {(a, b): kept.get(a, b) for a, b in combinations(trials, 2)}
        wanting = [pair for pair, found in known.items() if found is None]
        if wanting and self._may(facts, trials, len(wanting)):
            found = {trial: self._dictionary(trial) for trial in dict.fromkeys(t for pair in wanting for t in pair)}
            for a, b in wanting:
                known[a, b] = self._match(a, b, found[a], found[b])
            kept.put({pair: known[pair] for pair in wanting})
        pairs = [pair for pair in known.values() if pair is not None]
        self.with_dead += [facts["point"]] if any(not pair.firing_known for pair in pairs) else []
        return [pair for pair in pairs if not np.isnan(pair.match.cosine)]

    def _may(self, facts: Row, trials: Sequence[Trained], wanting: int) -> bool:
        """Return whether to measure: if `quick`, fetch nothing from MLflow and stay within the limit on cosines."""
        if not self.quick:
            return True
        if any(trial.stamp is None for trial in trials):
            self.away.append(facts["point"])
            return False
        width = facts["dict_size"]
        cost = wanting * (CELLS if missing(width) else min(width**2, CELLS))
        if self.spent + cost > QUICK:
            self.left.append(facts["point"])
            return False
        self.spent += cost
        return True

    def _dictionary(self, trial: Trained) -> Dictionary | None:
        found = local(trial)
        if found is None and not self.quick and self._answers(trial.source.uri):
            found = from_mlflow(trial)
        if found is None:
            self.unreadable.append(trial.name)
        return found

    def _answers(self, uri: str) -> bool:
        """Return whether the server answers; checked once, since a server that is down costs seconds for every SAE."""
        if uri not in self.servers:
            try:
                open_reader(uri)
                self.servers[uri] = ""
            except PreflightError as error:
                self.servers[uri] = str(error)
        return not self.servers[uri]

    def _match(self, a: Trained, b: Trained, of_a: Dictionary | None, of_b: Dictionary | None) -> Pair | None:
        if of_a is None or of_b is None or of_a.rows.shape[1] != of_b.rows.shape[1]:
            return None
        return Pair(
            (a.seed, b.seed), match(of_a.rows, of_b.rows, signed=a.signed), of_a.firing_known and of_b.firing_known
        )

    def notes(self) -> list[str]:
        """Return one line per kind of omission."""
        texts = [wrong for wrong in self.servers.values() if wrong]
        if self.unreadable:
            where = f"in the sweep's directory ({ASK} asks MLflow)" if self.quick else "here or in MLflow"
            texts.append(f"no readable SAE of {_few(self.unreadable)} {where}; its pairs of seeds are missing")
        if self.with_dead:
            texts.append(f"no {EVALUATION} for {_points_of(self.with_dead)}: latents that never fire are matched too")
        if self.left:
            texts.append(f"{_points_of(self.left)} left out, as that takes longer; {ASK} measures and keeps them")
        if self.away:
            texts.append(f"{_points_of(self.away)} left out, as their SAEs are not here; {ASK} asks MLflow for them")
        return texts


def _points_of(points: Sequence[str]) -> str:
    return number_of(len(points), "point")


def _few(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _Kept:
    """Results cached in the sweep's directory; each is valid while the files it was computed from are unchanged or
    missing."""

    def __init__(self, paths: SweepPaths | None) -> None:
        self._file = paths.stability if paths else None
        self._pairs = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            held = json.loads(self._file.read_text(encoding="utf-8")) if self._file else {}
        except (OSError, ValueError):
            return {}
        pairs = held.get("pairs") if isinstance(held, dict) and held.get("cells") == CELLS else None
        return pairs if isinstance(pairs, dict) else {}

    def get(self, a: Trained, b: Trained) -> Pair | None:
        try:
            held = self._pairs[f"{a.run_id} {b.run_id}"]
            if any(t.stamp not in (None, stamp) for t, stamp in zip((a, b), held["stamps"], strict=True)):
                return None
            if held.get("signed", False) != a.signed:
                return None
            return Pair((a.seed, b.seed), Match(**held["match"]), bool(held["firing_known"]))
        except (KeyError, TypeError, ValueError):  # not cached yet, or the file was edited
            return None

    def put(self, pairs: dict[tuple[Trained, Trained], Pair | None]) -> None:
        """Cache these; if the directory cannot be written, the next report computes them again."""
        for (a, b), pair in pairs.items():
            if pair is not None:
                held = {"stamps": [a.stamp, b.stamp], "match": asdict(pair.match), "firing_known": pair.firing_known,
                        "signed": a.signed}  # fmt: skip
                self._pairs[f"{a.run_id} {b.run_id}"] = held
        if self._file and any(pairs.values()):
            try:
                write_json(self._file, {"cells": CELLS, "pairs": self._pairs}, durable=False)
            except OSError:
                self._file = None
