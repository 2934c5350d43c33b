"""Tables of comparisons: by metric, by pair of arms, by stratum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report.columns import GROUP, LEVEL, WIDTH
from saebench.report.comparison import FVU, Comparison, Stratum
from saebench.report.judge import Judged, label
from saebench.report.table import Column, Row, Table, counted, decimals, make, p_value, short_counts, signed_span
from saebench.report.verdict import sentence, what_would_decide
from saebench.report.wording import difference_text, interval_text, margin_text, percent, value_of

if TYPE_CHECKING:
    from pandas import DataFrame

difference = signed_span("low_percent", "high_percent", "difference_percent")
OUTCOMES = {
    "better": "better",
    "worse": "worse",
    "equal": "equal within {margin}",
    "small": "too little to matter",
    "same": "the same",
    "undecided": "undecided",
    "so far": "so far",
    "not compared": "not compared",
}


def metrics(judged: Sequence[Judged]) -> Table:
    """Return a row per pair of arms and metric: the first arm compared with the second."""
    rows = [_metric_row(c) for found in judged for c in found.values()]
    columns = [
        GROUP, Column("pair", "arms"), Column("metric", "metric", lambda r: label(r["metric"])),
        Column("said", "outcome"), Column("difference", "difference, 95% CI", lambda r: r["difference_text"]),
        Column("p_holm", "p (Holm)", lambda r: p_value(r["p_holm"]), drop=2), Column("seeds", "seeds", drop=3),
        Column("would_decide", "what would decide it", drop=4),
    ]  # fmt: skip
    note = (
        "Of the first arm against the second, at equal L0, over seeds that did not choose, search error included. "
        "Holm's correction is over all pairs in the primary metrics, and over all pairs in the others."
    )
    return make("metrics", "Verdict by metric", rows, columns, note)


def _metric_row(c: Comparison) -> Row:
    interval = f" ({interval_text(c)})" if math.isfinite(c.low) else ""
    return {
        "group": c.group, "pair": f"{c.a} vs {c.b}", "a": c.a, "b": c.b, "metric": c.metric, "outcome": c.outcome,
        "said": OUTCOMES[c.outcome].format(margin=margin_text(c)),
        "difference_text": f"{difference_text(c, c.mean)}{interval}" if math.isfinite(c.mean) else "-",
        "difference": value_of(c, c.mean), "low": min(value_of(c, c.low), value_of(c, c.high)),
        "high": max(value_of(c, c.low), value_of(c, c.high)), "search_error": c.search, "p": c.p, "p_holm": c.p_pairs,
        "seeds": c.seeds, "strata": len(c.strata),
        "would_decide": what_would_decide(c) if c.outcome == "undecided" else "",
    }  # fmt: skip


def verdicts(comparisons: Sequence[Comparison]) -> Table:
    """Return a row per pair of arms: the verdict's numbers."""
    rows = [
        {
            "verdict": sentence(c), "a": c.a, "b": c.b, "group": c.group, "decided": c.decided,
            "difference_percent": percent(c.mean), "low_percent": percent(c.low), "high_percent": percent(c.high),
            "text_low_percent": percent(c.text_low), "text_high_percent": percent(c.text_high), "texts": c.texts,
            "p": c.p, "p_holm_over_pairs": c.p_pairs, "seeds": c.seeds, "seeds_needed": c.needed,
            "strata": len(c.strata), "strata_a_lower": c.lower, "sign_test_p": c.sign_p,
            "interpolated": c.interpolated, "left_out": "; ".join(c.left_out),
        }
        for c in comparisons
    ]  # fmt: skip
    columns = [
        GROUP, Column("a", "arm"), Column("b", "against"),
        Column("difference_percent", "FVU, 95% CI over seeds", difference),
        Column("text_low_percent", "95% over texts", signed_span("text_low_percent", "text_high_percent")),
        Column("p", "p", lambda r: p_value(r["p"])),
        Column("p_holm_over_pairs", "p (Holm, pairs)", lambda r: p_value(r["p_holm_over_pairs"])),
        Column("strata_a_lower", "lower in", lambda r: f"{r['strata_a_lower']} of {r['strata']}"),
        Column("sign_test_p", "sign test p", lambda r: p_value(r["sign_test_p"])), Column("seeds", "seeds"),
        Column("seeds_needed", "seeds needed"), Column("interpolated", "interpolated strata"),
        Column("left_out", "left out"),
    ]  # fmt: skip
    note = "FVU: relative difference of the first arm from the second, mean over strata; below 0 the first is better."
    return make("verdict", "Verdicts in numbers", rows, columns, note)


