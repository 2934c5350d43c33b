"""What each pruner would have cost and lost, replayed on the learning curves of a sweep in which nothing was stopped.

python experiments/pruning/replay.py SPEC SWEEP [--orders 50] [--runs-dir DIR]

The pruners are those that `saebench sweep` makes from SPEC; the points of a stratum come one after the other, in many
random orders (two at a time, as in a real sweep, a pruner knows a little less). Prints a markdown table and writes
replay-SWEEP.csv beside this script.
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

SHARES = (0.1, 0.15, 0.2, 0.25, 0.35)
SETTINGS: tuple[tuple[str, int], ...] = (("median", 1), ("median", 2), ("median", 4), ("asha", 2), ("asha", 3))
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
    said = []
    for pruner, number in SETTINGS:
        for share in SHARES:
            name = "startup_trials" if pruner == "median" else "reduction_factor"
            base = load_spec(spec)
            warmup = int(share * base.train["samples"])  # type: ignore[arg-type, operator]
            plan = make_plan(
                load_spec(spec, [f"prune.pruner={pruner}", f"prune.{name}={number}", f"prune.warmup={warmup}"])
            )
            costs, regrets, starts = [], [], set()
            for order in range(orders):
                spent = whole = 0
                for stratum in plan.strata:
                    mine = found[stratum.id]
                    shuffled = random.Random(f"{order} {stratum.id}").sample(mine, len(mine))
                    cost, best = replay(plan, stratum, shuffled)
                    spent, whole = spent + cost, whole + plan.samples * len(mine)
                    regrets.append(best / min(curve[plan.samples] for curve in mine) - 1)
                    starts.add(plan.prune_from(stratum) / plan.samples)
                costs.append(spent / whole)
            regret = pd.Series(regrets)
            said.append(
                {
                    "pruner": f"{pruner}, {name} {number}",
                    "warm-up": f"{share:.0%}",
                    "first verdict at": " or ".join(f"{start:.0%}" for start in sorted(starts)),
                    "share of the training": f"{pd.Series(costs).mean():.0%}",
                    "same best point": f"{(regret == 0).mean():.0%}",
                    "regret, mean": f"{regret.mean():.2%}",
                    "95th percentile": f"{regret.quantile(0.95):.2%}",
                    "highest": f"{regret.max():.2%}",
                }
            )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--runs-dir")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = pd.DataFrame(rows(args.spec, curves(args.sweep, args.runs_dir), args.orders))
    table.to_csv(Path(__file__).parent / f"replay-{args.sweep}.csv", index=False)
    lines = [table.columns.tolist(), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
