"""What MLflow costs a sweep: the tracker's CPU time for 2000 trials with 20 points of 8 metrics each.

    python experiments/benchmarks/tracking.py [--trials 2000] [--slots 8] [--seconds 30] [--speed 30]

Trials are played, not trained: `slots` at a time, each writes its 20 evaluations evenly over `seconds`. Played `speed`
times as fast (the tracker's interval too), so that it looks at the files as often per trial as it would. The tracker's
CPU time is that of its thread, to the last point; its share is that time over the sweep's wall time at normal speed.
MLflow writes to a sqlite database in a temporary folder, and at this speed its disk may fall behind, which does not
count: in life it has `speed` times as long. The short version (--trials 200) takes half a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrackingConfig, TrainConfig, TrialConfig
from saebench.events import Event, EventLog
from saebench.paths import SweepPaths, write_json
from saebench.tracking import Tracker

POINTS, METRICS = 20, 8
INTERVAL, SHARE = 3.0, 0.02


def trial(number: int) -> TrialConfig:
    return TrialConfig(
        sweep="benchmark",
        number=number,
        stratum=f"topk-k{2 ** (number % 6)}-n3072",
        point=f"{number:010x}",
        seed=0,
        data=DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=100_000),
        sae=TopKConfig(k=2 ** (number % 6), dict_size=3072),
        train=TrainConfig(samples=2_000_000, lr=1e-3),
    )


def play(tracker: Tracker, paths: SweepPaths, trials: int, slots: int, seconds: float) -> None:
    """Run `trials` in `slots`, each writing its points evenly over `seconds`."""
    waiting = iter(range(trials))
    running: list[tuple[int, EventLog, float, int]] = []
    ended = 0
    while ended < trials:
        while len(running) < slots and (number := next(waiting, None)) is not None:
            config = trial(number)
            write_json(paths.trial(number).config, config.model_dump(mode="json"))
            tracker.open(config, {"saebench.attempt": "1"})
            offset = seconds * (number % slots) / slots if number < slots else 0.0
            running.append((number, EventLog(paths.trial(number).events), time.monotonic() + offset, 0))
        still = []
        for number, log, began, points in running:
            due = max(0, min(POINTS, int((time.monotonic() - began) / seconds * POINTS)))
            for point in range(points, due):
                values = {f"eval/metric_{i}": 1 / (1 + number + point + i) for i in range(METRICS)}
                log.append(Event("eval", 100_000 * (point + 1), values))
            if due < POINTS:
                still.append((number, log, began, due))
                continue
            log.close()
            tracker.close_trial(number, "complete", "", {"saebench.attempt": "1"})
            ended += 1
        running = still
        time.sleep(0.005)


def cpu_of(thread_id: int | None) -> float:
    return sum(t.user_time + t.system_time for t in psutil.Process().threads() if t.id == thread_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=8, help="trials at once")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a trial at normal speed")
    parser.add_argument("--speed", type=float, default=30.0, help="how much faster it is played")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = SweepPaths(Path(folder) / "benchmark")
        paths.root.mkdir()
        uri = f"sqlite:///{folder}/mlflow.db"
        pace = {"interval": INTERVAL / args.speed, "share": min(1.0, SHARE * args.speed)}
        tracker = Tracker(paths, TrackingConfig(uri=uri), "benchmark", **pace)
        tracker.start({"d_in": 384})
        thread = tracker._thread.native_id
        before, begin = cpu_of(thread), time.monotonic()
        play(tracker, paths, args.trials, args.slots, args.seconds / args.speed)
        played, behind = time.monotonic() - begin, tracker.lag()
        begin = time.monotonic()
        tracker._closing.set()
        while tracker._streams:
            cpu = cpu_of(thread) - before
            time.sleep(0.05)
        drained = time.monotonic() - begin
        left = tracker.close(patience=120)
    cost, points = cpu / args.trials, args.trials * POINTS * METRICS
    print(f"{args.trials} trials, {points:,} metric points, {args.slots} at once, {args.seconds:g} s each")
    print(f"CPU of the tracker     {cpu:8.1f} s  ({1e3 * cost:.0f} ms a trial)")
    for seconds in (10, 30, 60, 300):
        share = cost * args.slots / seconds
        print(f"share of wall time     {share:8.2%}  of a core, where a trial takes {seconds} s")
    print(f"behind after {played:5.1f} s   {behind.unsent:8d} events, sent in {drained:.1f} s")
    print(f"left in the end        {left.unsent:8d} events, error: {left.error}")


if __name__ == "__main__":
    main()