def arms(frame: DataFrame, comparisons: Sequence[Comparison]) -> Table:
    """A row per pair of arms and stratum: both FVUs at the same L0 and their paired difference."""
    rows = [_side_by_side(frame, c, s) for c in comparisons for s in c.strata]
    columns = [
        GROUP, Column("pair", "arms"), LEVEL, WIDTH, Column("l0", "at L0", decimals("l0", 1), drop=1),
        Column("fvu_a", "FVU first", decimals("fvu_a", 4), drop=3), Column("trials_a", "c/p/f first"),
        Column("fvu_b", "FVU second", decimals("fvu_b", 4), drop=3), Column("trials_b", "c/p/f second"),
        Column("difference_percent", "difference, 95% CI", difference),
        Column("text_low_percent", "95% over texts", signed_span("text_low_percent", "text_high_percent"), drop=4),
        Column("p_holm", "p (Holm)", lambda r: p_value(r["p_holm"]), drop=2), Column("seeds", "seeds"),
        Column("l0_matched", "L0", drop=2),
    ]  # fmt: skip
    note = (
        "Difference: of the first arm's FVU from the second's; below 0 the first is better. Paired over seeds; Holm's "
        "correction is over the strata of a pair. Arms whose L0 differs by more than 5% are interpolated along log L0 "
        "inside their common range, never extrapolated."
    )
    return make("arms", "Arms side by side at equal L0", rows, columns, note)


def _side_by_side(frame: DataFrame, c: Comparison, s: Stratum) -> Row:
    logs = _logs(frame, s)
    row: Row = {"group": c.group, "a": c.a, "b": c.b, "pair": f"{c.a} vs {c.b}", "level_name": s.level_name}
    row |= {"level": s.level, "dict_size": s.dict_size, "l0": s.l0}
    row |= {"fvu_a": math.exp(logs[0]), "fvu_b": math.exp(logs[1])}
    row |= {"difference_percent": percent(s.mean), "low_percent": percent(s.low), "high_percent": percent(s.high)}
    row |= {"text_low_percent": percent(s.text_low), "text_high_percent": percent(s.text_high)}
    row |= {"log_ratio": s.mean, "p": s.p, "p_holm": s.p_holm, "seeds": len(s.pairs)}
    row |= {"l0_difference_percent": percent(s.l0_gap)}
    row["l0_matched"] = f"{'first' if s.base == c.b else 'second'} interpolated" if s.interpolated else "as measured"
    for arm, key in ((c.a, "trials_a"), (c.b, "trials_b")):
        mine = frame[(frame["arm"] == arm) & (frame["group"] == c.group) & (frame["dict_size"] == s.dict_size)]
        level = (s.level_name, s.level) if arm == s.base else s.counterpart
        if level is not None:
            mine = mine[(mine["level_name"] == level[0]) & (mine["level"] == level[1])]
        row[key] = short_counts(counted(mine["state"]))
    return row


def _logs(frame: DataFrame, s: Stratum) -> tuple[float, float]:
    """Mean log FVU of both arms over the pairs: positive weights are the first arm's, negative the second's."""
    fvu = dict(zip(frame["run_id"], frame[FVU], strict=True))
    first = second = 0.0
    for pair in s.pairs.values():
        positive = sum(w * math.log(fvu[run]) for run, w in pair.weights.items() if w > 0)
        first += positive / len(s.pairs)
        second += (positive - pair.difference) / len(s.pairs)
    return first, second
