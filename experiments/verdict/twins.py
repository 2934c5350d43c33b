"""Real sweeps of twins: how often does the product call two equal arms different?

    python experiments/verdict/twins.py [--sweeps 40] [--folder /tmp/twins]

Every sweep draws other points (`search.seed`) and has other seeds. In every other one both arms have the same seeds, as
the product runs them; twins of the same seed are nearly the same run, so in the others the second arm has seeds of
its own. A row per sweep is appended to `twins.csv`, and sweeps that are in it are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import yaml

from saebench.report.statistics import over_seeds
from saebench.runs.paths import SweepPaths
from saebench.runs.state import read_state
from saebench.sweep import run_sweep

HERE = Path(__file__).parent
COLUMNS = ("sweep", "seeds", "difference_percent", "half_percent", "search_error_percent", "verdict", "trainings", "lr")


def arms(root: Path, key: str) -> dict[str, tuple[list[float], dict[str, object], int, float]]:
    """Stratum -> log FVU of the chosen point by seed, what is known of its choice, trainings, its learning rate."""
    states = [state for trial in SweepPaths(root).trials() if (state := read_state(trial)) is not None]
    found = {}
    for stratum in dict.fromkeys(state.stratum for state in states):
        mine = [s for s in states if s.stratum == stratum]
        newest = max(int(s.search.get("saebench.choice", 0)) for s in mine)
        compared = sorted((s for s in mine if s.search.get("saebench.choice") == str(newest)), key=lambda s: s.seed)
        config = json.loads(SweepPaths(root).trial(compared[0].number).config.read_text())
        values = [math.log(s.values[key]) for s in compared]
        found[stratum] = (
            values,
            json.loads(compared[0].search["saebench.search_error"]),
            len(mine),
            config["train"]["lr"],
        )
    return found


def sweep(number: int, folder: Path, own_seeds: bool) -> dict[str, object]:
    """Run one comparison; a row of the table."""
    spec = yaml.safe_load((HERE / "twins.yaml").read_text())
    spec["data"]["dataset"]["data_files"] = str((HERE / spec["data"]["dataset"]["data_files"]).resolve())
    spec["search"]["seed"] = number
    both = spec["sae"]
    found = []
    for part, some in enumerate([both[:1], both[1:]] if own_seeds else [both]):
        first = 1000 * number + 100 * part
        spec |= {"name": f"twins-{number}-{part}", "sae": some, "seeds": [first + i for i in range(4)]}
        result = run_sweep(spec, runs_dir=folder / "runs", cache_dir=folder / "cache", quiet=True)
        found += list(arms(result.root, "test/fvu").values())
    a, b = found
    interval = over_seeds(np.array(a[0]) - np.array(b[0]))
    gaps, edge = [a[1]["gap"], b[1]["gap"]], [*a[1]["edge"], *b[1]["edge"]]  # type: ignore[misc]
    error = math.nan if None in gaps else max(gaps)  # type: ignore[type-var]
    half = float(interval.high - interval.mean)
    said = "edge" if edge else "few" if a[1]["needed"] or b[1]["needed"] or error != error else "undecided"
    if said == "undecided" and abs(float(interval.mean)) > half + error:
        said = "decided"
    return {
        "sweep": number,
        "seeds": "own" if own_seeds else "same",
        "difference_percent": round(100 * float(interval.mean), 3),
        "half_percent": round(100 * half, 3),
        "search_error_percent": round(100 * error, 3),
        "verdict": said,
        "trainings": a[2] + b[2],
        "lr": f"{a[3]:.4f} {b[3]:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/twins"))
    parser.add_argument("--out", type=Path, default=HERE / "twins.csv")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    done = set()
    if given.out.exists():
        with given.out.open(newline="") as file:
            done = {int(row["sweep"]) for row in csv.DictReader(file)}
    for number in range(given.sweeps):
        if number in done:
            continue
        row = sweep(number, given.folder, own_seeds=number % 2 == 1)
        print(row, flush=True)
        fresh = not given.out.exists()
        with given.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
