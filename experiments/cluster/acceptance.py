"""Sweeps on three machines of namespaces while something dies: is anything lost, doubled or different?

    python experiments/cluster/acceptance.py SCENARIO... [--storage shared|streamed] [--steps N]
        [--folder DIR] [--keep]

    quiet       nothing happens
    machine     a machine loses its power
    cable       a machine's cable is pulled for three minutes
    gcs         the cluster's head process is killed; a new head, and the same command again
    drain       the cluster reclaims a machine, as a spot market does: a minute's notice, then its power goes

Each is compared with the same sweep on this machine alone: every value, and the bytes of every SAE. `writers` is the
largest number of live processes that had one trial's log open at the same time: 2 would be two writers. `trials` says
how each attempt at a trial went: on which machine, from which number of samples (0: from the start), and the kind of
failure that ended it. Needs root, and a disk that is not /tmp (every machine has a /tmp of its own). One JSON line per
scenario; the folder is removed at the end unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from machines import Machine, make_bridge, remove_bridge

from saebench.runs import events
from saebench.runs.paths import SweepPaths
from saebench.runs.state import load_config, read_state

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
RUN = "import json, sys; from saebench.sweep import run_sweep; sys.exit(run_sweep(**json.loads(sys.argv[1])).exit_code)"
GRACE = 20.0
NOTICE = 60
DRAIN = """
import os, sys, ray
ray_command, address, name, notice = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if node["NodeName"] == name]
os.execv(ray_command, ["ray", "drain-node", "--address", address, "--node-id", node, "--reason",
                       "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                       "--deadline-remaining-seconds", notice])
"""


class Lab:
    """A head with the scheduler, and the machines a, b and c."""

    def __init__(self, folder: Path, storage: str, steps: int) -> None:
        self.folder, self.storage, self.steps = folder, storage, steps
        self.machines: dict[str, Machine] = {}
        (folder / "token").write_text(secrets.token_hex(24))
        generator = np.random.default_rng(0)
        codes = generator.random((2000, 30)) * (generator.random((2000, 30)) < 0.1)
        np.save(folder / "e.npy", (codes @ generator.normal(size=(30, 16)) + 0.1).astype(np.float32))

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "OMP_WAIT_POLICY": "PASSIVE",
        }  # fmt: skip

    def hidden(self) -> list[Path]:
        """What the machines do not see of the scheduler's disk."""
        return [self.folder / "runs", self.folder / "cache"] if self.storage == "streamed" else []

    def open(self) -> None:
        make_bridge()
        self._boot(1, "head", [])
        for number, name in enumerate("abc", 2):
            self._boot(number, name, self.hidden())

    def replace(self, name: str) -> None:
        """Start a machine that was struck anew."""
        self.machines[name].kill()
        self._boot(2 + "abc".index(name), name, self.hidden())

    def _boot(self, number: int, name: str, hidden: list[Path]) -> None:
        for _ in range(5):
            self.machines[name] = machine = Machine(number, name, self.folder, hidden)
            if self.raylet(machine):
                return
            machine.kill()
        raise RuntimeError(f"no Ray on {name}")

    def raylet(self, machine: Machine) -> bool:
        """Start Ray on a machine; it is brittle on a busy one."""
        head = machine.name == "head"
        where = ["--head", "--port=6379", "--include-dashboard=false"] if head else [f"--address={self.address}"]
        log = self.folder / f"{machine.name}.log"
        log.unlink(missing_ok=True)
        command = [str(RAY), "start", *where, f"--node-ip-address={machine.address}", f"--node-name={machine.name}",
                   f"--num-cpus={0 if head else 1}", "--num-gpus=0", "--object-store-memory=80000000", "--block",
                   "--disable-usage-stats"]  # fmt: skip
        process = machine.start(command, self.environment(), log)
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                return True
            time.sleep(0.2)
        return False

    @property
    def address(self) -> str:
        return f"{self.machines['head'].address}:6379"

    def sweep(self, name: str) -> subprocess.Popen[bytes]:
        """Start a sweep on the head; `local` runs beside the cluster."""
        run: dict[str, Any] = {"devices": "cpu", "per_device": 3, "threads": 1, "grace": GRACE}
        if name != "local":
            run |= {"per_device": 1, "executor": "ray", "address": self.address, "storage": "auto"}
        spec = {
            "name": name,
            "data": {"embeddings": str(self.folder / "e.npy"), "holdout": 0.3},
            "sae": [{"type": "topk", "k": [2, 4, 8], "dict_size": 64}],
            "train": {"samples": 64 * self.steps, "batch_size": 64, "eval_every": 16 * self.steps, "lr": 0.003,
                      "checkpoint_every": 4 * self.steps},
            "seeds": [0], "search": {"refine": 0}, "prune": {"pruner": "none"}, "run": run,
        }  # fmt: skip
        given = {"spec": spec, "runs_dir": str(self.folder / "runs"), "cache_dir": str(self.folder / "cache")}
        log = self.folder / f"sweep-{name}.log"
        return self.machines["head"].start([sys.executable, "-c", RUN, json.dumps(given)], self.environment(), log)

    def results(self, name: str) -> list[Any]:
        found = []
        for trial in SweepPaths(self.folder / "runs" / name).trials():
            points = [
                (e.type, e.samples, {k: v for k, v in e.values.items() if not k.startswith("system/")})
                for e, _ in events.read(trial.events)
                if e.type in ("step", "eval", "done")
            ]
            config = load_config(trial)
            assert config is not None
            files = (trial.sae / "sae.safetensors").read_bytes(), trial.evaluation.read_bytes()
            found.append((config.stratum, config.seed, points, files))
        return sorted(found, key=lambda one: one[:2])

    def close(self) -> None:
        for machine in self.machines.values():
            machine.kill()


class Writers:
    """Counts, all the time, the processes that have one trial's log open."""

    def __init__(self) -> None:
        self.most, self.seen, self._stop = 0, set[tuple[str, int]](), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            now: Counter[str] = Counter()
            for place in Path("/proc").glob("[0-9]*/fd/1"):
                try:
                    target = os.readlink(place)
                except OSError:
                    continue
                if target.endswith("/log.txt"):
                    now[target] += 1
                    self.seen.add((target, int(place.parts[2])))
            self.most = max([self.most, *now.values()])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def worker_on(lab: Lab, name: str) -> bool:
    """Does a trial run on the machine, and has it written a checkpoint?"""
    for trial in SweepPaths(lab.folder / "runs" / name).trials():
        state, found = read_state(trial), [event for event, _ in events.read(trial.events)]
        if state is None or not state.attempts or state.ended or not state.attempts[-1].slot.startswith("b "):
            continue
        if any(event.type == "checkpoint" and event.samples > 8 * lab.steps for event in found):
            return True
    return False


def strike(lab: Lab, scenario: str, name: str) -> str:
    if scenario == "quiet":
        return ""
    end = time.monotonic() + 300
    while not worker_on(lab, name):
        if time.monotonic() > end:
            return "nothing to strike at"
        time.sleep(0.1)
    machine = lab.machines["b"]
    if scenario == "machine":
        machine.kill()
        return "b lost its power"
    if scenario == "cable":
        machine.link(up=False)
        time.sleep(180)
        machine.link(up=True)
        return "b was cut off for 180 s"
    if scenario == "drain":
        drain = [sys.executable, "-c", DRAIN, str(RAY), lab.address, "b", str(NOTICE)]
        code = lab.machines["head"].start(drain, lab.environment(), lab.folder / "drain.log").wait(60)
        time.sleep(NOTICE)
        machine.kill()
        return f"b was drained with {NOTICE} s of notice (exit {code}), then lost its power"
    for process in lab.machines["head"].processes():
        if Path(f"/proc/{process}/comm").read_text().strip() == "gcs_server":
            os.kill(process, 9)
    return "the head's gcs_server was killed"


def histories(lab: Lab, name: str) -> list[list[str]]:
    """Return for every trial what each of its attempts did: machine, first sample, kind of failure if any."""
    found = []
    for trial in SweepPaths(lab.folder / "runs" / name).trials():
        seen = {(event.type, event.attempt): event.samples for event, _ in events.read(trial.events)}
        attempts = state.attempts if (state := read_state(trial)) else []
        found.append([
            f"{one.slot.split()[0]} from {seen.get(('start', one.attempt), '?')}"
            + (f", left at {seen['left', one.attempt]}" if ("left", one.attempt) in seen else "")
            + (f", {one.kind}" if one.kind else "")
            for one in attempts
        ])  # fmt: skip
    return found


def play(lab: Lab, scenario: str) -> dict[str, Any]:
    name = f"{scenario}-{lab.storage}"
    begin, writers = time.monotonic(), Writers()
    process = lab.sweep(name)
    what = strike(lab, scenario, name)
    codes = [process.wait(1800)]
    if scenario == "gcs":
        for machine in lab.machines.values():
            machine.kill()
        lab.open()
        codes.append(lab.sweep(name).wait(1800))
    writers.close()
    states = [read_state(trial) for trial in SweepPaths(lab.folder / "runs" / name).trials()]
    attempts = [attempt.kind for state in states if state for attempt in state.attempts]
    return {
        "scenario": name, "what": what, "exit_codes": codes, "seconds": round(time.monotonic() - begin),
        "equal_to_local": lab.results(name) == lab.results("local"), "writers": writers.most,
        "attempts": len(attempts), "kinds": Counter(str(kind) for kind in attempts),
        "trials": histories(lab, name), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+", choices=["quiet", "machine", "cable", "gcs", "drain"])
    parser.add_argument("--storage", choices=["shared", "streamed"], default="shared")
    parser.add_argument("--steps", type=int, default=6000, help="of a trial")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/saebench-cluster"))
    parser.add_argument("--keep", action="store_true", help="keep the folder with the runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(args.folder, args.storage, args.steps)
    try:
        lab.open()
        if not (args.folder / "runs" / "local").exists():
            lab.sweep("local").wait(1800)
        for scenario in args.scenarios:
            print(json.dumps(play(lab, scenario)), flush=True)
            if scenario != args.scenarios[-1]:
                lab.replace("b")
    finally:
        lab.close()
    remove_bridge()
    if not args.keep:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
