"""Disturb a sweep with faults drawn from a seed, and compare it with one that nobody disturbed.

    python experiments/chaos/chaos.py --faults 100 --seed 0 --work /some/folder

Runs the sweep of spec.yaml once in peace, then under fault after fault (the same command again whenever the scheduler
is gone), in as many rounds as the faults last. Ends with exit code 0 when, after every round, no trial is lost or run
twice, MLflow holds every metric point exactly once, histories and weights are those of the undisturbed sweep to the
last bit, and no process and no lock is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from saebench.runs import events
from saebench.runs.holder import holder
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import read_config, read_state

HERE = Path(__file__).parent
MARK = "SAEBENCH_CHAOS"
"""Environment variable by which processes of this run are known."""


class Server:
    """An MLflow server on loopback that can be stopped for a while."""

    def __init__(self, work: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = work / "mlflow.db"
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        with (self._work / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._work, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.5)
        raise RuntimeError("the MLflow server does not start; see server.log")

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Sweep:
    """A sweep of this experiment and its scheduler's process."""

    def __init__(self, name: str, work: Path, server: Server) -> None:
        self.name, self._work, self.server = name, work, server
        self.paths = SweepPaths(work / "runs" / name)
        self.cache = work / "cache"
        self.process: subprocess.Popen[bytes] | None = None
        self.starts: Counter[int | None] = Counter()
        """How the scheduler's processes ended."""

    def command(self) -> list[str]:
        paths = [str(self._work / "runs"), str(self.cache), self.server.uri]
        return [sys.executable, str(HERE / "sweep_once.py"), self.name, *paths]

    def start(self) -> None:
        code = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        environment = {**os.environ, MARK: str(self._work), "PYTHONPATH": code, "OMP_NUM_THREADS": "1"}
        with (self._work / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, sent: signal.Signals | None = None, patience: float = 180) -> int:
        """Wait for the scheduler's end, after a signal where one is given."""
        assert self.process is not None
        if sent is not None and self.alive():
            self.process.send_signal(sent)
        code = self.process.wait(patience)
        self.starts[code] += 1
        return code

    def running(self) -> list[TrialPaths]:
        """Trials that a worker is at work on."""
        found = []
        for trial in self.paths.trials():
            state = read_state(trial)
            if state is not None and state.state == "running" and self.worker(trial) is not None:
                found.append(trial)
        return found

    def worker(self, trial: TrialPaths) -> psutil.Process | None:
        last = [event for event, _ in events.read(trial.events) if event.type in ("start", "done", "left", "failed")]
        if not last or last[-1].type != "start":
            return None
        try:
            process = psutil.Process(int(last[-1].info["pid"]))
            return process if process.create_time() <= last[-1].ts / 1000 + 1 else None
        except psutil.Error:
            return None

    def ended(self) -> int:
        states = [read_state(trial) for trial in self.paths.trials()]
        return sum(state is not None and state.ended for state in states)


class Injector:
    """The faults. Each returns what it did; nothing where it found no victim."""

    def __init__(self, sweep: Sweep, dice: random.Random, outage: float) -> None:
        self.sweep, self.dice, self.outage = sweep, dice, outage

    def _victim(self) -> TrialPaths | None:
        running = self.sweep.running()
        return self.dice.choice(running) if running else None

    def _signal_worker(self, sent: signal.Signals) -> bool:
        trial = self._victim()
        worker = self.sweep.worker(trial) if trial else None
        with contextlib.suppress(psutil.Error):
            if worker is not None:
                worker.send_signal(sent)
                return True
        return False

    def kill_worker(self) -> bool:
        return self._signal_worker(signal.SIGKILL)

    def freeze_worker(self) -> bool:
        """SIGSTOP: it stalls, and is killed after stall_after."""
        return self._signal_worker(signal.SIGSTOP)

    def terminate_worker(self) -> bool:
        return self._signal_worker(signal.SIGTERM)

    def _in_worker(self, kind: str) -> bool:
        trial = self._victim()
        if trial is not None:
            (trial.root / "fault").write_text(kind)
        return trial is not None

    def nan_batch(self) -> bool:
        return self._in_worker("nan")

    def cuda_out_of_memory(self) -> bool:
        return self._in_worker("cuda_oom")

    def disk_full(self) -> bool:
        return self._in_worker("disk_full")

    def crash(self) -> bool:
        return self._in_worker("crash")

    def kill_scheduler(self) -> bool:
        self.sweep.end(signal.SIGKILL)
        return True

    def ctrl_c(self) -> bool:
        self.sweep.end(signal.SIGINT)
        return True

    def slurm_signal(self) -> bool:
        self.sweep.end(signal.SIGUSR1)
        return True

    def kill_everything(self) -> bool:
        """As when somebody pulls the plug, but for the disk's own cache."""
        self.sweep.end(signal.SIGKILL)
        for process in ours(self.sweep):
            with contextlib.suppress(psutil.Error):
                process.kill()
        return True

    def torn_events(self) -> bool:
        """Everything dies, and a worker's last line is only half written."""
        trial = self._victim()
        self.kill_everything()
        if trial is not None:
            with trial.events.open("ab") as file:
                file.write(b'{"type":"step","samples":99999')
        return trial is not None

    def torn_checkpoint(self) -> bool:
        """Everything dies, and the newest checkpoint is cut in half."""
        trial = self._victim()
        self.kill_everything()
        files = sorted(trial.checkpoint.rglob("*.safetensors")) if trial else []
        if files:
            os.truncate(files[-1], files[-1].stat().st_size // 2)
        return bool(files)

    def corrupt_cache(self) -> bool:
        """Everything dies, and a byte of the embeddings has flipped."""
        self.kill_everything()
        files = sorted(self.sweep.cache.glob("embeddings/*/*-rows-*.npy"))
        if files:
            with files[0].open("r+b") as file:
                file.seek(files[0].stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 0xFF]))
        return bool(files)

    def mlflow_down(self) -> bool:
        self.sweep.server.stop()
        time.sleep(self.outage)
        self.sweep.server.start()
        return True

    def second_scheduler(self) -> bool:
        """The same command while it runs: refused with exit code 6."""
        second = subprocess.run(
            self.sweep.command(), capture_output=True, text=True, env={**os.environ, MARK: "second"}
        )
        if self.sweep.alive() and second.returncode != 6:
            raise AssertionError(f"a second scheduler ended with {second.returncode}: {second.stdout}{second.stderr}")
        return True

    def table(self) -> dict[str, Callable[[], bool]]:
        return {
            name: getattr(self, name)
            for name in (
                "kill_worker",
                "freeze_worker",
                "terminate_worker",
                "nan_batch",
                "cuda_out_of_memory",
                "disk_full",
                "crash",
                "kill_scheduler",
                "kill_everything",
                "ctrl_c",
                "slurm_signal",
                "torn_events",
                "torn_checkpoint",
                "corrupt_cache",
                "mlflow_down",
                "second_scheduler",
            )
        }


