"""Why the pruner has stopped a trial, as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saebench.metrics import METRICS

_LABELS = {"fvu": "FVU", "mse": "MSE", "explained_variance": "explained variance"}


def metric_label(key: str) -> str:
    """Return the display name of an objective: FVU for eval/fvu."""
    name = key.rpartition("/")[2]
    return _LABELS.get(name, name.replace("_", " ") if name in METRICS else key)


def stopped_sentence(number: int, samples: int, total: int, verdict: Mapping[str, Any], objective: str) -> str:
    """For example "stopped 0013: FVU 0.656 at 20% of the budget, median of its 5 peers 0.553"."""
    value = verdict.get("value")
    what = f"{metric_label(objective)} {value:.4g}" if isinstance(value, float | int) else metric_label(objective)
    at = f"{100 * samples / total:.0f}% of the budget" if total else f"{samples:,} examples"
    limit = _limit(verdict)
    return f"stopped {number:04d}: {what} at {at}{f', {limit}' * bool(limit)}"


def _limit(verdict: Mapping[str, Any]) -> str:
    """Return what the value was compared with."""
    threshold, peers = verdict.get("threshold"), verdict.get("peers")
    if not isinstance(threshold, float | int):
        return ""
    match verdict.get("pruner"):
        case "median":
            return f"median of its {f'{peers} ' * bool(peers)}peers {threshold:.4g}"
        case "asha" | "hyperband":
            return f"the worst of its {f'{peers} ' * bool(peers)}peers that continue has {threshold:.4g}"
        case "threshold":
            return f"the bound is {threshold:.4g}"
        case "pareto" if verdict.get("rival") is not None:
            l0 = f" and L0 {verdict['rival_l0']:.4g}" if isinstance(verdict.get("rival_l0"), float | int) else ""
            return f"trial {verdict['rival']:04d} does better with fewer latents (limit {threshold:.4g}{l0})"
    return f"limit {threshold:.4g}"
