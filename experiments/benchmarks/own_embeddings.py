"""What a sweep over a large file of own embeddings costs: seconds to the first step, and memory.

    python experiments/benchmarks/own_embeddings.py VECTORS.npy [--holdout 0.1]
    python experiments/benchmarks/own_embeddings.py VECTORS.npy --make 5000000,768

`--make` writes the file: float16, 50,000 rows of standard normal values, then the same rows with their values rotated
by one place, and so on. Else: a cache of its own, one sweep of one trial in a process of its own. Private memory is
RssAnon (what the system cannot drop) and USS (with the pages of the mapped file that no other process maps, which it
can drop), sampled once a second, the peak of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

EVERY = 1.0
BLOCK = 50_000
SPEC = """
name: own
data: {{embeddings: {file}, holdout: {holdout}}}
sae: [{{type: topk, k: 32, dict_size: 1536}}]
train: {{samples: 40_960, batch_size: 2048, lr: 1e-3}}
seeds: [0]
search: {{sampler: grid}}
prune: {{pruner: none}}
run: {{devices: cpu}}
"""


def make(path: Path, rows: int, width: int) -> None:
    base = np.random.Generator(np.random.SFC64(0)).standard_normal((BLOCK, width), np.float32).astype(np.float16)
    with path.open("wb") as file:
        shape = (rows, width)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for start in range(0, rows, BLOCK):
            file.write(np.roll(base, start // BLOCK, axis=1)[: rows - start].tobytes())


def role(process: psutil.Process, main: int) -> str:
    if process.pid == main:
        return "scheduler"
    words = " ".join(process.cmdline())
    return next((name for name in ("zygote", "floors") if name in words), words[-40:])


def sample(main: psutil.Process, peaks: dict[str, dict[str, int]]) -> None:
    for process in [main, *main.children(recursive=True)]:
        try:
            name = f"{role(process, main.pid)} {process.pid}"
            status = Path(f"/proc/{process.pid}/status").read_text()
            anonymous = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            found = {"anon": anonymous, "uss": process.memory_full_info().uss}
        except (psutil.Error, OSError, StopIteration):
            continue
        peak = peaks.setdefault(name, {})
        for key, value in found.items():
            peak[key] = max(peak.get(key, 0), value)


def measure(file: Path, holdout: str, folder: Path) -> None:
    (folder / "spec.yaml").write_text(SPEC.format(file=file.absolute(), holdout=holdout))
    places = {"SAEBENCH_CACHE": str(folder / "cache"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db"}
    command = [sys.executable, "-m", "saebench", "sweep", str(folder / "spec.yaml"), "--runs-dir", str(folder / "runs")]
    started = time.time()
    peaks: dict[str, dict[str, int]] = {}
    with (folder / "out").open("w") as out:
        sweep = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **places})
        entry: float | None = None
        while sweep.poll() is None:
            sample(sweep, peaks)
            if entry is None and list(folder.glob("cache/embeddings/*/manifest.json")):
                entry = time.time() - started
                print(f"entry written after {entry:.1f} s", flush=True)
            time.sleep(EVERY)
    print((folder / "out").read_text()[-3000:])
    print(f"exit {sweep.returncode} after {time.time() - started:.1f} s; entry after {entry:.1f} s")
    size = sum(path.stat().st_size for path in (folder / "cache" / "embeddings").rglob("*") if path.is_file())
    print(f"cache entry: {size / 1e6:,.1f} MB")
    (log,) = (folder / "runs").rglob("events.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    first = next(event for event in events if event["type"] == "step")
    in_trial = (first["ts"] - events[0]["ts"]) / 1000
    print(f"first step after {first['ts'] / 1000 - started:.1f} s, {in_trial:.1f} s of them in the trial")
    print(f"trial: {(events[-1]['ts'] - events[0]['ts']) / 1000:.1f} s, last event {events[-1]['type']}")
    for name, peak in peaks.items():
        print(f"{name}: " + ", ".join(f"{key} {value / 1e6:,.0f} MB" for key, value in peak.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--make", metavar="ROWS,WIDTH")
    parser.add_argument("--holdout", default="0.1")
    given = parser.parse_args()
    if given.make:
        make(given.file, *map(int, given.make.split(",")))
    else:
        with tempfile.TemporaryDirectory(dir=given.file.parent) as scratch:
            measure(given.file, given.holdout, Path(scratch))
