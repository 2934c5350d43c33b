"""Kill the encoding of a corpus at random moments, run the same command again, and compare every byte at the end.

    python experiments/kills/kills.py --kills 20 --seed 0 --work /some/folder

The command is `saebench cache build spec.yaml` with its real processes and the real encoder. What is killed (by
SIGKILL) and when is drawn from the seed: the command itself, one of its children (the reader of texts or an encoder),
or the command and all its children at once. Then: a flipped bit, a truncated shard, two such commands at once, and two
sweeps at once that want the same corpus. Ends with exit code 0 when every entry is, to the byte, the one of a build
that nobody disturbed, and no process and no half-written file is left.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HERE = Path(__file__).parent
SAEBENCH = str(Path(sys.executable).with_name("saebench"))
WHATS = ("the command", "a child", "all")


class Command:
    """`saebench ...` on one cache folder, its output in a file."""

    def __init__(self, log: Path, *arguments: str | Path) -> None:
        self._out = log.open("w+", encoding="utf-8")
        command = [SAEBENCH, *map(str, arguments)]
        self.process = psutil.Popen(command, stdout=self._out, stderr=subprocess.STDOUT)

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [p for p in self.process.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        return []

    def said(self) -> str:
        self._out.seek(0)
        return self._out.read()

    def wait(self) -> int:
        return int(self.process.wait(1200))


def build(cache: Path, log: Path, *changes: str) -> Command:
    return Command(log, "cache", "build", HERE / "spec.yaml", "--cache-dir", cache, *changes)


def tree(cache: Path) -> dict[str, str]:
    """Every file of the entries: path -> SHA-256. Locks and the like lie beside the entries and are left out."""
    root = cache / "embeddings"
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.parent != root)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def state(cache: Path) -> str:
    """What a kill left behind, in words."""
    names = list((cache / "embeddings").glob("*/*"))
    parts = len(list((cache / "embeddings").glob("*/parts/*.npy")))
    aside = len(list((cache / "embeddings").rglob("*.tmp")))
    if not names:
        return "nothing"
    texts = any("-texts-" in path.name for path in names)
    return f"{'texts' if texts else 'no texts'}, {parts} pieces{f', {aside} half-written' if aside else ''}"


def must(claim: bool, what: str) -> None:
    if not claim:
        raise SystemExit(f"FAILED: {what}")


def kill(command: Command, what: str, random_: random.Random) -> tuple[str, list[psutil.Process]]:
    """What was killed, and the children that there were."""
    children = command.children()
    if what == "a child" and children:
        child = random_.choice(sorted(children, key=lambda one: one.pid))
        name = next((part for part in child.cmdline() if part.startswith("saebench.stores")), "a child")
        child.send_signal(signal.SIGKILL)
        return name, children
    victims = [command.process, *(children if what == "all" else [])]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    return f"all {len(victims)}" if what == "all" else "the command", children


def killed(work: Path, kills: int, seconds: float, random_: random.Random) -> Iterator[str]:
    """Kill after kill on one cache folder (a line for each); then the command once more, undisturbed."""
    cache, done, ended = work / "killed", 0, Counter[int]()
    command: Command | None = None
    while done < kills:
        command = command or build(cache, work / f"killed-{done:02d}.log")
        wait, what = random_.uniform(0.0, seconds), random_.choice(WHATS)
        with contextlib.suppress(psutil.TimeoutExpired):
            command.process.wait(wait)
        if command.process.poll() is not None:  # it finished or, after a lost child, gave up
            ended[command.wait()] += 1
            must(command.wait() in (0, 5), f"exit code {command.wait()}: {command.said()}")
            if command.wait() == 0:
                yield f"after {done} kills the entry was complete: rows removed, and on from the texts"
                for path in (cache / "embeddings").glob("*/*-rows-*"):
                    path.unlink()
            command = None
            continue
        victim, children = kill(command, what, random_)
        done += 1
        if what == "a child" and victim != "the command":
            time.sleep(1.0)
            goes_on = command.process.poll() is None
            last = (command.said().strip().splitlines() or ["(nothing said yet)"])[-1]
            yield f"{done:2d}. {wait:4.1f} s later: {victim}; the command {'goes on' if goes_on else 'ended'}: {last}"
            continue
        ended[command.wait()] += 1
        alive = psutil.wait_procs(children, timeout=20)[1]
        must(not alive, f"children outlive the command: {alive}")
        yield f"{done:2d}. {wait:4.1f} s later: {victim}; left: {state(cache)}"
        command = None
    if command is not None:
        ended[command.wait()] += 1
    command = build(cache, work / "killed-last.log")
    must(command.wait() == 0, f"the last build: {command.said()}")
    yield f"exit codes of the commands: {dict(ended)}, then 0"


def at_once(work: Path, name: str, make: Callable[[Path, int], Command]) -> Iterator[str]:
    """Two commands at once on an empty cache."""
    cache = work / name
    both = [make(cache, number) for number in (1, 2)]
    codes = [one.wait() for one in both]
    must(codes == [0, 0], f"exit codes {codes}: {both[0].said()}\n{both[1].said()}")
    encoded = sum("encoding: " in one.said() for one in both)
    waited = [line for one in both for line in one.said().splitlines() if "waiting for it" in line]
    must((encoded, len(waited)) == (1, 1), f"{encoded} encoded, waited: {waited}: {both[0].said()}\n{both[1].said()}")
    yield f"one encoded, the other said: {waited[0]}"


def damage(work: Path, how: str) -> Iterator[str]:
    """Spoil the rows of the finished entry, and build again."""
    cache = work / "killed"
    [victim] = (cache / "embeddings").glob("*/*-rows-*")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content if how == "a flipped bit" else content[: len(content) // 2])
    command = build(cache, work / f"{how.replace(' ', '-')}.log")
    must(command.wait() == 0, command.said())
    warnings = [line for line in command.said().splitlines() if line.startswith("warning: ")]
    must(len(warnings) == 1, f"{how}: {command.said()}")
    yield f"{how}: {warnings[0]}"


def main(work: Path, kills: int, seed: int) -> None:
    random_ = random.Random(seed)
    work.mkdir(parents=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    start = time.monotonic()
    whole = build(work / "whole", work / "whole.log")
    must(whole.wait() == 0, whole.said())
    seconds = time.monotonic() - start
    good = tree(work / "whole")
    print(f"undisturbed: {seconds:.0f} s, {len(good)} files, load {os.getloadavg()[0]:.1f}", flush=True)

    def sweep(cache: Path, number: int) -> Command:
        folders = ("--cache-dir", cache, "--runs-dir", work / "runs")
        changes = ("--set", f"name=kills{number}", "--set", f"tracking.uri=sqlite:///{work / 'mlflow.db'}")
        return Command(work / f"sweep-{number}.log", "sweep", HERE / "spec.yaml", "--plain", *folders, *changes)

    steps: dict[str, tuple[Path, Iterator[str]]] = {
        f"{kills} kills": (work / "killed", killed(work, kills, seconds / 2, random_)),
        "a flipped bit": (work / "killed", damage(work, "a flipped bit")),
        "a truncated shard": (work / "killed", damage(work, "a truncated shard")),
        "two commands at once": (
            work / "twice",
            at_once(work, "twice", lambda cache, number: build(cache, work / f"twice-{number}.log")),
        ),
        "two sweeps at once": (work / "sweeps", at_once(work, "sweeps", sweep)),
    }
    for name, (cache, step) in steps.items():
        print(f"{name}:", flush=True)
        for line in step:
            print(f"  {line}", flush=True)
        found = tree(cache)
        must(found == good, f"{name}: {sorted(set(found.items()) ^ set(good.items()))}")
        print(f"  every byte is that of the undisturbed build (load {os.getloadavg()[0]:.1f})", flush=True)
    print(f"all well after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    main(arguments.work, arguments.kills, arguments.seed)
