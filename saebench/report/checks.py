"""Checks before you use an SAE: problems that the verdict does not show, each with advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench.metrics import FEWEST_TEXTS
from saebench.report import statistics
from saebench.report.comparison import LEVEL
from saebench.report.controls import is_control
from saebench.report.floors import beaten, who
from saebench.report.points import FINAL, cells, usable
from saebench.report.table import number_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report

MOST_DEAD, MOST_OFF = 0.10, 0.05
MEMORY = 1.10
"""Ratio of test FVU to FVU on training rows above which an SAE memorises."""
MOST_NEAR = 0.05
"""Share of test texts with a near-duplicate in training above which scores partly measure memory."""
LAST = 0.9
"""Share of the run before which the minimum of a curve is early."""


@dataclass(frozen=True)
class Check:
    """The result of one check. `passed` is None if it cannot be decided."""

    name: str
    passed: bool | None
    found: str
    """What was measured."""
    advice: str = ""
    """What to do if it failed."""

    @property
    def text(self) -> str:
        """The check in one line, with the advice if it failed."""
        return f"{self.name}: {self.found}{f'. {self.advice}' if self.passed is False and self.advice else ''}"


def checks(report: Report) -> list[Check]:
    """Return all checks that the data allow, failed ones first."""
    found = [check for make in _CHECKS for check in make(report)]
    return sorted(found, key=lambda check: {False: 0, None: 1, True: 2}[check.passed])


def _finished(report: Report) -> Iterator[Check]:
    left = report.progress
    yield Check("trials", not left, left or "all have ended", "Run the same command to resume; decide nothing before")


def _edges(report: Report) -> Iterator[Check]:
    at = sorted({f"{s.arm}: {name}" for s in report.searches.values() for name in s.edge})
    if report.searches:
        said = f"the best point lies at the edge of its range ({_few(at)})" if at else "best points lie inside"
        yield Check("ranges", not at, said, "Widen the range, and run again")


def _search(report: Report) -> Iterator[Check]:
    if not report.searches:
        if (report.frame["role"] == "").all() and len(report.frame) and report.searched:
            yield Check(
                "search",
                None,
                "recorded before one seed was reserved for the search: the interval ignores the luck of the search",
            )
        return
    needed = [s.needed for s in report.searches.values() if s.needed]
    unknown = any(math.isinf(s.gap) for s in report.searches.values())
    said = "too few points to know the best setting" if unknown or needed else "the best settings are located"
    wanted = f"Set search.points to about {max(needed)}" if needed else "Draw more points (search.points)"
    yield Check("search", not (unknown or needed), said, wanted)


def _memory(report: Report) -> Iterator[Check]:
    best, key = _own(report.chosen), "train_sample/fvu"
    if key in best.columns and best[key].notna().any():
        ratio = (best[f"{FINAL}fvu"] / best[key].astype(float)).groupby(best["arm"]).mean().dropna()
        if len(ratio):
            said = f"test FVU is {ratio.max():.2f} times that of training rows ({ratio.idxmax()})"
            yield Check("memory", bool(ratio.max() <= MEMORY), said, "Train on more texts, or a smaller dictionary")
    early = _early(report)
    if early is not None:
        share, of = early
        said = f"the best value came before the last tenth in {share} of {of} trials"
        yield Check("curves", share * 2 <= of, said, "Train for fewer examples, on more texts, or lower lr")


def _early(report: Report) -> tuple[int, int] | None:
    """(trials whose objective was best before the last tenth of the run, trials with a curve), of the chosen ones."""
    curves = report.chosen_curves
    early = of = 0
    for _, curve in curves.groupby("run_id"):
        if len(curve) >= 5:
            values = curve["value"].to_numpy(dtype=float)
            samples = curve["samples"].to_numpy(dtype=float)
            best = int(values.argmax() if report.record.maximize else values.argmin())
            of += 1
            early += bool(samples[best] < LAST * samples.max())
    return (early, of) if of else None


def _dead(report: Report) -> Iterator[Check]:
    own = _own(report.chosen)
    dead = own.loc[usable(own, f"{FINAL}dead_fraction")]
    if len(dead):
        by_arm = dead.groupby("arm")[f"{FINAL}dead_fraction"].max()
        said = f"up to {100 * by_arm.max():.0f}% fire on no test text ({by_arm.idxmax()})"
        advice = "Revive them (aux_coeff), use a smaller dictionary, or more test texts if few fire at all"
        yield Check("dead latents", bool(by_arm.max() <= MOST_DEAD), said, advice)


def _probing(report: Report) -> Iterator[Check]:
    ours, theirs = f"{FINAL}probing_auc_k5", f"{FINAL}probing_auc_k5_pca"
    best = _own(report.chosen)
    if not {ours, theirs} <= set(best.columns):
        return
    both = best[best[ours].notna() & best[theirs].notna()]
    if len(both):
        outcomes = {str(arm): _against(rows, ours, theirs) for arm, rows in both.groupby("arm", sort=False)}
        worse = [arm for arm, outcome in outcomes.items() if outcome is False]
        open_ = [arm for arm, outcome in outcomes.items() if outcome is None]
        low = both.groupby("arm")[ours].mean().min()
        said = f"AUC on 5 latents {low:.3f} at least, on 5 principal components {both[theirs].mean():.3f}"
        said += f" (worse: {_few(worse)})" if worse else ""
        said += f" (not told apart: {_few(open_)})" if open_ else ""
        passed = False if worse else None if open_ else True
        yield Check(
            "classes",
            passed,
            said,
            "Few latents do not represent these classes: look at their texts before you use them",
        )


def _against(rows: DataFrame, ours: str, theirs: str) -> bool | None:
    """Return whether `ours` is better than `theirs`, by the interval over seeds; None if it does not decide."""
    table = (rows[ours] - rows[theirs]).groupby([rows["seed"], rows["stratum"]]).mean().unstack()
    interval = statistics.over_strata(table.to_numpy(dtype=float))
    if not float(interval.p) <= LEVEL:
        return None
    return bool(interval.mean > 0)


def _stability(report: Report) -> Iterator[Check]:
    frame = _own(report.quick_stability.frame)
    if not len(frame) or "same_share" not in frame.columns:
        return
    lost = 1 - frame.groupby("arm")["same_share"].mean()
    chance = _chance(float(frame["dict_size"].iloc[0]), report)
    said = f"{100 * lost.max():.0f}% of latents are found by no other seed ({lost.idxmax()})"
    said += f"; at random {100 * chance:.0f}%" if chance is not None else ""
    yield Check("stability", bool(lost.max() <= 0.5), said, "Use only latents that several seeds find, or train longer")


def _chance(width: float, report: Report) -> float | None:
    """Share of random directions that no random direction of another dictionary matches above 0.7: one minus the chance
    that the nearest of `width` lies above it, by the beta law of a cosine in d dimensions."""
    from scipy import stats

    if "d_in" not in report.frame.columns or report.frame["d_in"].isna().all():
        return None
    d = float(report.frame["d_in"].dropna().iloc[0])
    beyond = stats.beta.sf(0.7**2, 0.5, (d - 1) / 2) / 2
    return float((1 - beyond) ** width)


def _texts(report: Report) -> Iterator[Check]:
    key = f"{FINAL}examples"
    if key in report.chosen.columns and report.chosen[key].notna().any():
        few = int(report.chosen[key].min())
        said = f"{few:,} test texts"
        yield Check(
            "test texts", few >= FEWEST_TEXTS, said, f"Take {FEWEST_TEXTS:,} or more (num_examples, holdout.test)"
        )
    if len(report.chosen) and not report.tested:
        said = "the sweep has no test part: validation texts chose the points and judge them"
        yield Check(
            "parts",
            False,
            said,
            "Run it again with this version for a verdict on texts that were not used for any choice",
        )


def _leaks(report: Report) -> Iterator[Check]:
    """Check for test texts with a (near-)duplicate in training."""
    for source in report.record.sources:
        data = source.lock.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("near_test_of"), int) or not data["near_test_of"]:
            continue
        near, of, above = data.get("near_test") or 0, data["near_test_of"], data.get("near_above")
        equal = data.get("equal_test") or 0
        said = f"{near:,} of {of:,} test texts have a training text at a cosine above {above}; {equal:,} equal one"
        yield Check("leak", bool(near <= MOST_NEAR * of), said, f"Set data.deduplicate: {above}")


def _sparsity(report: Report) -> Iterator[Check]:
    own = _own(report.chosen)
    best = own[own["level"].notna() & own["level_name"].isin(["k", "target_l0"])]
    best = best[usable(best, f"{FINAL}l0")]
    if len(best):
        off = (best[f"{FINAL}l0"] / best["level"] - 1).abs().groupby(best["arm"]).max()
        said = f"measured L0 is up to {100 * off.max():.0f}% off its target ({off.idxmax()})"
        if bool(off.max() <= MOST_OFF):
            said = "measured L0 is within 5% of its target"
        advice = "Give the controller more examples, or compare at measured L0 only"
        yield Check("sparsity", bool(off.max() <= MOST_OFF), said, advice)


def _budgets(report: Report) -> Iterator[Check]:
    frame = report.frame
    points = [trials["point"].nunique() for _, trials in cells(frame[frame["role"] != "compare"])]
    samples = frame["samples"].dropna().nunique() if "samples" in frame.columns else 1
    if samples > 1:
        yield Check("budgets", False, "arms were trained on unequal numbers of examples", "Compare at one budget")
    elif points and max(points) > min(points) and not report.searches:
        said = f"strata have {min(points)} to {max(points)} points to choose from"
        yield Check(
            "budgets", False, said, "Give every stratum the same number of points: the best of more points is luckier"
        )
    elif points:
        yield Check("budgets", True, "equal")


def _failed(report: Report) -> Iterator[Check]:
    failed = int((report.frame["state"] == "failed").sum())
    said = f"{number_of(failed, 'trial')} failed" if failed else "no trial failed"
    yield Check("failures", not failed, said, "See --table lost; saebench retry")


def _floors(report: Report) -> Iterator[Check]:
    """Check that every arm is better than all floors in FVU."""
    if report.progress or not report.tested or not len(report.chosen):
        return
    found = {arm: counts["fvu"] for arm, counts in beaten(report.floors, report.frame, report.chosen).items()
             if "fvu" in counts and not is_control(arm)}  # fmt: skip
    if not found:
        yield Check("floors", None, "none were measured at these sizes")
        return
    passed = all(above == of for above, of in found.values())
    said = (
        f"{'' if passed else 'not everywhere '}certainly better than every score without training, in FVU: {who(found)}"
    )
    advice = "An untrained dictionary reconstructs as well: use these SAEs only for the meaning of their latents"
    yield Check("floors", passed, said, advice)


_CHECKS: tuple[Callable[[Report], Iterator[Check]], ...] = (
    _finished, _edges, _search, _memory, _stability, _probing, _dead, _texts, _leaks, _sparsity, _budgets, _failed,
    _floors,
)  # fmt: skip


def _own(rows: DataFrame) -> DataFrame:
    """Return the rows of all arms but controls; of controls if there is nothing else."""
    own = rows[[not is_control(str(arm)) for arm in rows["arm"]]] if "arm" in rows.columns else rows
    return own if len(own) else rows


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
