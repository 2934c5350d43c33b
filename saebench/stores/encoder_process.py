"""`python -m saebench.stores.encoder_process`: one process, one device, the loaded encoder, parts in and files out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores.child_process import Message, run_child
from saebench.stores.manifest import ROWS_PER_PART, part_name, write_file
from saebench.stores.messages import one_line
from saebench.stores.prefetch import prefetch
from saebench.stores.sentence_encoder import AHEAD, SentenceEncoder

Piece = tuple[Message, list[str], tuple[Any, Any] | None, int]
"""A job, its texts, one batch of them (None after the last one), and how many of the texts the model cuts."""


def serve(requests: Iterator[Message], reply: Callable[[Message], None]) -> None:
    """Requests: {data, device, folder}, then jobs {shard, start, stop, digest, texts}. Replies: ready (d_in, info,
    fingerprint), progress (rows) now and then, done (job, name) per job."""
    setup = next(requests)
    encoder = SentenceEncoder(DataConfig.model_validate(setup["data"]), setup["device"])
    reply({"type": "ready", "d_in": encoder.d_in, "info": encoder.info(), "fingerprint": encoder.fingerprint})
    folder = Path(setup["folder"])
    batches: list[tuple[Any, Tensor]] = []
    meter = _Meter(reply)

    def finish(job: Message, texts: list[str], rows: list[tuple[Any, Tensor]], truncated: int) -> None:
        try:
            name = write_part(folder / "parts", job, encoder.assemble(texts, rows), encoder.data.dtype, truncated)
            reply({"type": "done", "job": job, "name": name})
        except Exception as error:  # whatever it is, the parent must hear of it: it waits for this piece
            message = str(error) if isinstance(error, DataError) else f"the encoder: {one_line(error)}"
            reply({"type": "error", "message": message})

    with ThreadPoolExecutor(1) as writer:  # the device goes on while a piece is checked and written
        for job, texts, batch, truncated in prefetch(_pieces(encoder, requests, folder, meter), AHEAD):
            if batch is not None:
                start = time.perf_counter()
                batches.append((batch[0], encoder.forward(batch[1])))
                meter.add(len(batch[0]), time.perf_counter() - start)
                continue
            meter.flush()
            writer.submit(finish, job, texts, batches, truncated)
            batches = []


def _pieces(encoder: SentenceEncoder, jobs: Iterator[Message], folder: Path, meter: _Meter) -> Iterator[Piece]:
    for job in jobs:
        texts = read_texts(folder / job["texts"], job["start"], job["stop"])
        with meter.preparing():
            tokenised = encoder.tokenise(texts)
        truncated = int(tokenised.truncated.sum())
        batches = encoder.batches(tokenised)
        while True:
            with meter.preparing():
                batch = next(batches, None)
            yield job, texts, batch, truncated
            if batch is None:
                break


def read_texts(path: Path, start: int, stop: int) -> list[str]:
    """Texts of rows start to stop of a shard; reads only the row groups that hold them."""
    from pyarrow.parquet import ParquetFile

    first, last = start // ROWS_PER_PART, (stop - 1) // ROWS_PER_PART
    with ParquetFile(path) as file:
        column = file.read_row_groups(list(range(first, last + 1)), columns=["text"]).column("text")
    texts: list[str] = column.slice(start - first * ROWS_PER_PART, stop - start).to_pylist()
    return texts


def write_part(folder: Path, job: Message, rows: Tensor, dtype: str, truncated: int) -> str:
    """Write (n, d_in) rows to a new file; return its name, which ends with the beginning of the content's checksum."""
    stored = rows.to(getattr(torch, dtype))
    if not bool(torch.isfinite(stored).all()):
        raise DataError(
            f"embeddings reach {float(rows.abs().max()):.3g}, more than {dtype} holds; use data.dtype: float32"
        )
    try:
        return write_file(folder, part_name(job, truncated), ".npy", lambda file: np.save(file, stored.numpy())).name
    except OSError as error:
        raise DataError(f"{folder}: cannot write: {one_line(error)}") from error


class _Meter:
    """Reports the number of encoded rows, five times a second at most, and the time spent on tokens and on the
    device."""

    def __init__(self, reply: Callable[[Message], None]) -> None:
        self._reply = reply
        self._rows = 0
        self._last = time.monotonic()
        self._device = self._tokens = self._told = 0.0

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count the time of the block as tokenising; it runs in another thread than the device's."""
        start = time.perf_counter()
        yield
        self._tokens += time.perf_counter() - start

    def add(self, rows: int, seconds: float) -> None:
        self._rows += rows
        self._device += seconds
        if time.monotonic() - self._last > 0.2:
            self.flush()

    def flush(self) -> None:
        now, tokens = time.monotonic(), self._tokens
        spent = {"tokens": tokens - self._told, "device": self._device, "all": now - self._last}
        self._reply({"type": "progress", "rows": self._rows, "seconds": spent})
        self._rows, self._last, self._device, self._told = 0, now, 0.0, tokens


if __name__ == "__main__":
    run_child(serve)
