"""Words of the report that are explained at their first appearance."""

from __future__ import annotations

import re
from html import escape

TERMS = {
    "FVU": "fraction of variance unexplained: the squared error of the reconstruction over the variance of the "
    "embeddings. 0 is perfect, 1 is what predicting the mean gives",
    "L0": "how many latents fire for a text, on average",
    "Pareto front": "settings that no other setting beats in both sparsity and error",
    "strata": "trials that may fairly be compared: same data, type, sparsity and width",
    "stratum": "trials that may fairly be compared: same data, type, sparsity and width",
    "best floor": "the least FVU that is reached without any training, at the same size: principal components, "
    "k-means, random directions",
    "Holm": "a correction for making several comparisons at once: without it one of twenty would come out as "
    "different by chance",
    "search error": "how far the chosen setting of an arm may be from its best one; the interval is wider by that",
    "control": "an SAE with a part frozen at its random start; only what a score has above its control counts",
    "fANOVA": "an estimate, from the trials, of how much of the variation each parameter causes",
}
"""Word -> meaning, as in docs/glossary.md."""

HEADS = {
    "FVU ± 95%": f"{TERMS['FVU']}; mean over seeds with its 95% interval",
    "best floor": TERMS["best floor"],
    "L0": TERMS["L0"],
    "dead": "share of latents that fire on no test text",
    "dead latents": "latents that fire on no test text",
    "c/p/f": "trials that are complete / pruned / failed (+ unfinished)",
    "latents": "size of the dictionary",
    "sparsity": "the level that was asked for: k latents per text, or the L0 that training aims at",
    "seeds": "seeds that measured the chosen setting",
    "expl. var.": "explained variance, 1 - FVU",
    "std": "standard deviation over seeds",
    "front": "on the Pareto front: no other setting has both a lower L0 and a lower FVU",
    "p (Holm)": TERMS["Holm"],
}
"""Title of a column -> meaning."""

_PATTERN = re.compile(rf"(?<![\w/=-])({'|'.join(sorted(map(re.escape, TERMS), key=len, reverse=True))})(?![\w-])")


def explained(text: str, seen: set[str]) -> str:
    """Text as HTML in which the first appearance of each term that is not in `seen` has its meaning as a tip; the terms
    are added to `seen`. The text must be escaped and have no tags."""

    def mark(match: re.Match[str]) -> str:
        term = match.group()
        if term in seen:
            return term
        seen.add(term)
        return f'<abbr tabindex="0" data-tip="{escape(TERMS[term])}">{term}</abbr>'

    return _PATTERN.sub(mark, text)