def ours(sweep: Sweep) -> list[psutil.Process]:
    """Processes of this experiment's schedulers: workers, the process they are forked from, encoders."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
            if alive and process.environ().get(MARK) == str(sweep._work):
                found.append(process)
    return found


# --- what must hold at the end ---------------------------------------------------------------------------------------

History = list[tuple[str, int, dict[str, float]]]


def histories(paths: SweepPaths) -> dict[str, History]:
    """(stratum, point, seed) -> every metric point in order, but for those about speed."""
    found: dict[str, History] = {}
    for trial in paths.trials():
        config = read_config(trial)
        assert config is not None
        key = f"{config.stratum} {config.point} seed {config.seed}"
        assert key not in found, f"{key} was run twice"
        found[key] = [
            (e.type, e.samples, {k: v for k, v in e.values.items() if not k.startswith("system/")})
            for e, _ in events.read(trial.events)
            if e.type in ("step", "eval", "done")
        ]
    return found


def weights(paths: SweepPaths) -> dict[str, str]:
    """(stratum, point, seed) -> SHA-256 over the saved SAE's tensors (safetensors orders its header as it likes)."""
    found = {}
    for trial in paths.trials():
        config = read_config(trial)
        assert config is not None
        tensors = load_file(trial.sae / "sae.safetensors")
        content = b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
        found[f"{config.stratum} {config.point} seed {config.seed}"] = hashlib.sha256(content).hexdigest()
    return found


def tracked(sweep: Sweep) -> list[str]:
    """What is wrong in MLflow: runs and points against the events on disk."""
    import sqlite3

    wrong = []
    with sqlite3.connect(sweep.server.database) as db:
        runs = db.execute(
            "select t.value, r.run_uuid, r.status from runs r"
            " join tags t on t.run_uuid = r.run_uuid and t.key = 'saebench.trial'"
            " join tags s on s.run_uuid = r.run_uuid and s.key = 'saebench.sweep' and s.value = ?",
            [sweep.name],
        ).fetchall()
        numbers = [trial.root.name for trial in sweep.paths.trials()]
        if sorted(number for number, _, _ in runs) != numbers:
            wrong.append(f"runs of trials {sorted(number for number, _, _ in runs)} instead of {numbers}")
        for number, run, status in runs:
            if status != "FINISHED":
                wrong.append(f"run of trial {number} is {status}")
            there = Counter(db.execute("select key, step from metrics where run_uuid = ?", [run]).fetchall())
            read = events.read(sweep.paths.trial(int(number)).events)
            wanted = {(key, event.samples) for event, _ in read for key in event.values}
            if set(there) != wanted:
                wrong.append(
                    f"trial {number}: {len(wanted - set(there))} points missing, {len(set(there) - wanted)} more"
                )
            doubled = [point for point, count in there.items() if count > 1]
            if doubled:
                wrong.append(f"trial {number}: {len(doubled)} points doubled, such as {doubled[0]}")
    return wrong


