"""Scores of interpretability of every arm and seed of a sweep, beside their floors and the FVU.

    python experiments/latents/scores.py RUNS/SWEEP --second MODEL --out scores-SWEEP.csv [--cache-dir DIR]

A row per trial and score: the SAE's value and that of each floor. `summary.py` makes the tables of README.md of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

from saebench.latents import analyse
from saebench.latents.floors import FLOORS
from saebench.latents.judge import SAE
from saebench.latents.seeds import judged_with_seeds
from saebench.latents.trial import TrainedSAE, open_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache-dir")
    given = parser.parse_args()
    first: dict[str, TrainedSAE] = {}
    for folder in sorted((given.sweep / "trials").iterdir()):
        trial = open_trial(folder)
        first.setdefault(trial.config.point, trial)
    with given.out.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["sweep", "arm", "seed", "fvu", "score", "value", *FLOORS])
        for trial in first.values():
            begin = time.process_time()
            one = analyse(trial, cache_dir=given.cache_dir)
            judged = judged_with_seeds(one, given.second, circular=False, cache_dir=given.cache_dir)
            for mine, result in zip((trial, *one.others), judged, strict=True):
                for score, value in result.values[SAE].items():
                    floors = [f"{result.values[name][score]:.5f}" for name in FLOORS]
                    row = [given.sweep.name, arm(mine), mine.config.seed, fvu(mine), score, f"{value:.5f}", *floors]
                    out.writerow(row)
            file.flush()
            print(
                f"{arm(trial)}: {len(judged)} seeds, {time.process_time() - begin:.0f} s of processor time", flush=True
            )


def arm(trial: TrainedSAE) -> str:
    """The type, and the control where it is one."""
    control = getattr(trial.config.sae, "control", None)
    return trial.config.sae.type + (f", {control}" if control else "")


def fvu(trial: TrainedSAE) -> str:
    """On the test part, as the trial has recorded it last."""
    lines = (trial.folder / "events.jsonl").read_text("utf-8").splitlines()
    values = [json.loads(line).get("values", {}) for line in lines]
    found = [v["test/fvu"] for v in values if "test/fvu" in v]
    return f"{found[-1]:.5f}" if found else ""


if __name__ == "__main__":
    main()
