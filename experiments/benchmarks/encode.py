"""Encoding and reading: the cache's way against the plain loop, and batches out of a cache of a million rows.

    python experiments/benchmarks/encode.py [--texts 2000] [--rounds 2] [--rows 1000000] [--device cpu|cuda]

Encoding. The plain loop is what a training script does: batches of 64 in the order of the stream, each through
`model.encode`. Ours is what an encoding process of the cache does: windows of 1,024 texts sorted by tokens, batches of
about equal numbers of tokens, in float32, in bfloat16 (autocast) and, on a GPU, in float16. All ways run in this
process, one after the other, `--rounds` times; the best round counts. On a GPU, what they consist of stands beside
them: the tokens alone and the device alone, of which the longer hides the other. The last rows encode the same texts by
`cache.build`, on the CPU with one process per core, on a GPU with one process and with several: texts per second from
the first text encoded to the last, then everything, starting processes included. More texts than there are glosses are
pairs of these.

Reading. An entry of `--rows` × 384 random rows is written below a temporary folder; then: finding it, opening a store
on it, and batches of 2,048 on one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet
import torch
from reading import reading
from timing import reason, synchronize
from torch import Tensor

from saebench.config import DataConfig, DatasetConfig
from saebench.devices import find_devices
from saebench.stores import cache
from saebench.stores.manifest import ROWS_PER_PART
from saebench.stores.prefetch import prefetch
from saebench.stores.sentence_encoder import AHEAD, Batch, SentenceEncoder

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[2]
GLOSSES = REPOSITORY / "sweeps" / "data" / "wordnet_glosses.parquet"
PLAIN_BATCH = 64
TEXTS = {"cpu": 2_000, "cuda": 60_000}
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
WARM_UP = 4_096
"""Texts encoded before the first round on a GPU, where every new shape costs something once; 256 on the CPU."""
SHARED = (2, 4)
"""Encoding processes on one GPU, beside one: for tokens that take longer than the device."""


def config(count: int, precision: str = "float32", texts: Path = GLOSSES) -> DataConfig:
    return DataConfig(
        model="sentence-transformers/all-MiniLM-L6-v2",
        dataset=DatasetConfig(path="parquet", data_files=str(texts)),
        num_examples=count,
        precision=precision,
    )


def corpus(count: int, folder: Path) -> tuple[Path, list[str]]:
    """(data file, its first `count` texts): the glosses, or, where these are too few, distinct pairs of them."""
    glosses = pyarrow.parquet.read_table(GLOSSES)["text"].to_pylist()
    n = len(glosses)
    if count <= n:
        return GLOSSES, glosses[:count]
    texts = [f"{glosses[i % n]}; {glosses[(7919 * i + i // n + 1) % n]}" for i in range(count)]
    path = folder / "texts.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    return path, texts


def plain(encoder: SentenceEncoder, texts: Sequence[str]) -> Tensor:
    """Batches in the order of the stream, each through `model.encode`."""
    rows = [
        encoder.model.encode(texts[start : start + PLAIN_BATCH], batch_size=PLAIN_BATCH, convert_to_tensor=True)
        for start in range(0, len(texts), PLAIN_BATCH)
    ]
    return torch.cat(rows).cpu()


def windows(texts: Sequence[str]) -> list[Sequence[str]]:
    """As the cache cuts them."""
    return [texts[start : start + ROWS_PER_PART] for start in range(0, len(texts), ROWS_PER_PART)]


def ours(encoder: SentenceEncoder, texts: Sequence[str]) -> Tensor:
    """As an encoding process does: tokens are made ahead, and a window is put together while the next is computed."""
    done: list[Future[Tensor]] = []
    rows: list[tuple[Any, Tensor]] = []
    with ThreadPoolExecutor(1) as beside:
        for window, batch in prefetch(pieces(encoder, texts), AHEAD):
            if batch is None:
                done.append(beside.submit(encoder.assemble, window, rows))
                rows = []
            else:
                rows.append((batch[0], encoder.forward(batch[1])))
    return torch.cat([one.result() for one in done])


def pieces(encoder: SentenceEncoder, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], Batch | None]]:
    """Every batch with its window, and None after a window's last."""
    for window in windows(texts):
        yield from ((window, batch) for batch in encoder.batches(encoder.tokenise(window)))
        yield window, None


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """(seconds, result)."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


def alone(encoders: dict[str, SentenceEncoder], texts: Sequence[str]) -> dict[str, float]:
    """Seconds of preparing the batches, and of the device, for each precision, with batches that are prepared."""
    encoder = next(iter(encoders.values()))
    seconds = {}
    seconds["tokens"], batches = timed(partial(_prepare, encoder, texts), encoder.device)
    for precision, one in encoders.items():
        seconds[f"device, {precision}"], _ = timed(partial(_forward, one, batches), one.device)
    return seconds


def _prepare(encoder: SentenceEncoder, texts: Sequence[str]) -> list[Batch]:
    return [batch for _, batch in pieces(encoder, texts) if batch is not None]


def _forward(encoder: SentenceEncoder, batches: Sequence[Batch]) -> None:
    for _, features in batches:
        encoder.forward(features)


def encoding(texts: Sequence[str], path: Path, rounds: int, device: str) -> None:
    on_gpu = device == "cuda"
    encoders = {p: SentenceEncoder(config(len(texts), p, path), device) for p in PRECISIONS[device]}
    base, exact = f"plain loop, batches of {PLAIN_BATCH}", encoders["float32"]
    ways: dict[str, Callable[[], Tensor]] = {base: partial(plain, exact, texts)}
    ways |= {f"sorted windows, {p}": partial(ours, encoder, texts) for p, encoder in encoders.items()}
    for encoder in encoders.values():
        ours(encoder, texts[: WARM_UP if on_gpu else 256])  # allocators, thread pools, kernels
    seconds = dict.fromkeys(ways, float("inf"))
    rows: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, encode in ways.items():
            spent, rows[name] = timed(encode, exact.device)
            seconds[name] = min(seconds[name], spent)
    _print_head(len(texts), device)
    plain_rate = len(texts) / seconds[base]
    for name in ways:
        cosine = torch.nn.functional.cosine_similarity(rows[name], rows[base])
        _print_row(name, len(texts) / seconds[name], plain_rate, f"{cosine.mean():.6f} / {cosine.min():.6f}")
    for name, spent in alone(encoders, texts).items() if on_gpu else ():
        _print_row(f"{name} alone", len(texts) / spent, plain_rate)
    builds(len(texts), path, device, plain_rate)


def _print_head(count: int, device: str) -> None:
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    print(f"\n{count:,} texts, {device}{name}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| way | texts/s | against plain | cosine to plain, mean / min |\n|---|---|---|---|")


def _print_row(name: str, rate: float, plain_rate: float, remark: str = "") -> None:
    print(f"| {name} | {rate:,.0f} | {rate / plain_rate:.1f}x | {remark} |", flush=True)


def builds(count: int, path: Path, device: str, plain_rate: float) -> None:
    """Rows for `cache.build`."""
    for precision, devices in places(one_of_each(device)):
        where = f", {len(devices)} on {len(set(devices))} GPU" if device == "cuda" else ""
        try:
            rate, whole = built(config(count, precision, path), devices)
        except Exception as error:  # one that fails must not hide the others
            print(f"| cache.build, {precision}{where} | {reason(error)} | | |", flush=True)
        else:
            _print_row(f"cache.build, {precision}{where}", rate, plain_rate, f"{whole:.0f} s in all")


def places(devices: list[str]) -> list[tuple[str, list[str]]]:
    """(precision, devices, each as often as it has processes) of the builds to time."""
    found = [(precision, devices[:1]) for precision in ("float32", "bfloat16")]
    if devices[0] != "cpu":
        found += [("bfloat16", devices[:1] * processes) for processes in SHARED]
    return [*found, *([("bfloat16", devices)] if len(devices) > 1 else [])]


def one_of_each(device: str) -> list[str]:
    """The devices of a kind, as `cache.build` wants them named."""
    if device != "cuda":
        return [device]
    return [name for name, _ in find_devices("auto") if name.startswith("cuda")] or ["cuda"]


def built(data: DataConfig, devices: Sequence[str]) -> tuple[float, float]:
    """(texts per second while encoding, seconds in all) of a build from nothing."""
    times: list[tuple[float, int]] = []

    def watch(now: cache.Progress) -> None:
        if now.stage == "encoding":
            times.append((time.perf_counter(), now.done))

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache.build(data, Path(folder), devices, watch)
        end = time.perf_counter()
    (first, there), (last, total) = times[0], times[-1]
    return (total - there) / (last - first) if last > first else float("nan"), end - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--texts", type=int, help=f"default: {TEXTS['cpu']:,}, on a GPU {TEXTS['cuda']:,}; 0: no encoding"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: no reading")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="a few texts and rows: does it run?")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    texts = TEXTS[chosen.device] if chosen.texts is None else chosen.texts
    rows, rounds, batches = chosen.rows, chosen.rounds, 500
    if chosen.quick:
        texts, rows, rounds, batches = min(texts, 300), min(rows, 20_000), 1, 20
    if texts:
        with tempfile.TemporaryDirectory() as folder:
            path, found = corpus(texts, Path(folder))
            encoding(found, path, rounds, chosen.device)
    if rows:
        reading(config(rows), chosen.device, batches)


if __name__ == "__main__":
    main()
