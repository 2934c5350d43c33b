"""What Optuna costs a sweep: ask, report and tell over 2000 trials in 100 strata, and reopening their journal.

    python experiments/benchmarks/search.py [--sampler tpe] [--strata 100] [--points 20]

Every record of the journal waits for the disk, as it does in a sweep; so the times are those of this disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from saebench.plan import make_plan
from saebench.runs.events import Verdict
from saebench.spec import parse_spec
from saebench.study import Search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--strata", type=int, default=100)
    parser.add_argument("--points", type=int, default=20)
    args = parser.parse_args()
    spec = {
        "name": "benchmark",
        "data": {"model": "none", "dataset": {"path": "none"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": list(range(8, 8 + args.strata)), "dict_size": 1024}],
        "train": {"samples": 20_000, "batch_size": [128, 256], "lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "search": {"sampler": args.sampler, "points": args.points},
    }
    plan = make_plan(parse_spec(spec), 384)
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "optuna.journal"
        search = Search(plan, journal)
        while True:
            begin = time.perf_counter()
            config = search.ask()
            times["ask"].append(time.perf_counter() - begin)
            if config is None:
                break
            level, state = 1 / getattr(config.sae, "k", 1) + (config.train.lr or 0), "complete"
            for mark in plan.marks():
                begin = time.perf_counter()
                decision = search.report(config.number, mark, {"eval/fvu": level + 1 / mark})
                times["report"].append(time.perf_counter() - begin)
                if decision.verdict == Verdict.PRUNE:
                    state = "pruned"
                    break
            begin = time.perf_counter()
            search.tell(config.number, state, {"eval/fvu": level})
            times["tell"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        counts = Search(plan, journal).counts()
        reopened, size = time.perf_counter() - begin, journal.stat().st_size / 1e6
    print(f"{args.sampler}: {counts}")
    for name, seconds in times.items():
        tenth = max(1, len(seconds) // 10)
        first, last = (1e3 * statistics.median(part) for part in (seconds[:tenth], seconds[-tenth:]))
        print(f"{name:6} {first:6.1f} ms in the first tenth, {last:6.1f} ms in the last (medians)")
    print(f"reopen {reopened:6.2f} s, journal of {size:.1f} MB")


if __name__ == "__main__":
    main()
