"""The table of all metrics: direction, how two arms are compared, meaning.

A name here has no prefix. `eval/NAME` is measured on the validation part at every mark, `test/NAME` on the test part at
the end of a trial; `train_sample/fvu` is the FVU on training rows, measured at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimize", "maximize"]
EVAL, TEST, TRAIN_SAMPLE = "eval/", "test/", "train_sample/"
"""Prefixes of keys: validation part, test part, a sample of the training rows."""
FEWEST_TEXTS = 1000
"""Test texts below which the noise of the texts, and every score of neighbours, is large."""


@dataclass(frozen=True)
class Metric:
    """The properties of a metric."""

    name: str
    direction: Direction | None
    """Which direction is better; None: neither."""
    comparison: Literal["ratio", "difference"]
    """How two arms are compared."""
    per_text: str | None
    """Tensor in evaluation.safetensors with one value per test text whose sum or mean makes the metric; None: the
    metric is not a sum over texts."""
    meaning: str
    """Meaning in one line."""
    extra: str | None = None
    """Entry of `eval.metrics` that adds it to the last evaluation; None: every evaluation has it."""
    test_only: bool = False
    """Whether it is measured only once, at the end, on the test part."""


PROBED_LATENTS = (1, 5, 20)
"""Numbers of latents from which a probe predicts a class."""


def _probing() -> list[Metric]:
    scores = {"auc": "Area under the ROC curve", "accuracy": "Balanced accuracy"}
    return [
        Metric(f"probing_{score}_k{k}", "maximize", "difference", None, f"{said} of a probe on {k} latents", "probing")
        for score, said in scores.items()
        for k in PROBED_LATENTS
    ]


def _duplicates() -> list[Metric]:
    entry, shared = "code_stability_duplicates", "active latents that stay active in a text of cosine above 0.95"
    return [
        Metric(entry, "maximize", "difference", None, f"Share of the {shared}; left out where these are few", entry),
        Metric(f"{entry}_largest", "maximize", "difference", None, "The same of the largest eighth", entry),
    ]


def _latents() -> list[Metric]:
    """Scores of interpretability, each minus the best of its floors."""
    found = {
        "coherence": ("NPMI of a latent's words on other texts", "coherence"),
        "example_auroc": ("AUROC of a latent's texts by cosine under a second encoder", "example_auroc"),
        "label_auroc": ("AUROC of the best latent of a class", "label_match"),
        "label_f1": ("F1 of the best latent of a class", "label_match"),
        "label_found": ("Share of classes whose best latent has an AUROC above 0.9", "label_match"),
        "label_purity": ("Share of a class among the ten texts that fire its latent most", "label_match"),
    }
    return [
        Metric(f"{name}_above_floor", "maximize", "difference", None, f"{said}, less the best floor's", entry)
        for name, (said, entry) in found.items()
    ]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in [
        Metric("mse", "minimize", "ratio", "squared_error", "Mean squared error per element"),
        Metric("fvu", "minimize", "ratio", "squared_error", "Squared error over the variance of the part"),
        Metric("explained_variance", "maximize", "difference", "squared_error", "1 - FVU"),
        Metric("cosine", "maximize", "difference", "cosine", "Cosine of text and reconstruction, mean"),
        Metric("cosine_p5", "maximize", "difference", None, "Cosine that 5% of the texts stay below"),
        Metric("l0", None, "difference", "l0", "Latents that fire on a text, mean"),
        Metric("l0_p5", None, "difference", None, "L0 that 5% of the texts stay below"),
        Metric("l0_p95", None, "difference", None, "L0 that 5% of the texts exceed"),
        Metric("dead_features", "minimize", "difference", None, "Latents that fire on no text of the part"),
        Metric("dead_fraction", "minimize", "difference", None, "The same as a share of all latents"),
        Metric(
            "c_dec",
            None,
            "difference",
            None,
            "Mean absolute cosine between decoder rows of latents that fire; random rows have about sqrt(2 / (pi d))",
            test_only=True,
        ),
        Metric("fvu_at", None, "difference", None, "fvu_at/K: FVU with K latents per text", test_only=True),
        Metric("l0_at", None, "difference", None, "l0_at/K: L0 of those", test_only=True),
        Metric(
            "code_stability",
            "maximize",
            "difference",
            None,
            "Share of the active latents that stay active under noise of 0.1 of the embedding's length",
        ),
        Metric(
            "code_stability_largest",
            "maximize",
            "difference",
            None,
            "The same of the largest eighth of a text's active latents",
        ),
        *_duplicates(),
        Metric(
            "knn_overlap_at_10",
            "maximize",
            "difference",
            "knn_overlap_at_10",
            "Share of the ten nearest neighbours that the reconstruction keeps",
            "knn_overlap_at_10",
        ),
        Metric(
            "similarity_rank_correlation",
            "maximize",
            "difference",
            None,
            "Spearman's correlation of the cosines between texts before and after",
            "similarity_rank_correlation",
        ),
        *_probing(),
        *_latents(),
    ]
}


def metric_of(key: str) -> Metric | None:
    """Return the metric of a key such as "test/fvu"; None for an unknown key."""
    prefix, _, name = key.partition("/")
    return METRICS.get(name.partition("/")[0]) if f"{prefix}/" in (EVAL, TEST, TRAIN_SAMPLE) else None


def extra_metrics(entry: str) -> tuple[str, ...]:
    """Names that an entry of `eval.metrics` adds."""
    return tuple(name for name, metric in METRICS.items() if metric.extra == entry)
