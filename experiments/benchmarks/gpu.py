"""Everything that wants a GPU, in one go: the training step at both sizes, encoding, reading, the tests marked `gpu`.

    python experiments/benchmarks/gpu.py --out FOLDER [--batchtopk CHECKOUT] [--minutes 8]

Every part is a process of its own with a time limit, and writes FOLDER/PART.txt as it goes, so that whatever is
missing, fails or takes too long costs its own part alone. Nothing is installed; what a part lacks, it says. The time
that a part leaves is for those after it. Ends with 0 where all of them did.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RESERVED = 45.0
"""Seconds kept for each part that is still to come."""


def parts(device: str, quick: bool, batchtopk: Path | None) -> dict[str, list[str]]:
    """Name -> arguments of Python."""
    common = ["--device", device, *(["--quick"] if quick else [])]
    peers = ["--batchtopk", str(batchtopk.resolve())] if batchtopk else []
    encode = [str(HERE / "encode.py"), *common]
    return {
        "train_step": [str(HERE / "train_step.py"), *common, "--gpu-works", *peers],
        "reading": [*encode, "--texts", "0"],
        "tests": ["-m", "pytest", "-m", "gpu", "--continue-on-collection-errors", "-p", "no:cacheprovider", *tests()],
        "encode": [*encode, "--rows", "0"],
    }


def tests() -> list[str]:
    """Files that hold a test for a GPU: collecting the others takes time, and packages that may not be there."""
    found = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(path.relative_to(REPOSITORY)) for path in found if "mark.gpu" in path.read_text("utf-8")]


def run(name: str, command: Sequence[str], folder: Path, limit: float) -> str:
    """What became of the part; it and all that it started have ended."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()}
    started = time.monotonic()
    with (folder / f"{name}.txt").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
        finally:
            _end(process)
    return f"{name}: {'ok' if code == 0 else code} ({time.monotonic() - started:.0f} s)"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _path() -> str:
    """This checkout comes first, where the package is not installed."""
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; made where it is not there")
    parser.add_argument("--batchtopk", type=Path, help="checkout of bartbussmann/BatchTopK")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(parts("cuda", False, None)), help="these alone")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu: to see whether it runs")
    parser.add_argument("--quick", action="store_true", help="small work: does it run?")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    todo = parts(chosen.device, chosen.quick, chosen.batchtopk)
    todo = {name: command for name, command in todo.items() if name in (chosen.parts or todo)}
    end, verdicts = time.monotonic() + 60 * chosen.minutes, []
    for number, (name, command) in enumerate(todo.items(), start=1):
        left = end - time.monotonic() - RESERVED * (len(todo) - number)
        verdicts.append(run(name, command, chosen.out, max(1.0, left)))
        print(f"\n=== {verdicts[-1]}\n{(chosen.out / f'{name}.txt').read_text('utf-8', 'replace')}", flush=True)
    (chosen.out / "parts.txt").write_text("\n".join(verdicts) + "\n", encoding="utf-8")
    print("\n".join(["", *verdicts]))
    return 0 if all(": ok (" in verdict for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
