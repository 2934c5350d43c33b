"""What MLflow costs a sweep of 2000 trials with 20 points of 8 metrics each: the tracker's CPU time; a report's time.

    python experiments/benchmarks/tracking.py [--trials 2000] [--slots 8] [--seconds 30] [--speed 30] [--share 0.005]
    python experiments/benchmarks/tracking.py --report http|sqlite [--trials 2000] [--store FOLDER] [--rounds 3]

The first: trials are played, not trained: `slots` at a time, each writes its 20 evaluations evenly over `seconds`.
Played `speed` times as fast (the tracker's interval too), so that it looks at the files as often per trial as it would.
The tracker's CPU time is that of its thread, to the last point; its share is that time over the sweep's wall time at
normal speed. MLflow writes to a sqlite database in a temporary folder, and at this speed its disk may fall behind,
which does not count: in life it has `speed` times as long. The short version (--trials 200) takes half a minute.

The second: the tracker logs the trials (two arms, two seeds, six levels, an evaluation file each) into sqlite, or to a
`mlflow server` on loopback with sqlite behind it, and `saebench report` is timed on them in a process of its own,
imports and all: as text and as the page with its curves. Over http it has only the server; beside sqlite it has the
sweep's directory. With --store the sweep is made once and found again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

from saebench.config import BatchTopKConfig, DataConfig, DatasetConfig, SAEConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker

POINTS, WIDTH, TEXTS = 20, 3072, 2000
METRICS = ("fvu", "mse", "explained_variance", "l0", "dead_features", "dead_fraction", "cosine", "examples")
INTERVAL, SHARE = 3.0, 0.005


def trial(number: int) -> TrialConfig:
    """Seeds alternate, then arms, then six levels; then the next point."""
    seed, arm, level, point = number % 2, number // 2 % 2, number // 4 % 6, number // 24
    k = 4 * 2**level
    sae: SAEConfig = TopKConfig(k=k, dict_size=WIDTH) if arm else BatchTopKConfig(k=k, dict_size=WIDTH)
    return TrialConfig(
        sweep="benchmark",
        number=number,
        stratum=f"{sae.type}-k{k}-n{WIDTH}",
        point=f"{point:010x}",
        seed=seed,
        data=DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=100_000),
        sae=sae,
        train=TrainConfig(samples=2_000_000, lr=1e-3 + 1e-5 * point),
    )


def evaluation(config: TrialConfig, point: int) -> Event:
    """The 1-based point of a learning curve, batchtopk's 4% lower."""
    rng = np.random.default_rng([config.number, point])
    k, better = float(config.sae.model_dump()["k"]), 0.96 if config.sae.type == "batchtopk" else 1.0
    fvu = better * 2.4 * k**-0.35 / 4 * (1 + 1 / point) * rng.normal(1, 0.01)
    values = (fvu, fvu / 384, 1 - fvu, k, float(60 - point), (60 - point) / WIDTH, 1 - fvu / 2, float(TEXTS))
    return Event("eval", 100_000 * point, {f"eval/{name}": value for name, value in zip(METRICS, values, strict=True)})


# --- the tracker -----------------------------------------------------------------------------------------------------


def play(tracker: Tracker, paths: SweepPaths, trials: int, slots: int, seconds: float) -> None:
    """Run `trials` in `slots`, each writing its points evenly over `seconds`."""
    waiting = iter(range(trials))
    running: list[tuple[TrialConfig, EventLog, float, int]] = []
    ended = 0
    while ended < trials:
        while len(running) < slots and (number := next(waiting, None)) is not None:
            config = trial(number)
            write_json(paths.trial(number).config, config.model_dump(mode="json"))
            tracker.open(config, {"saebench.attempt": "1"})
            offset = seconds * (number % slots) / slots if number < slots else 0.0
            running.append((config, EventLog(paths.trial(number).events), time.monotonic() + offset, 0))
        still = []
        for config, log, began, points in running:
            due = max(0, min(POINTS, int((time.monotonic() - began) / seconds * POINTS)))
            for point in range(points, due):
                log.append(evaluation(config, point + 1))
            if due < POINTS:
                still.append((config, log, began, due))
                continue
            log.close()
            tracker.close_trial(config.number, "complete", "", {"saebench.attempt": "1"})
            ended += 1
        running = still
        time.sleep(0.005)


def cpu_of(thread_id: int | None) -> float:
    return sum(t.user_time + t.system_time for t in psutil.Process().threads() if t.id == thread_id)


