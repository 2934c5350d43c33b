"""Sweeps with a known truth, and an MLflow store that holds them exactly as the tracker writes it."""

from __future__ import annotations

import json
import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sae_examples import K_SPARSE
from safetensors.numpy import save_file

SAMPLES = 100_000
D_IN = 384
START = 1_750_000_000_000


def simulate(
    arms=None,
    levels=(16, 32, 64),
    widths=(1536, 3072),
    seeds=(0, 1, 2),
    points=2,
    seed_sd=0.01,
    cell_sd=0.005,
    rng_seed=0,
    name="demo",
):
    """Trials as dicts. `arms` maps a type to the factor of its FVU over 2.4 * L0^-0.35 * (width / 1536)^-0.15.

    The first point of a stratum is the better one and has every seed; the others have the first seed alone and are
    pruned, but for the second, which is complete. A seed's effect is shared by the arms and strata of that seed up to
    `seed_sd` per arm, plus `cell_sd` per trial.
    """
    arms = arms or {"topk": 1.0, "batchtopk": 0.95}
    rng = np.random.default_rng(rng_seed)
    trials = []
    for kind, factor in arms.items():
        shift = {seed: rng.normal(0, seed_sd) for seed in seeds}
        for level in levels:
            for width in widths:
                for point in range(points):
                    for seed in seeds if point == 0 else seeds[:1]:
                        noise = shift[seed] + rng.normal(0, cell_sd)
                        fvu = factor * 2.4 * level**-0.35 * (width / 1536) ** -0.15 * np.exp(noise) * 1.08**point / 2
                        state = "complete" if point < 2 else "pruned"
                        trials.append(_trial(name, len(trials), kind, level, width, point, seed, float(fvu), state))
    return trials


