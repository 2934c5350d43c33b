"""What it costs to orchestrate a trial: ours against a plain subprocess per trial and against Ray Tune.

    python experiments/benchmarks/orchestration.py [--trials 200] [--slow 6]
    python experiments/benchmarks/orchestration.py --sweeps 100,600,2000

The trial (toy_trial.py) does nothing but import what a real trial imports; every way runs it in a fresh process. Two
figures: seconds from the order to start until the next trial could start, one trial at a time; and trials per second,
two at a time. `--trials` is for ours, `--slow` for the other two. Ray Tune is measured where `ray` can be imported
(`pip install "ray[tune]"`), its own start not counted: T(n + 1 trials) - T(1 trial), over n.

`--sweeps` measures whole sweeps instead: `run_sweep` with Optuna's journal and MLflow in a new SQLite file, four
strata, two slots, one evaluation with a verdict per trial. Counted from the end of the first trial, which waits for the
imports; "in all" until MLflow has everything. CPU time because the machine may be shared: of this process (loop and
MLflow) and of those below it (workers, and the one they are forked from; imports included).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import toy_trial

from saebench import run_sweep
from saebench.executors import Attempt, EventMessage, ExitMessage
from saebench.executors.local import LocalExecutor
from saebench.runs.events import Event
from saebench.runs.paths import TrialPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import RunConfig
from saebench.terminal.views import QuietView

HERE = Path(__file__).parent
Way = Callable[[Path, int, int], float]
"""(folder, trials, at once) -> seconds"""


class Ours:
    """LocalExecutor, warm: the first trial, which waits for the imports, is told apart."""

    def __init__(self, folder: Path) -> None:
        self.executor = LocalExecutor(RunConfig(devices="cpu", per_device=2), folder, "toy_trial:run")
        self.number = 0
        self.to_first_line: list[float] = []
        begin = time.perf_counter()
        self(folder, 1, 1)
        self.first = time.perf_counter() - begin

    def __call__(self, folder: Path, trials: int, at_once: int) -> float:
        begin, ordered = time.perf_counter(), dict[int, float]()
        free, where, left, todo = list(self.executor.slots[:at_once]), {}, trials, trials
        self.to_first_line = []
        while left:
            while free and todo:
                slot, todo, self.number = free.pop(), todo - 1, self.number + 1
                ordered[self.number], where[self.number] = time.time(), slot
                paths = TrialPaths(folder / "ours" / f"{self.number:04d}")
                self.executor.start(Attempt(self.number, 1, toy_trial.config(self.number), paths), slot)
            for message in self.executor.poll(10):
                if isinstance(message, EventMessage) and message.event.type == "done":
                    self.to_first_line.append(message.event.values["toy/began"] - ordered[message.number])
                if isinstance(message, ExitMessage):
                    assert message.kind is None, message
                    free.append(where[message.number])
                    left -= 1
        return time.perf_counter() - begin


def plain(folder: Path, trials: int, at_once: int) -> float:
    """A new interpreter per trial, as a shell loop has it."""
    begin, running, started = time.perf_counter(), list[tuple[subprocess.Popen[bytes], Path]](), 0
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    while started < trials or running:
        while started < trials and len(running) < at_once:
            out = folder / f"plain_{started}.json"
            command = [sys.executable, "-m", "toy_trial", str(out)]
            running.append((subprocess.Popen(command, env=environment), out))
            started += 1
        process, out = running.pop(0)
        assert process.wait() == 0
        assert Event.from_line(out.read_text()).type == "done"
    return time.perf_counter() - begin


def ray_tune(folder: Path, trials: int, at_once: int) -> float:
    """Ray Tune with a function trainable and its default of a process per trial."""
    import ray
    from ray import tune

    def trainable(_: dict[str, object]) -> None:
        sys.path.insert(0, str(HERE))
        import toy_trial

        toy_trial.warm_up()
        tune.report(toy_trial.train())

    if not ray.is_initialized():
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_once),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )
    begin = time.perf_counter()
    results = tuner.fit()
    assert len(results) == trials
    assert not results.errors
    return time.perf_counter() - begin


def per_trial(way: Way, folder: Path, trials: int, at_once: int, without_start: bool = False) -> float:
    """Seconds per trial; `without_start` takes off what does not grow with the number of trials."""
    extra = at_once if without_start else 0
    seconds = way(folder, trials + extra, at_once)
    return (seconds - (way(folder, extra, at_once) if extra else 0.0)) / trials


class Clock(QuietView):
    """Notes when trials end."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu = 0.0
        """CPU time of this process when the first one did."""

    def ended(self, state: TrialState) -> None:
        del state
        self.cpu = self.cpu or time.process_time()
        self.ends.append(time.perf_counter())