def measure_tracker(trials: int, slots: int, seconds: float, speed: float, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = SweepPaths(Path(folder) / "benchmark")
        paths.root.mkdir()
        uri = f"sqlite:///{folder}/mlflow.db"
        pace = {"interval": INTERVAL / speed, "share": min(1.0, share * speed)}
        tracker = Tracker(paths, TrackingConfig(uri=uri), "benchmark", **pace)
        tracker.start({"d_in": 384})
        requests = counted(tracker)
        thread = tracker._thread.native_id
        before, begin = cpu_of(thread), time.monotonic()
        play(tracker, paths, trials, slots, seconds / speed)
        played, behind = time.monotonic() - begin, tracker.lag()
        begin = time.monotonic()
        tracker._closing.set()
        while tracker._streams:
            cpu = cpu_of(thread) - before
            time.sleep(0.05)
        drained = time.monotonic() - begin
        left = tracker.close(patience=120)
    cost, points = cpu / trials, trials * POINTS * len(METRICS)
    print(f"{trials} trials, {points:,} metric points, {slots} at once, {seconds:g} s each; share {share:g}")
    print(f"CPU of the tracker     {cpu:8.1f} s  ({1e3 * cost:.0f} ms a trial, {len(requests) / trials:.1f} batches)")
    for length in (10, 30, 60, 300):
        part = cost * slots / length
        print(f"share of wall time     {part:8.2%}  of a core, where a trial takes {length} s")
    print(f"behind after {played:5.1f} s   {behind.unsent:8d} events, sent in {drained:.1f} s")
    print(f"left in the end        {left.unsent:8d} events, error: {left.error}")


def counted(tracker: Tracker) -> list[str]:
    """Run ids of the batches from now on."""
    client, sent = tracker._client, []
    log_batch = client.log_batch

    def noted(run_id: str, *args: object, **what: object) -> None:
        sent.append(run_id)
        log_batch(run_id, *args, **what)

    client.log_batch = noted
    return sent


# --- the report ------------------------------------------------------------------------------------------------------


def measure_report(kind: str, trials: int, store: Path, rounds: int) -> None:
    database = store / f"{kind}-{trials}.db"
    paths = SweepPaths(store / f"{kind}-{trials}" / "benchmark")
    served = serving(database, store) if kind == "http" else contextlib.nullcontext((f"sqlite:///{database}", None))
    with served as (uri, server):
        if not (paths.root / "made").exists():
            make(paths, uri, trials)
            (paths.root / "made").touch()
        page = [str(store / "page.html")]
        for name, more in (("text", []), ("page", ["--format", "html", "--out", *page])):
            where = ["--tracking-uri", uri, "--runs-dir", str(store / "none")] if kind == "http" else []
            where = where or ["--runs-dir", str(paths.root.parent)]
            times = [timed(["report", "benchmark", *where, *more], server) for _ in range(rounds)]
            wall, own, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name} over {kind}, {trials} trials: {wall:.1f} s (CPU: report {own:.1f} s, server {theirs:.1f} s)")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def make(paths: SweepPaths, uri: str, trials: int) -> None:
    begin = time.monotonic()
    for number in range(trials):
        config, place = trial(number), paths.trial(number)
        write_json(place.config, config.model_dump(mode="json"))
        log = EventLog(place.events)
        for point in range(POINTS):
            log.append(evaluation(config, point + 1))
        log.close()
        rng = np.random.default_rng(number)
        tensors = {"squared_error": rng.random(TEXTS, np.float32), "l0": rng.integers(1, 64, TEXTS, np.int32)}
        save_file({**tensors, "firing": rng.integers(0, TEXTS, WIDTH)}, place.evaluation)
        TrialState(number, config.stratum, config.point, config.seed, 0, state="complete").write(place)
    tracker = Tracker(paths, TrackingConfig(uri=uri), "benchmark")
    tracker.start({"d_in": 384, "spec": {"search": {"objective": "eval/fvu", "direction": "minimize"}}})
    assert tracker.close(patience=120) == (0, None)
    print(f"made in {time.monotonic() - begin:.0f} s", flush=True)


@contextlib.contextmanager
def serving(database: Path, store: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`mlflow server` as it starts by default (four workers), and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(store / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (store / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=store, env=environment)
    server, uri = psutil.Process(process.pid), f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            time.sleep(0.2)
        yield uri, server
    finally:
        for child in (*server.children(recursive=True), server):
            child.kill()
        process.wait()


def timed(arguments: list[str], server: psutil.Process | None) -> tuple[float, float, float]:
    """(wall time, CPU time of the command, CPU time of the server) of `saebench ...`."""
    code = "import sys; from saebench.cli import main; sys.argv[0] = 'saebench'; main()"
    before, begin = spent(server), time.monotonic()
    command = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(command.pid, 0)
    assert status == 0
    return time.monotonic() - begin, used.ru_utime + used.ru_stime, spent(server) - before


def spent(server: psutil.Process | None) -> float:
    processes = [server, *server.children(recursive=True)] if server else []
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=8, help="trials at once")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a trial at normal speed")
    parser.add_argument("--speed", type=float, default=30.0, help="how much faster it is played")
    parser.add_argument("--share", type=float, default=SHARE, help="the tracker's `share`")
    parser.add_argument("--report", choices=["http", "sqlite"], help="time `saebench report` instead")
    parser.add_argument("--store", type=Path, help="folder to keep the reported sweep in")
    parser.add_argument("--rounds", type=int, default=3, help="reports; the median counts")
    args = parser.parse_args()
    if args.report is None:
        measure_tracker(args.trials, args.slots, args.seconds, args.speed, args.share)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or Path(folder)
        store.mkdir(parents=True, exist_ok=True)
        measure_report(args.report, args.trials, store.absolute(), args.rounds)


if __name__ == "__main__":
    main()