def _trial(sweep, number, kind, level, width, point, seed, fvu, state):
    sparsity = "k" if kind in K_SPARSE else "target_l0"
    params = {
        "type": kind,
        sparsity: level,
        "dict_size": width,
        "preprocess": "center_scale",
        "lr": 3e-4 * 2**point,
        "batch_size": 2048,
        "samples": SAMPLES,
        "seed": seed,
        "d_in": D_IN,
        "data.model": "sentence-transformers/all-MiniLM-L6-v2",
        "data.dataset": "parquet",
        "data.num_examples": 20000,
    }
    marks = [SAMPLES // 4, SAMPLES // 2, SAMPLES] if state == "complete" else [SAMPLES // 4]
    curve = {mark: fvu * (1 + 0.5 * (SAMPLES - mark) / SAMPLES) for mark in marks}
    dead = 0.02 * width / 1536
    last = curve[marks[-1]]
    metrics = {
        "eval/fvu": last,
        "eval/mse": last / D_IN,
        "eval/explained_variance": 1 - last,
        "eval/l0": float(level),
        "eval/l0_p5": float(level) * 0.8,
        "eval/l0_p95": float(level) * 1.2,
        "eval/dead_features": round(dead * width),
        "eval/dead_fraction": dead,
        "eval/cosine": 1 - last / 2,
        "eval/examples": 2000.0,
    }
    return {
        "sweep": sweep,
        "trial": number,
        "stratum": f"{kind}-{sparsity}{level}-n{width}",
        "point": f"p{point}",
        "seed": seed,
        "type": kind,
        "state": state,
        "reason": "" if state == "complete" else "median: eval/fvu 0.61 worse than 0.52",
        "verdict": {}
        if state == "complete"
        else {"value": 0.61, "threshold": 0.52, "rung": SAMPLES // 4, "peers": 3, "pruner": "median"},
        "params": params,
        "metrics": metrics,
        "curve": curve,
    }


def simulate_search(arms=None, levels=(16, 32), widths=(1536,), seeds=(1, 2, 3), points=8, noise=0.002, rng_seed=0,
                    name="demo", about=None, extra=True, examples=2000.0):  # fmt: skip
    """A sweep as it is run now: seed 0 tries `points` learning rates in every stratum, the other seeds measure the
    best; `test/...` at the end of every trial. `arms` maps a label, a type or "type/control", to its factor of FVU;
    `about` is the record of the search, by default a gap of 0.05% inside the range."""
    rng = np.random.default_rng(rng_seed)
    trials = []
    for label, factor in (arms or {"topk": 1.0, "batchtopk": 0.97}).items():
        kind, _, control = label.partition("/")
        for level in levels:
            for width in widths:
                shift = {seed: rng.normal(0, noise) for seed in (0, *seeds)}
                offsets = np.linspace(-1.6, 1.7, points)
                base = factor * 1.2 * level**-0.35 * (width / 1536) ** -0.15
                losses = [0.07 * x**2 + shift[0] + rng.normal(0, noise) for x in offsets]
                best = int(np.argmin(losses))
                made = [(point, 0, loss) for point, loss in enumerate(losses)]
                made += [(best, s, 0.07 * offsets[best] ** 2 + shift[s] + rng.normal(0, noise)) for s in seeds]
                for point, seed, loss in made:
                    fvu = float(base * np.exp(loss))
                    trial = _trial(name, len(trials), kind, level, width, point, seed, fvu, "complete")
                    trials.append(_searched(trial, control, factor, seed, about, extra, examples, rng))
    return trials


def _searched(trial, control, factor, seed, about, extra, examples, rng):
    """The trial with its role, its test metrics and, of those that compare, the record of the search."""
    metrics = trial["metrics"]
    if extra:
        metrics["eval/knn_overlap_at_10"] = 0.5 / factor + rng.normal(0, 0.002)
        for k in (1, 5, 20):
            metrics[f"eval/probing_auc_k{k}"] = 0.6 + 0.02 * k**0.5 + rng.normal(0, 0.004)
            metrics[f"eval/probing_auc_k{k}_pca"] = 0.7
    metrics["eval/examples"] = examples
    tested = {
        key.replace("eval/", "test/"): value * (1.01 if key == "eval/fvu" else 1) for key, value in metrics.items()
    }
    metrics |= tested | {"train_sample/fvu": 0.98 * metrics["eval/fvu"]}
    params = {**trial["params"], "lr": 3e-3 * float(np.exp(int(trial["point"][1:]) * 0.3))}
    if control:
        trial["stratum"] += f"-{control}"
        params["control"] = control
    record = {"gap": 0.0005, "edge": [], "needed": None, "drawn": 8, "refined": 0, "searched": {"lr": [1e-3, 3e-2]}}
    own = (
        {"role": "search"}
        if seed == 0
        else {"role": "compare", "choice": "1", "search_error": {**record, **(about or {})}}
    )
    return {**trial, "metrics": metrics, "params": params, **own}


def with_state(trial, state, reason=""):
    """A copy that ended otherwise; a failed trial has no metrics."""
    metrics = {} if state == "failed" else trial["metrics"]
    return {**trial, "state": state, "reason": reason, "metrics": metrics, "verdict": {}}


def frame_of(trials):
    """The DataFrame that reading these trials from MLflow gives, without MLflow."""
    from saebench.report.rows import to_frame

    return to_frame([_row(t) for t in trials])


def _row(trial):
    from saebench.report.rows import row_of

    return row_of(run_id=f"{trial['trial']:032x}", tags=_tags(trial, "0" * 32), params=_texts(trial["params"]),
                  metrics=trial["metrics"], start=START, end=START + 60_000)  # fmt: skip


def _texts(params):
    return {key: str(value) for key, value in params.items()}


def _tags(trial, parent):
    tags = {
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"{trial['trial']:04d}",
        "saebench.kind": "trial",
        "saebench.sweep": trial["sweep"],
        "saebench.trial": f"{trial['trial']:04d}",
        "saebench.stratum": trial["stratum"],
        "saebench.point": trial["point"],
        "saebench.seed": str(trial["seed"]),
        "saebench.type": trial["type"],
        "saebench.state": trial["state"],
        "saebench.attempt": "1",
    }
    tags |= {f"saebench.{key}": trial[key] for key in ("role", "choice") if trial.get(key)}
    if trial.get("search_error"):
        tags["saebench.search_error"] = json.dumps(trial["search_error"])
    if trial["reason"]:
        tags["saebench.reason"] = trial["reason"]
    if trial["verdict"]:
        tags["saebench.verdict"] = json.dumps(trial["verdict"])
    return tags


STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "running": "RUNNING", "interrupted": "KILLED"}


def database(path: Path) -> str:
    """A fresh sqlite tracking store with MLflow's schema; returns its URI."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{path}"
    MlflowClient(tracking_uri=uri).search_experiments()
    return uri


@dataclass(frozen=True)
class Store:
    """A tracking store, and the folder with the sweeps' directories."""

    uri: str
    runs: Path
    trials: list


def make_store(root: Path) -> Store:
    trials = simulate(arms={"topk": 1.0, "batchtopk": 0.96, "jumprelu": 1.02}, points=3)
    trials[4] = with_state(trials[4], "failed", "cuda_oom: out of memory & <more>")
    uri = log_many(root / "mlflow.db", trials, root / "runs", evaluations=True)
    return Store(uri, root / "runs", trials)


def log_sweep(uri, trials, runs: Path, artifacts: Path, *, evaluations=True, parent_status="FINISHED"):
    """Write a sweep through MLflow's client as the tracker does, and its directory with tracking.json and lock.json."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client, name = MlflowClient(tracking_uri=uri), trials[0]["sweep"] if trials else "empty"
    experiment = client.create_experiment(name, artifact_location=artifacts.as_uri())
    tags = {"saebench.kind": "sweep", "saebench.sweep": name, "saebench.version": "0.1.0"}
    parent = client.create_run(experiment, run_name=name, tags=tags)
    for trial in trials:
        run = client.create_run(experiment, tags=_tags(trial, parent.info.run_id), start_time=START)
        metrics = [
            Metric(key, value, START + 60_000, SAMPLES) for key, value in trial["metrics"].items() if key != "eval/fvu"
        ]
        if trial["metrics"]:
            metrics += [Metric("eval/fvu", value, START + step, step) for step, value in trial["curve"].items()]
        params = [Param(key, value) for key, value in _texts(trial["params"]).items()]
        client.log_batch(run.info.run_id, metrics, params, [RunTag("mlflow.user", "someone")])
        if evaluations and trial["state"] == "complete":
            folder = runs / name / "trials" / f"{trial['trial']:04d}"
            write_evaluation(folder / "evaluation.safetensors", trial)
            client.log_artifact(run.info.run_id, str(folder / "evaluation.safetensors"))
        if trial["state"] != "running":
            client.set_terminated(run.info.run_id, STATUS[trial["state"]], end_time=START + 60_000)
    if parent_status != "RUNNING":
        client.set_terminated(parent.info.run_id, parent_status)
    write_directory(runs / name, uri, experiment, parent.info.run_id)
    return parent.info.run_id


def write_directory(root: Path, uri, experiment, run_id):
    root.mkdir(parents=True, exist_ok=True)
    where = {"uri": uri, "experiment_id": experiment, "run_id": run_id}
    (root / "tracking.json").write_text(json.dumps({**where, "trials": {}}))
    search = {"objective": "eval/fvu", "direction": "minimize", "sampler": "random"}
    (root / "lock.json").write_text(json.dumps({"name": root.name, "spec": {"search": search}, "tracking": where}))


def write_evaluation(path: Path, trial, texts=400):
    """Errors whose sum is the trial's FVU times a variance common to all, with the same hard texts in every trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hard = np.random.default_rng(7).gamma(4, 1, texts)
    rng = np.random.default_rng(trial["trial"])
    error = hard * rng.gamma(50, 1 / 50, texts)
    error *= trial["metrics"]["eval/fvu"] * texts / error.sum()
    width, level = trial["params"]["dict_size"], trial["metrics"].get("eval/l0", 16)
    firing = np.clip(rng.lognormal(np.log(texts * level / width), 1, width), 0, texts).astype(np.int64)
    firing[: round(width * trial["metrics"]["eval/dead_fraction"])] = 0
    l0 = np.full(texts, int(level)) if trial["type"] == "topk" else rng.poisson(level, texts)
    tensors = {"squared_error": error.astype(np.float32), "l0": l0.astype(np.int32), "firing": firing}
    save_file(tensors, path)


def log_many(path: Path, trials, runs: Path, *, points=None, keys=None, evaluations=False) -> str:
    """Writes what `log_sweep` writes into the tables of a new store directly: thousands of trials in seconds.
    `points` given: that many of every metric, else the trial's own curve; `keys`: so many metrics."""
    uri, name = database(path), trials[0]["sweep"]
    parent, experiment, place = uuid.uuid4().hex, 77, f"file://{path.parent}/artifacts"
    runs_of = {parent: None} | {uuid.uuid4().hex: trial for trial in trials}
    rows = {table: [] for table in COLUMNS}
    rows["experiments"].append((experiment, name, place, "active"))
    for run, trial in runs_of.items():
        tags = _tags(trial, parent) if trial else {"saebench.kind": "sweep", "saebench.sweep": name}
        status = STATUS[trial["state"]] if trial else "FINISHED"
        times = (START, START + 60_000)
        rows["runs"].append((run, run[:8], "LOCAL", "", "", "u", status, *times, "", "active",
                             f"{place}/{run}/artifacts", experiment))  # fmt: skip
        rows["tags"] += [(key, value, run) for key, value in tags.items()]
        if trial:
            rows["params"] += [(key, value, run) for key, value in _texts(trial["params"]).items()]
            for key, value in list(trial["metrics"].items())[:keys]:
                curve = {SAMPLES: value} if key != "eval/fvu" else trial["curve"]
                curve = {SAMPLES * (i + 1) // points: value for i in range(points)} if points else curve
                rows["metrics"] += [(key, v, START + step, run, step, 0) for step, v in curve.items()]
                rows["latest_metrics"].append((key, value, START + max(curve), max(curve), 0, run))
            if evaluations and trial["state"] == "complete":
                file = runs / name / "trials" / f"{trial['trial']:04d}" / "evaluation.safetensors"
                write_evaluation(file, trial)
                artifact = path.parent / "artifacts" / run / "artifacts" / file.name
                artifact.parent.mkdir(parents=True)
                artifact.write_bytes(file.read_bytes())
    with closing(sqlite3.connect(path)) as db, db:
        for table, values in rows.items():
            marks = ",".join("?" * len(values[0]))
            db.executemany(f"insert into {table}({COLUMNS[table]}) values({marks})", values)
    write_directory(runs / name, uri, str(experiment), parent)
    return uri


COLUMNS = {
    "experiments": "experiment_id,name,artifact_location,lifecycle_stage",
    "runs": "run_uuid,name,source_type,source_name,entry_point_name,user_id,status,start_time,end_time,"
    "source_version,lifecycle_stage,artifact_uri,experiment_id",
    "tags": "key,value,run_uuid",
    "params": "key,value,run_uuid",
    "metrics": "key,value,timestamp,run_uuid,step,is_nan",
    "latest_metrics": "key,value,timestamp,step,is_nan,run_uuid",
}
