"""Time one full optimiser step of our trainer beside other projects' trainers, on the same tensors, in turns.

    python experiments/benchmarks/train_step.py --batchtopk CHECKOUT --out table.md
    python experiments/benchmarks/train_step.py --device cuda --gpu-works --batchtopk CHECKOUT --out table.md
    python experiments/benchmarks/train_step.py --quick
    python experiments/benchmarks/train_step.py --parts 6144 12288 24576 --types topk batchtopk

Installs nothing: it uses those of sae-lens, dictionary-learning, eai-sparsify and overcomplete that are importable, and
BatchTopK's code from the folder given, and says what is missing. What a step is: see contestants.py and peers.py. No
latent is dead, so AuxK rests (but in the line that says so). Every round gives each contestant a turn, one step on the
CPU, some 40 ms of them on a GPU; the first table has medians over the rounds, and ratios of medians, which hold on a
busy machine when times do not. The second has what of the device's ceilings (ceilings.py) each reaches; the third, on a
GPU, what our step asks of the device and its host (on_device.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import on_device
import step_parts
import torch
from ceilings import Ceilings, Floor, measure_ceilings
from contestants import OURS, PRODUCT, contestants_for, start
from peers import PEERS
from timing import Arithmetic, Clock, measure, release, spread
from work import Work, make_work

TYPES = ("topk", "batchtopk", "vanilla", "jumprelu", "matryoshka", "omp")
REFERENCE = (2048, 384, 6144, 32)
LARGE = (4096, 768, 12288, 32)
QUICK = (256, 64, 512, 8)
Medians = dict[str, dict[str, float]]
"""Type -> contestant -> milliseconds."""


def table(results: Medians) -> list[str]:
    lines = _head("ms per step", results)
    for name in _names(results):
        lines.append(_row(name, [_ms(results[k][name]) if name in results[k] else "" for k in results]))
    variants = (OURS, f"{OURS} bf16") if any(f"{OURS} bf16" in times for times in results.values()) else (OURS,)
    return [
        *lines,
        *(_row(f"fastest peer / {ours}", [lead(times, ours) for times in results.values()]) for ours in variants),
    ]


def _head(first: str, results: Medians) -> list[str]:
    return [_row(first, list(results)), f"| --- |{' ---: |' * len(results)}"]


def _row(first: str, cells: list[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _names(results: Medians) -> list[str]:
    return list(dict.fromkeys(name for times in results.values() for name in times))


def _ms(milliseconds: float) -> str:
    """Three digits that count, where there are three."""
    return f"{milliseconds:.{2 if milliseconds >= 10 else 3}f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def lead(times: dict[str, float], ours: str = OURS) -> str:
    peers = {n: t for n, t in times.items() if not n.startswith((OURS, PRODUCT))}
    if not peers or ours not in times:
        return "no peer" if ours in times else ""
    fastest = min(peers, key=lambda name: peers[name])
    return f"{peers[fastest] / times[ours]:.1f}x ({fastest})"


def shares(results: Medians, arithmetic: dict[str, Arithmetic], ceilings: Ceilings, floor: Floor) -> list[str]:
    """Table of (share of the product ceiling, share of the copy ceiling) in percent: the floors over the times."""
    lines = _head("% of the ceiling: product, copy", results)
    for name in _names(results):
        if name.startswith(PRODUCT):
            continue
        by = floor.by_product(ceilings, arithmetic[name]), floor.by_copy(ceilings)
        cells = [
            ", ".join(f"{100 * part / times[name]:.1f}" for part in by) if name in times else ""
            for times in results.values()
        ]
        lines.append(_row(f"{name} ({arithmetic[name]})", cells))
    return lines


def compare(
    work: Work, kinds: list[str], rounds: int, clock: Clock, checkout: Path | None, ceilings: Ceilings
) -> tuple[list[str], bool]:
    """(lines, whether ours ran in every type) for one work."""
    results: Medians = {}
    arithmetic: dict[str, Arithmetic] = {}
    missing, remarks = set[str](), list[str]()
    for kind in kinds:
        torch.manual_seed(0)
        failed: dict[str, str] = {}
        found = contestants_for(kind, work, checkout, missing, failed)
        arithmetic |= {name: contestant.arithmetic for name, contestant in found.items()}
        times = measure(found, rounds, work.device, failed, clock)
        results[kind] = {name: statistics.median(values) for name, values in times.items()}
        remarks.append(f"{kind}: half of the rounds lie within {100 * spread(times):.0f}% or less, for each contestant")
        remarks += [f"{kind}: {name} failed: {why}" for name, why in failed.items()]
        found.clear()
        release(work.device)
    floor = Floor.of(work)
    lines = [*table(results), "", floor.describe(ceilings), "", *shares(results, arithmetic, ceilings, floor), ""]
    lines += [*(f"Missing: {what}." for what in sorted(missing)), *(f"{remark}." for remark in remarks)]
    return lines, all(OURS in times for times in results.values())


def on_gpu(work: Work, kinds: list[str]) -> list[str]:
    """What our step asks of the device and the host."""
    found = [on_device.report(kind, work) for kind in kinds]
    rows, lines = ([line for part in parts for line in part] for parts in zip(*found, strict=True))
    return [*on_device.HEAD, *rows, "", *lines]


def parts(kinds: list[str], shape: tuple[int, ...], widths: list[int], rounds: int) -> list[str]:
    """A table for each type; the floor of a part, where it has one, in brackets."""
    batch, d_in, _, k = shape
    lines = []
    for kind in kinds:
        measured = {}
        for width in widths:
            _, step = start(kind, make_work(batch, d_in, width, k))
            measured[width] = step_parts.measure_parts(step, rounds), step_parts.floors(batch, d_in, width)
        lines += [*step_parts.parts_table(kind, measured), ""]
    return lines


def machine(device: torch.device) -> str:
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    gpu = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; " if device.type == "cuda" else ""
    return (
        f"{gpu}{os.cpu_count()} cores {model or platform.processor()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> str:
    known = []
    for name in (*PEERS, "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(known) or "no peer installed"


class Output:
    """Prints lines, and keeps the file up to date, so that what is measured survives what comes after."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lines = path, list[str]()

    def add(self, *lines: str) -> None:
        print("\n".join(lines), flush=True)
        self._lines += lines
        if self._path:
            self._path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batchtopk", type=Path, help="checkout of bartbussmann/BatchTopK")
    parser.add_argument("--types", nargs="+", default=list(TYPES[:4]), choices=TYPES, help="architectures")
    parser.add_argument(
        "--work",
        nargs=4,
        type=int,
        action="append",
        metavar=("BATCH", "D", "F", "K"),
        help="may be given several times",
    )
    parser.add_argument("--gpu-works", action="store_true", help=f"both works to compare GPUs by: {REFERENCE}, {LARGE}")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time on one thread, for a busy machine"
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant")
    parser.add_argument(
        "--parts",
        nargs="+",
        type=int,
        metavar="F",
        help="instead: our step part by part at these widths, on one thread of the CPU",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of small work: does it run?")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and (chosen.parts or chosen.clock == "cpu"):
        parser.error("--parts and --clock cpu are for the CPU")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    return chosen


def works(chosen: argparse.Namespace) -> list[tuple[int, int, int, int]]:
    if chosen.quick:
        return [QUICK]
    named = [*([REFERENCE, LARGE] if chosen.gpu_works else []), *map(tuple, chosen.work or [])]
    return list(dict.fromkeys(named or [REFERENCE]))


def main() -> int:
    chosen = arguments()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", message=on_device.FALLBACK)
    shapes, rounds = works(chosen), 2 if chosen.quick else chosen.rounds
    if chosen.clock == "cpu":
        torch.set_num_threads(1)
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    device, out = make_work(*QUICK, chosen.device).device, Output(chosen.out)
    if chosen.parts:
        out.add(f"{machine(device)}.", "", *parts(chosen.types, shapes[0], chosen.parts, rounds))
        return 0
    ceilings = measure_ceilings(device, clock, chosen.quick)
    out.add(f"{machine(device)}.", f"{versions()}.", f"Ceilings: {ceilings}.")
    complete = True
    for shape in shapes:
        work = make_work(*shape, chosen.device)
        out.add("", f"{work}; median of {rounds} rounds, {chosen.clock} time.", "")
        lines, whole = compare(work, chosen.types, rounds, clock, chosen.batchtopk, ceilings)
        out.add(*lines)
        complete &= whole
    for shape in shapes if device.type == "cuda" else []:  # last: a profiler may take the process with it
        work = make_work(*shape, chosen.device)
        out.add("", f"{work}.", "", *on_gpu(work, chosen.types))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
