"""Every trainer at its best learning rate and equal L0: the table of peers.

    python matched.py deb-minilm results.jsonl [--kinds topk batchtopk] [--samples 51200] [--batch 256] [--coarse]

For each type and each trainer: the learning rate is doubled or halved from a start until the best has a worse neighbour
on both sides, then the two midpoints are tried (factor sqrt(2); `--coarse` leaves them out on both sides); seed 0
searches, the other seeds repeat what was chosen. Where
a trainer takes a penalty instead of an L0, its coefficient is moved until the L0 is bracketed, and FVU is interpolated,
ln FVU against ln L0. Ours is run with its defaults, too. Runs that are in the results file already are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from study import run

TYPES = ["topk", "batchtopk", "jumprelu", "vanilla", "matryoshka", "gated", "p_anneal"]
PEER_TYPES: dict[str, list[str]] = {
    "SAELens": ["topk", "batchtopk", "jumprelu", "vanilla", "matryoshka", "gated"],
    "dictionary-learning": TYPES,
    "BatchTopK's code": ["topk", "batchtopk", "jumprelu", "vanilla"],
}
START_COEFF: dict[tuple[str, str], float] = {
    ("SAELens", "jumprelu"): 0.5,
    ("SAELens", "vanilla"): 2.0,
    ("SAELens", "gated"): 2.0,
    ("dictionary-learning", "vanilla"): 0.05,
    ("dictionary-learning", "gated"): 0.05,
    ("dictionary-learning", "p_anneal"): 0.05,
    ("BatchTopK's code", "jumprelu"): 0.01,
    ("BatchTopK's code", "vanilla"): 0.05,
}
"""Coefficients to begin the search with; a type that is not here takes k, or an L0 to aim at."""
K_TYPES = ("topk", "batchtopk", "matryoshka")
FIXED_COEFF = {("dictionary-learning", "jumprelu"): 1.0}
MOST_COEFFS, NEAR, EXACT = 5, 0.02, 0.002
MOST_FACTOR, OUT_OF_REACH = 64, 0.25
"""Of a coefficient, from where its search begins; distance in ln L0 beyond which nothing is extrapolated."""

Setting = dict[str, Any]
Result = dict[str, float]


class Book:
    """Results by setting, kept in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.known = {json.dumps(line.pop("setting"), sort_keys=True): line for line in lines}

    def __call__(self, setting: Setting) -> Result:
        key = json.dumps(setting, sort_keys=True)
        if key not in self.known:
            try:
                found = run(setting)
            except FloatingPointError as error:
                found = {"fvu": math.inf, "l0": math.nan}
                print(f"{setting}: {error}", flush=True)
            self.known[key] = found
            with self.path.open("a") as file:
                print(json.dumps({"setting": setting, **found}), file=file)
        return self.known[key]


def at_l0(points: list[tuple[float, float]], l0: float) -> float:
    """FVU at `l0` from points (L0, FVU): between the nearest below and above, or along the two nearest."""
    known = sorted((p for p in points if math.isfinite(p[1]) and p[0] > 0), key=lambda p: abs(math.log(p[0] / l0)))
    if not known:
        return math.inf
    below = next((p for p in known if p[0] <= l0), None)
    above = next((p for p in known if p[0] > l0), None)
    pair = [p for p in (below, above) if p is not None]
    if len(pair) < 2 and abs(math.log(known[0][0] / l0)) > OUT_OF_REACH:
        return math.inf
    if len(pair) < 2:
        pair = known[:2]
    if len(pair) < 2 or pair[0][0] == pair[1][0]:
        return pair[0][1]
    (a, f), (b, g) = pair
    share = math.log(l0 / a) / math.log(b / a)
    return math.exp(math.log(f) + share * (math.log(g) - math.log(f)))


def ours(book: Book, setting: Setting, factor: float) -> float:
    """FVU of saebench at the L0 of the setting, with `factor` times its own lr."""
    points, l0 = [], setting["k"]
    target = l0
    for _ in range(2):
        found = book({**setting, "k": target, "train": _train(setting, factor)})
        points.append((found["l0"], found["fvu"]))
        if setting["kind"] in K_TYPES or not abs(found["l0"] / l0 - 1) > EXACT:
            return found["fvu"]
        target = round(target * l0 / found["l0"], 2)
    return at_l0(points, l0)


def _train(setting: Setting, factor: float) -> Setting:
    return {"batch_size": setting["batch_size"], **({} if factor == 1 else {"lr_factor": factor})}


def theirs(book: Book, setting: Setting, lr: float) -> float:
    """FVU of a peer at the L0 of the setting and this lr; a penalty's coefficient is moved until it is there."""
    pair = (setting["peer"], setting["kind"])
    if pair not in START_COEFF:
        fixed = {"coeff": FIXED_COEFF[pair]} if pair in FIXED_COEFF else {}
        return book({**setting, **fixed, "lr": lr})["fvu"]
    l0 = setting["k"]
    tried: list[tuple[float, float, float]] = []
    coeff = start = _coeff_near(book, setting, lr)
    for _ in range(MOST_COEFFS):
        found = book({**setting, "coeff": coeff, "lr": lr})
        tried.append((coeff, found["l0"], found["fvu"]))
        sound = [t for t in tried if t[1] > 0]
        low, high = [t for t in sound if t[1] <= l0], [t for t in sound if t[1] > l0]
        if any(abs(t[1] / l0 - 1) < NEAR for t in sound):
            break
        if low and high and min(t[1] for t in high) / max(t[1] for t in low) < 1.4:
            break
        coeff = float(f"{_next_coeff(coeff, found['l0'] / l0, low, high, l0):.4g}")
        if not start / MOST_FACTOR <= coeff <= start * MOST_FACTOR:
            break
    return at_l0([(found, fvu) for _, found, fvu in tried], l0)


