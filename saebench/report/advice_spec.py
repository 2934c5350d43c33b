"""The spec of the next sweep: this sweep's, with the levels and widths of the advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saebench.report.advice import Advice


def next_levels(levels: Sequence[float], advice: Advice) -> list[float]:
    """The levels that the next sweep would search: three inside the advised range, or beyond the end at which stability
    still rises; all levels if there is no advice."""
    known = sorted(set(levels))
    if advice.l0 is not None:
        low, high = advice.l0
        return sorted({float(max(1, round(low * (high / low) ** share))) for share in (0, 0.5, 1)})
    if advice.extend == "higher":
        return [known[-1], 2 * known[-1], 4 * known[-1]]
    if advice.extend == "lower":
        return sorted({max(1.0, float(round(known[0] / factor))) for factor in (4, 2, 1)})
    return known


def next_spec(spec: Mapping[str, Any], advice: Advice) -> dict[str, Any]:
    """A spec for the next sweep from the resolved one of this sweep (lock.json): the same data, arms and budget, with
    the levels and widths of the advice. A control keeps its arm."""
    arms = [_next_arm(arm, advice) for arm in spec.get("sae", [])]
    search = {key: value for key, value in spec["search"].items() if key in ("sampler", "strata", "points", "objective")
              and value is not None}  # fmt: skip
    return {
        "name": f"{spec['name']}-next",
        "description": "The range that the advice on " + spec["name"] + " leaves.",
        "data": _data(spec["data"]),
        "sae": arms,
        "train": dict(spec["train"]),
        "seeds": list(spec["seeds"]),
        "search": search,
        "prune": {"pruner": spec["prune"]["pruner"]},
        "eval": {key: spec["eval"][key] for key in ("metrics", "primary") if spec["eval"].get(key)},
    }


def _next_arm(arm: Mapping[str, Any], advice: Advice) -> dict[str, Any]:
    params = {name: value for name, value in arm.items() if name != "type"}
    for name in ("k", "target_l0"):
        levels = params.get(name)
        if isinstance(levels, list | tuple) and all(isinstance(v, int | float) for v in levels):
            fewest = [round(v) if float(v).is_integer() else v for v in next_levels([float(v) for v in levels], advice)]
            width = params.get("dict_size")
            params[name] = [v for v in fewest if not isinstance(width, int) or v < width]
    widths = params.get("dict_size")
    if isinstance(widths, list | tuple):
        kept = [w for w in widths if w not in advice.widths_to_drop]
        params["dict_size"] = kept or list(widths)
    return {"type": arm["type"], **params}


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section without null values and without the names derived from precomputed embeddings."""
    kept = {key: value for key, value in data.items() if value is not None}
    if "embeddings" in kept:
        return {key: kept[key] for key in ("embeddings", "texts", "ids", "labels", "holdout") if key in kept}
    kept["dataset"] = {key: value for key, value in kept["dataset"].items() if value is not None}
    return kept
