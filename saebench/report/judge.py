"""Every pair of arms in every metric: the comparisons behind the verdict, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from saebench.metrics import PROBED_LATENTS
from saebench.report import statistics
from saebench.report.compare import in_metric
from saebench.report.comparison import Comparison
from saebench.report.metric_table import ALL, STABILITY
from saebench.report.search_error import Cell, CellSearch
from saebench.report.seed_stability import in_stability
from saebench.report.table import Row
from saebench.report.text_interval import with_texts

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = {
    "fvu": "FVU",
    "cosine": "cosine",
    "cosine_p5": "5th-percentile cosine",
    **{f"probing_auc_k{k}": f"probing AUC k={k}" for k in PROBED_LATENTS},
    **{f"probing_accuracy_k{k}": f"probing accuracy k={k}" for k in PROBED_LATENTS},
    "label_auroc_above_floor": "label AUROC above floor",
    "similarity_rank_correlation": "rank correlation",
    "knn_overlap_at_10": "neighbours kept",
    STABILITY: "latents that other seeds find",
    "coherence_above_floor": "coherence above floor",
    "example_auroc_above_floor": "example AUROC above floor",
    "code_stability": "code stability",
    "code_stability_duplicates": "code stability of near-duplicates",
    "dead_fraction": "dead latents",
}
"""Names of metrics in a sentence, if they differ from the key. The first ones order types best as the features do that
they recover, where these are known (experiments/known_truth)."""
_RESTATED = ("mse", "explained_variance", "dead_features", *(f"probing_accuracy_k{k}" for k in PROBED_LATENTS),
             "code_stability_largest", "code_stability_duplicates_largest", "label_f1_above_floor",
             "label_found_above_floor", "label_purity_above_floor")  # fmt: skip
"""Metrics that repeat another one, in other units or for a part: judged only if primary."""
JUDGED = tuple(name for name in dict.fromkeys([*LABELS, *ALL]) if ALL[name].direction and name not in _RESTATED)
"""Metrics with a verdict, in the order of LABELS."""
Judged = dict[str, Comparison]
"""Metric -> the comparison of one pair of arms."""
Evaluations = Mapping[str, Mapping[str, np.ndarray]]
"""Run id -> contents of evaluation.safetensors: values per test text."""


def label(metric: str) -> str:
    """Return the name of a metric in a sentence."""
    return LABELS.get(metric, metric.replace("_", " "))


def judge(
    pairs: Sequence[Comparison],
    frame: DataFrame,
    searches: Mapping[Cell, CellSearch],
    evaluations: Evaluations,
    primary: Sequence[str],
    margin: float,
    stable: Sequence[Row] = (),
) -> list[Judged]:
    """Compare each of `pairs` (in FVU) in every metric that both arms have, the primary metrics first; `stable` are the
    rows of `stability.stability`.

    There are two families: all pairs in the primary metrics, and all pairs in the others. p is corrected by Holm's
    method within each, so that further metrics do not make it harder to decide the primary ones.
    """
    names = list(dict.fromkeys([*primary, "fvu", *JUDGED]))
    judged: list[Judged] = []
    for pair in pairs:
        found: Judged = {}
        for name in names:
            one = _compared(pair, name, frame, searches, stable, margin)
            if one is not None:
                values = ALL[name].per_text
                known = {run: e[values] for run, e in evaluations.items() if values is not None and values in e}
                found[name] = with_texts(replace(one, margin=margin), known)
        judged.append(found)
    for family in (set(primary), set(names) - set(primary)):
        _correct(judged, family)
    return judged


def _compared(
    pair: Comparison,
    name: str,
    frame: DataFrame,
    searches: Mapping[Cell, CellSearch],
    stable: Sequence[Row],
    margin: float,
) -> Comparison | None:
    """A pair, compared in FVU, in another metric."""
    if name == "fvu":
        return pair
    if name == STABILITY:
        return in_stability(pair, stable, searches, margin)
    return in_metric(pair, ALL[name], frame, searches)


def _correct(judged: Sequence[Judged], family: set[str]) -> None:
    """Holm's correction over the metrics of `family` and all pairs, in place."""
    places = [(i, name) for i, found in enumerate(judged) for name in found if name in family]
    adjusted = statistics.holm([judged[i][name].p for i, name in places])
    for (i, name), p in zip(places, adjusted, strict=True):
        judged[i][name] = replace(judged[i][name], p_pairs=float(p))