def _coeff_near(book: Book, setting: Setting, lr: float) -> float:
    """The coefficient whose L0 was nearest, of runs at the lr nearest to this one."""
    pair = (setting["peer"], setting["kind"])
    same = [
        (abs(math.log(s["lr"] / lr)), abs(math.log(found["l0"] / setting["k"])), s["coeff"])
        for key, found in book.known.items()
        if (s := json.loads(key)).get("peer") == pair[0]
        and all(s[name] == setting[name] for name in ("kind", "corpus", "dict_size", "k"))
        and found["l0"] > 0
    ]
    return min(same)[2] if same else START_COEFF[pair]


def _next_coeff(coeff: float, over: float, low: list[Any], high: list[Any], l0: float) -> float:
    if low and high:
        (a, la, _), (b, lb, _) = max(low, key=lambda t: t[1]), min(high, key=lambda t: t[1])
        share = min(0.85, max(0.15, math.log(l0 / la) / math.log(lb / la)))
        return math.exp(math.log(a) + share * math.log(b / a))
    return coeff * min(4.0, max(0.25, over))


def climb(value: Callable[[float], float], start: float, fine: bool) -> tuple[float, float]:
    """The best of start * 2^i, worse ones on both sides, and, if `fine`, of the two midpoints beside it: (where,
    value)."""
    known = {0: value(start)}
    while True:
        best = min(known, key=lambda i: known[i])
        if not math.isfinite(known[best]) and len(known) > 6:
            return start, math.inf
        missing = [i for i in (best - 2, best + 2) if i not in known]
        if not missing:
            break
        known[missing[0]] = value(_at(start, missing[0]))
    for i in (best - 1, best + 1) if fine else ():
        known[i] = value(_at(start, i))
    best = min(known, key=lambda i: known[i])
    return _at(start, best), known[best]


def _at(start: float, halves: int) -> float:
    return float(f"{start * 2 ** (halves / 2):.4g}")


def row(book: Book, common: Setting, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: FVU at the L0, mean over seeds, of ours (default, best lr) and of each peer."""
    seeds, fine = range(options.seeds), not options.coarse
    setting = {**common, "kind": kind}
    found: dict[str, Any] = {"corpus": common["corpus"], "type": kind, "dict_size": common["dict_size"]}
    found["ours, defaults"] = _mean(ours(book, {**setting, "seed": seed}, 1) for seed in seeds)
    factor, _ = climb(lambda f: ours(book, {**setting, "seed": 0}, f), 1.0, fine)
    found["ours, best lr"], found["factor"] = _mean(ours(book, {**setting, "seed": s}, factor) for s in seeds), factor
    for peer, kinds in PEER_TYPES.items():
        if kind not in kinds or peer not in options.peers:
            continue
        asked = {**setting, "peer": peer}
        lr, _ = climb(lambda lr, asked=asked: theirs(book, {**asked, "seed": 0}, lr), options.start, fine)
        found[peer] = _mean(theirs(book, {**asked, "seed": seed}, lr) for seed in seeds)
        found[f"{peer}, lr"] = lr
        print(json.dumps(found), flush=True)
    return found


def _mean(values: Any) -> float:
    some = list(values)
    return sum(some) / len(some)


FIELDS = ["corpus", "kind", "dict_size", "k", "samples", "batch_size", "seed", "peer", "lr", "coeff"]
FOUND = ["fvu", "train_fvu", "l0", "dead", "seconds"]


def write_csv(book: Book, path: Path) -> None:
    """All runs of the book, a line each; `k` is the L0 that was aimed at, an empty `peer` is saebench."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*FIELDS, *FOUND])
        for key, found in book.known.items():
            asked = {**json.loads(key), "lr": found.get("lr", "")}
            values = [found.get(name, "") for name in FOUND]
            rounded = [f"{value:.4g}" if isinstance(value, float) else value for value in values]
            out.writerow([*(asked.get(name, "") for name in FIELDS), *rounded])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("results", type=Path)
    parser.add_argument("--kinds", nargs="*", default=TYPES)
    parser.add_argument("--dict-size", type=int, default=1536)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--samples", type=int, default=51_200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peers", nargs="*", default=list(PEER_TYPES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--coarse", action="store_true", help="learning rates by factors of 2 only")
    parser.add_argument("--start", type=float, default=0.004, help="learning rate at which a peer's search begins")
    parser.add_argument("--csv", type=Path, help="write all runs of the results file there, and train nothing")
    options = parser.parse_args()
    if options.csv:
        write_csv(Book(options.results), options.csv)
        return
    torch.set_num_threads(1)
    book = Book(options.results)
    common: Setting = {"corpus": options.corpus, "dict_size": options.dict_size, "k": options.l0}
    common |= {"samples": options.samples, "batch_size": options.batch}
    for kind in options.kinds:
        print("ROW", json.dumps(row(book, common, kind, options)), flush=True)


if __name__ == "__main__":
    main()