def sweep(folder: Path, trials: int) -> str:
    """One row of the table about whole sweeps."""
    spec = {
        "name": f"toy{trials}",
        "data": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dataset": {"path": "none"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": [4, 8, 16, 32], "dict_size": 64}],
        "train": {
            "samples": 1000,
            "batch_size": 100,
            "eval_every": 500,
            "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "search": {"sampler": "random", "points": trials // 4},
        "prune": {"pruner": "none"},
        "run": {"devices": "cpu", "per_device": 2},
        "tracking": {"uri": f"sqlite:///{folder}/{trials}.db"},
    }
    clock, below = Clock(), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    overrides = ["data.cache=false"]
    found = run_sweep(
        spec, runs_dir=folder, cache_dir=folder, view=clock, target="toy_trial:judged", overrides=overrides
    )
    done = time.perf_counter()
    assert found.counts == {"complete": trials}, found
    with contextlib.closing(sqlite3.connect(folder / f"{trials}.db")) as mlflow:
        (sent,) = mlflow.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()
    first, last = clock.ends[0], clock.ends[-1]
    own, below = time.process_time() - clock.cpu, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - below
    loop = (trials - 1) / (last - first)
    late = trials // 5 / (last - clock.ends[-1 - trials // 5])
    everything = (trials - 1) / (done - first) if sent == trials + 1 else float("nan")
    cpu = f"{1000 * own / trials:.0f} + {1000 * below / trials:.0f}"
    return f"| {trials} | {loop:.1f} | {late:.1f} | {everything:.1f} | {cpu} | {os.getloadavg()[0]:.1f} |"


def main() -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--slow", type=int, default=6)
    parser.add_argument("--sweeps", help="trials of each sweep, with commas between")
    args = parser.parse_args()
    if args.sweeps:
        print("| trials | trials/s in the loop | in its last fifth | in all | CPU ms per trial, own + below | load |")
        print("| --- | --- | --- | --- | --- | --- |")
        for trials in map(int, args.sweeps.split(",")):
            with tempfile.TemporaryDirectory() as name:
                print(sweep(Path(name), trials), flush=True)
        return
    rows: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = Ours(folder)
        one = per_trial(ours, folder, args.trials, 1)
        to_first_line = sorted(ours.to_first_line)
        rows.append(("saebench", one, per_trial(ours, folder, args.trials, 2)))
        rows.append(("plain subprocess", *(per_trial(plain, folder, args.slow, n) for n in (1, 2))))
        if importlib.util.find_spec("ray") is not None:
            rows.append(("Ray Tune", *(per_trial(ray_tune, folder, args.slow, n, True) for n in (1, 2))))
        ours.executor.close()
    print(f"\n{args.trials} trials (ours), {args.slow} (others), {os.cpu_count()} cores\n")
    print("| way | seconds per trial, one at a time | ratio | trials per second, two at a time |")
    print("| --- | --- | --- | --- |")
    for way, seconds, pair in rows:
        print(f"| {way} | {seconds:.3f} | {seconds / rows[0][1]:.0f} | {1 / pair:.2f} |")
    median, worst = (1000 * to_first_line[i] for i in (len(to_first_line) // 2, -1))
    print(f"\nours, from the order to the target's first line: median {median:.0f} ms, worst {worst:.0f} ms;")
    print(f"the first trial of all, which waits for the imports: {ours.first:.1f} s")


if __name__ == "__main__":
    main()
