"""The tables of `saebench latents`: raw numbers and their display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saebench.latents import Latents
from saebench.latents.judge import SAE, Judged
from saebench.latents.scores import FEWEST
from saebench.latents.seeds import judged_rows, judged_with_seeds, label_rows, score_rows
from saebench.latents.visible import visible
from saebench.report.table import Column, Table, decimals, make, percentage, plus_minus

FEW = 40
"""Latents in a terminal, shared out between the trials that are shown."""


LATENT = Column("latent", "latent", lambda row: f"{row['latent']}{row.get('end', '')}")
"""A latent's number; for a signed one, with the sign of the end."""


def latents(analyses: Sequence[Latents], whole: bool) -> Table:

    each = [one.rows() for one in analyses]
    rows = [row for some in each for row in some]
    many, few = len(analyses) > 1, max(5, FEW // len(analyses))
    shown = rows if whole else [row for some in each for row in some[:few]]
    texts, part = len(analyses[0].part), analyses[0].part.name
    note = f"Live latents on {texts:,} texts ({part} part), the most frequent first."
    if len(shown) < len(rows):
        note += f" {len(rows) - len(shown):,} more: --out FILE.csv, or --format html for the page."
    return make("latents", "Latents", shown, _columns(many), note)


def _columns(many: bool) -> list[Column]:

    def words(row: dict[Any, Any]) -> str:
        return visible(row["keywords"], 60) or "-"

    def label(row: dict[Any, Any]) -> str:
        if not isinstance(row["label"], str):  # a data frame turns None into NaN
            return "-"
        return f"{visible(row['label'], 30)} {percentage(row['label_share'])}"

    def nearest(key: str) -> Any:
        return lambda row: ", ".join(f"#{n}" for n, _ in row[key][:3]) or "-"

    trial = [Column("trial", "trial")] if many else []
    return [
        *trial, LATENT, Column("keywords", "keywords", words),
        Column("density", "texts", lambda row: percentage(row["density"])),
        Column("mean", "mean", decimals("mean", 3), drop=4), Column("max", "max", decimals("max", 3), drop=4),
        Column("label", "label", label, drop=1), Column("family", "family", drop=3),
        Column("found_by_other_seeds", "seeds", lambda row: percentage(row["found_by_other_seeds"]), drop=2),
        Column("twin", "twin of", drop=3), Column("against_cosine", "in other", decimals("against_cosine", 2)),
        Column("together", "fires with", nearest("together"), drop=5),
        Column("nearest", "nearest", nearest("nearest"), drop=6),
        Column("top", "text that fires it most", lambda row: visible(row["top"], 72), long=48),
    ]  # fmt: skip


def trials(analyses: Sequence[Latents]) -> Table:

    def share(key: str) -> Any:
        return lambda row: percentage(row[key])

    columns = [
        Column("trial", "trial"), Column("stratum", "stratum"), Column("seed", "seed"), Column("texts", "texts"),
        Column("live", "live latents"), Column("dict_size", "of"), Column("l0", "L0"),
        Column("median_density", "median density", share("median_density")), Column("twins", "twins", share("twins")),
        Column("families", "families"), Column("modularity", "modularity"),
        Column("found_by_other_seeds", "found by other seeds", share("found_by_other_seeds")),
        Column("shared", "in other", share("shared")),
    ]  # fmt: skip
    return make("trials", "Latents of trials", [one.summary() for one in analyses], columns)


def fired_table(one: Latents, text: str, values: dict[int, float]) -> Table:

    rows = {row["latent"]: row for row in one.rows([one.trial.ends.of(n, value) for n, value in values.items()])}
    silent = {"keywords": "", "label": None, "density": 0.0, "top": "(fires on none of these texts)"}
    found = [rows.get(n, {"latent": n, **silent}) | {"activation": value} for n, value in values.items()]
    columns = [c for c in _columns(False) if c.key in ("latent", "keywords", "density", "label", "top")]
    columns.insert(1, Column("activation", "activation", decimals("activation", 3)))
    shared = one.sharing(list(values.items()))
    note = "Texts that share most of it: " + "; ".join(f"{visible(t, 90)} ({cosine:.2f})" for t, cosine in shared)
    return make("fired", f"Latents that fire on {visible(text, 80)!r}", found, columns, note if shared else "")


_NO_SCORE = f"A score needs latents that fire on {FEWEST} texts or more, and texts, labels or --second MODEL."


def scores(
    analyses: Sequence[Latents], which: str, second: str | None, circular: bool, cache_dir: str | None, build: bool
) -> Table:

    judged = [judged_with_seeds(one, second, circular=circular, cache_dir=cache_dir, build=build) for one in analyses]
    if which == "labels":
        rows = [row for one, (mine, *_) in zip(analyses, judged, strict=True) for row in label_rows(one, mine)]
        columns = [
            Column("trial", "trial"), Column("label", "label", lambda row: visible(str(row["label"]), 40)),
            Column("members", "texts"), Column("latent", "latent"),
            Column("keywords", "keywords"), Column("auroc", "AUROC", decimals("auroc", 3)),
            Column("f1", "best F1", decimals("f1", 3)), Column("purity", "purity at 10", decimals("purity", 2)),
        ]  # fmt: skip
        note = "Chosen on training rows, measured on these texts."
        return make("labels", "A latent for each label", rows, columns, note)
    if which == "judged":
        return _judged(analyses, [mine for mine, *_ in judged])
    rows = [row for one, some in zip(analyses, judged, strict=True) for row in score_rows(one, some)]
    floors = {"random": "random directions", "raw": "coordinates", "pca": "components"}
    columns = [
        Column("trial", "best trial"), Column("stratum", "stratum"), Column("score", "score"),
        Column("seeds", "seeds"), Column("value", "SAE ± 95%", plus_minus("value", "value_high", 3)),
        *(Column(key, title, decimals(key, 3)) for key, title in floors.items()),
        Column("above", "above the best floor ± 95%", plus_minus("above", "above_high", 3)),
    ]  # fmt: skip
    note = "Mean and t interval over seeds. Floors: the same score for directions with the latents' activation rates."
    note = note if rows else _NO_SCORE
    return make("scores", "Scores of interpretability, and their floors", rows, columns, note)


def _judged(analyses: Sequence[Latents], judged: Sequence[Judged]) -> Table:
    """Return a row per judged latent, with the floors in the note."""
    rows = [row for one, mine in zip(analyses, judged, strict=True) for row in judged_rows(one, mine)]
    columns = [
        *([Column("trial", "trial")] if len(analyses) > 1 else []), LATENT,
        Column("keywords", "keywords", lambda row: visible(row["keywords"], 60) or "-"),
        Column("density", "texts", lambda row: percentage(row["density"])),
        Column("coherence", "coherence", decimals("coherence", 3)),
        Column("example_auroc", "example AUROC", decimals("example_auroc", 3)),
        Column("top", "text that fires it most", lambda row: visible(row["top"], 72), long=48),
    ]  # fmt: skip
    floors = [
        f"{score} {', '.join(f'{who} {some[score]:.3f}' for who, some in one.values.items())}"
        for one in judged[:1]
        for score in ("coherence", "example_auroc")
        if score in one.values[SAE]
    ]
    note = f"Means, with their floors: {'; '.join(floors)}." if floors else _NO_SCORE
    return make("judged", "Latents that were judged", rows, columns, note)
