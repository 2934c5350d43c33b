"""Real sweeps of twins: how often does the product call two equal arms different?

    python experiments/verdict/twins.py [--sweeps 40] [--folder /tmp/twins]

Every sweep draws other points (`search.seed`) and has other seeds. In every other one the second arm has seeds of its
own, since twins of the same seed are nearly the same run: the two arms are then two sweeps, whose seeds are paired by
their order. Half of either kind has three levels of sparsity, the rest one. The verdict is that of `saebench.report`,
in every metric. A row per sweep is appended to `twins.csv`, and sweeps that are in it are not run again.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import time
from pathlib import Path
from unittest import mock

import yaml

from saebench.report import Report, load
from saebench.sweep import run_sweep

HERE = Path(__file__).parent
LEVELS = ([16], [8, 16, 32])
CALLED = ("better", "worse", "small")
"""Outcomes that call arms different; "small" says so and adds that it does not matter."""


def order(sweeps: int) -> list[int]:
    """Numbers of sweeps, those whose arms have their own seeds first: the others are nearly bound to be the same."""
    return [*range(1, sweeps, 2), *range(0, sweeps, 2)]


def sweep(number: int, folder: Path) -> dict[str, object]:
    """Run one comparison; a row of the table."""
    own, levels = number % 2 == 1, LEVELS[number // 2 % 2]
    spec = yaml.safe_load((HERE / "twins.yaml").read_text())
    spec["data"]["dataset"]["data_files"] = str((HERE / spec["data"]["dataset"]["data_files"]).resolve())
    spec["search"]["seed"] = number
    arms = [arm | {"k": levels} for arm in spec["sae"]]
    begun, runs = time.process_time(), folder / f"runs-{number}"
    names = []
    for part, some in enumerate([arms[:1], arms[1:]] if own else [arms]):
        first = 1000 * number + 100 * part
        names.append(f"twins-{number}-{part}")
        tracking = spec.get("tracking", {}) | {"uri": f"sqlite:///{runs / 'mlflow.db'}"}
        runs.mkdir(parents=True, exist_ok=True)
        spec |= {"name": names[-1], "sae": some, "seeds": [first + i for i in range(4)], "tracking": tracking}
        with mock.patch("saebench.report.publish.publish"):  # the report is read once, below
            run_sweep(spec, runs_dir=runs, cache_dir=folder / "cache", quiet=True)
    found = load(*names, runs_dir=runs, tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    found.record.frame["seed"] %= 100
    row = {"sweep": number, "seeds": "own" if own else "same", "levels": len(levels)}
    row |= judged(Report(found.record)) | {"cpu_seconds": round(time.process_time() - begun)}
    shutil.rmtree(runs)
    return row


def judged(report: Report) -> dict[str, object]:
    """What the report says of its one pair of arms."""
    (found,) = report.judged
    fvu = found["fvu"]
    tested = [(s.low, s.high, s.p, s.p_holm) for s in fvu.strata]
    far = [math.isfinite(low) and low * high > 0 for low, high, _, _ in tested]
    return {
        "verdict": fvu.outcome,
        "edge": len(fvu.edge),
        "few": fvu.points or 0,
        "difference_percent": round(100 * fvu.mean, 3),
        "half_percent": round(100 * (fvu.high - fvu.low) / 2, 3),
        "search_error_percent": round(100 * fvu.search, 3),
        "levels_p05": sum(out and p <= 0.05 for out, (_, _, p, _) in zip(far, tested, strict=True)),
        "levels_holm": sum(out and p <= 0.05 for out, (_, _, _, p) in zip(far, tested, strict=True)),
        "metrics": len(found),
        "metrics_called": " ".join(name for name, one in found.items() if one.outcome in CALLED),
        "metrics_equal": sum(one.outcome in ("equal", "same") for one in found.values()),
        "trainings": len(report.frame),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/twins"))
    parser.add_argument("--out", type=Path, default=HERE / "twins.csv")
    given = parser.parse_args()
    done = set()
    if given.out.exists():
        with given.out.open(newline="") as file:
            done = {int(row["sweep"]) for row in csv.DictReader(file)}
    for number in order(given.sweeps):
        if number in done:
            continue
        row = sweep(number, given.folder)
        print(row, flush=True)
        fresh = not given.out.exists()
        with given.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