def differences(sweep: Sweep, calm: Sweep) -> list[str]:
    """Everything that is not as in the undisturbed sweep."""
    wrong = tracked(sweep)
    states = [read_state(trial) for trial in sweep.paths.trials()]
    wrong += [f"trial {s.number}: {s.state}: {s.reason}" for s in states if s is not None and s.state != "complete"]
    mine, theirs = histories(sweep.paths), histories(calm.paths)
    if mine.keys() != theirs.keys():
        wrong.append(f"{len(theirs.keys() - mine.keys())} trials lost, {len(mine.keys() - theirs.keys())} too many")
    both = mine.keys() & theirs.keys()
    wrong += [f"{key}: another history" for key in sorted(both) if mine[key] != theirs[key]]
    mine_saved, theirs_saved = weights(sweep.paths), weights(calm.paths)
    wrong += [f"{key}: other weights" for key in sorted(both) if mine_saved[key] != theirs_saved[key]]
    wrong += [f"process {p.pid} is left: {' '.join(p.cmdline())[:80]}" for p in ours(sweep)]
    if holder(sweep.paths) is not None or sweep.paths.holder.exists():
        wrong.append("the lock is left")
    wrong += [f"{path} is left" for path in sweep.paths.root.rglob("*.tmp")]
    return wrong


# --- the run ---------------------------------------------------------------------------------------------------------


def disturb(sweep: Sweep, faults: list[str], dice: random.Random, pause: float, outage: float) -> list[str]:
    """One round: inject faults (in place) until the sweep has ended or they are spent; what was injected."""
    injector = Injector(sweep, dice, outage)
    done: list[str] = []
    sweep.start()
    while True:
        if not sweep.alive():
            code = sweep.end()
            if code == 0:
                return done
            if code not in (75, 130, -signal.SIGKILL):
                raise AssertionError(f"the scheduler ended with {code}; see {sweep.name}.log")
            sweep.start()
        time.sleep(dice.uniform(0.5, 1.5) * pause)
        if not faults or not sweep.alive() or not sweep.running():
            continue
        fault = faults.pop(0)
        if injector.table()[fault]():
            done.append(fault)
            print(f"{time.strftime('%H:%M:%S')} {sweep.name}: {fault} ({len(faults)} to come, {sweep.ended()} ended)")
        else:
            faults.append(fault)
        if not sweep.alive():
            sweep.start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="how many faults to inject")
    parser.add_argument("--seed", type=int, default=0, help="draws the faults, their times and victims")
    parser.add_argument("--pause", type=float, default=6.0, help="seconds between two faults, on average")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that MLflow is away")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs, cache and database")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    dice = random.Random(given.seed)
    server = Server(work)
    server.start()
    try:
        return run(given, work, dice, server)
    finally:
        server.stop()


def run(given: argparse.Namespace, work: Path, dice: random.Random, server: Server) -> int:
    calm = Sweep("calm", work, server)
    calm.start()
    if calm.end(patience=3600) != 0:
        raise AssertionError("the undisturbed sweep failed; see calm.log")
    kinds = list(Injector(calm, dice, 0).table())
    faults = [kinds[i % len(kinds)] for i in range(given.faults)]
    dice.shuffle(faults)
    injected: Counter[str] = Counter()
    wrong: list[str] = []
    starts: Counter[str] = Counter()
    rounds = 0
    while faults:
        rounds += 1
        sweep = Sweep(f"chaos{rounds}", work, server)
        injected.update(disturb(sweep, faults, dice, given.pause, given.outage))
        time.sleep(2)
        found = differences(sweep, calm)
        wrong += [f"{sweep.name}: {line}" for line in found]
        starts.update({str(code): count for code, count in sweep.starts.items()})
        print(f"{sweep.name}: {'; '.join(found) or 'as the undisturbed sweep, to the last bit'}")
    summary = result(given, injected, starts, rounds, len(list(calm.paths.trials())), wrong)
    (work / "result.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(markdown(summary))
    return 1 if wrong else 0


def result(
    given: argparse.Namespace, injected: Counter[str], starts: Counter[str], rounds: int, trials: int, wrong: list[str]
) -> dict[str, Any]:
    return {
        "seed": given.seed,
        "rounds": rounds,
        "trials_per_round": trials,
        "faults": dict(sorted(injected.items())),
        "scheduler_exits": dict(starts),
        "wrong": wrong,
    }


def markdown(summary: dict[str, Any]) -> str:
    rows = [f"| {name.replace('_', ' ')} | {count} |" for name, count in summary["faults"].items()]
    total = sum(summary["faults"].values())
    size = f"{summary['rounds']} rounds of {summary['trials_per_round']} trials"
    head = f"{total} faults (seed {summary['seed']}) over {size}; schedulers ended with {summary['scheduler_exits']}"
    verdict = "\n".join(f"- {line}" for line in summary["wrong"]) or "Nothing differs from the undisturbed sweep."
    return "\n".join([head, "", "| fault | times |", "| --- | --- |", *rows, "", verdict])


if __name__ == "__main__":
    sys.exit(main())
