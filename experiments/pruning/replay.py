"""What each pruner would have cost and lost, replayed on the learning curves of a sweep in which nothing was stopped.

python experiments/pruning/replay.py SPEC SWEEP [--orders 50] [--runs-dir DIR]

The pruners are those that `saebench sweep` makes from SPEC; the points of a stratum come one after the other, in many
random orders (two at a time, as in a real sweep, a pruner knows a little less). Prints markdown tables, of all strata
and of each type, and writes replay-SWEEP.csv beside this script.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import optuna
import pandas as pd

import saebench.report
from saebench.plan import Plan, Stratum, make_plan
from saebench.spec import load_spec
from saebench.study.pruners import make_pruner

SHARES = (None, 0.1, 0.25, 0.3, 0.35)
"""Warm-ups as shares of the budget; None: the default."""
SETTINGS: tuple[tuple[str, int], ...] = (("median", 2), ("asha", 3), ("asha", 4), ("asha", 5))
"""Pruner, and its startup_trials or reduction_factor."""
Curve = dict[int, float]


def curves(sweep: str, runs_dir: str | None) -> dict[str, list[Curve]]:
    """{stratum: the learning curve of each complete trial}"""
    report = saebench.report.load(sweep, runs_dir=runs_dir)
    complete = report.frame.loc[report.frame["state"] == "complete", ["run_id", "stratum"]]
    found: dict[str, list[Curve]] = {}
    for (stratum, _), curve in report.curves.merge(complete, on="run_id").groupby(["stratum", "run_id"]):
        found.setdefault(stratum, []).append(dict(zip(curve["samples"], curve["value"], strict=True)))
    return found


def replay(plan: Plan, stratum: Stratum, found: Sequence[Curve]) -> tuple[int, float]:
    """Examples trained on, and the best final value among the trials that came to their end."""
    study, spent, best = optuna.create_study(pruner=make_pruner(plan, stratum)), 0, float("inf")
    for curve in found:
        trial = study.ask()
        for samples, value in sorted(curve.items()):
            trial.report(value, samples)
            if samples < plan.samples and samples >= plan.prune_from(stratum) and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)
            best = min(best, value)
        spent += samples
    return spent, best


def rows(spec: Path, found: dict[str, list[Curve]], orders: int) -> list[dict[str, object]]:
    """A row per setting for all strata together ("all") and for each type."""
    said: list[dict[str, object]] = []
    for pruner, number in SETTINGS:
        for share in SHARES:
            name = "startup_trials" if pruner == "median" else "reduction_factor"
            changes = [f"prune.pruner={pruner}", f"prune.{name}={number}"]
            if share is not None:
                samples = load_spec(spec).train["samples"]
                changes.append(f"prune.warmup={int(share * samples)}")  # type: ignore[operator]
            plan = make_plan(load_spec(spec, changes))
            trials = pd.DataFrame([row for order in range(orders) for row in _sweep(plan, found, order)])
            title = {"pruner": f"{pruner}, {name} {number}", "warm-up": "default" if share is None else f"{share:.0%}"}
            for kind, mine in (("all", trials), *trials.groupby("type")):
                said.append({**title, "type": kind, **_summary(mine)})
    return said


def _sweep(plan: Plan, found: dict[str, list[Curve]], order: int) -> list[dict[str, object]]:
    """A row per stratum, its points in one random order."""
    said: list[dict[str, object]] = []
    for stratum in plan.strata:
        mine = found[stratum.id]
        cost, best = replay(plan, stratum, random.Random(f"{order} {stratum.id}").sample(mine, len(mine)))
        regret = best / min(curve[plan.samples] for curve in mine) - 1
        start = plan.prune_from(stratum) / plan.samples
        share = cost / (plan.samples * len(mine))
        said.append({"order": order, "type": stratum.type, "share": share, "regret": regret, "start": start})
    return said


def _summary(trials: pd.DataFrame) -> dict[str, str]:
    costs, regret = trials.groupby("order")["share"].mean(), trials["regret"]
    return {
        "first verdict at": " or ".join(f"{start:.0%}" for start in sorted(set(trials["start"]))),
        "share of the training": f"{costs.mean():.0%}",
        "10th to 90th percentile": f"{costs.quantile(0.1):.0%} to {costs.quantile(0.9):.0%}",
        "same best point": f"{(regret == 0).mean():.0%}",
        "within 1%": f"{(regret < 0.01).mean():.0%}",
        "regret, mean": f"{regret.mean():.2%}",
        "highest": f"{regret.max():.2%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--runs-dir")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = pd.DataFrame(rows(args.spec, curves(args.sweep, args.runs_dir), args.orders))
    table.to_csv(Path(__file__).parent / f"replay-{Path(args.sweep).name}.csv", index=False)
    for _, mine in table.groupby("type", sort=False):
        lines = [table.columns.tolist(), ["---"] * len(table.columns), *mine.to_numpy().tolist()]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
