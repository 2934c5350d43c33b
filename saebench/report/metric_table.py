"""The metrics that a report judges: those of an evaluation, and those of several seeds together."""

from __future__ import annotations

from saebench.metrics import METRICS, Metric

STABILITY = "seed_stability"
ALL: dict[str, Metric] = {
    **METRICS,
    STABILITY: Metric(STABILITY, "maximize", "difference", None, "Share of latents that another seed finds, too"),
}
"""Name -> metric, for every metric of a comparison."""
