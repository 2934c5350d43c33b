"""Serve mini-batches directly from a stream of texts: read, encode, shuffle.

The training texts are processed in blocks. Each block is split at random in two: one half is served now, shuffled with
the half kept from the block before; the other half is kept for the next block. So rows of neighbouring blocks mix, no
row waits longer than one block, and two blocks and an offset are the whole position of a store: resuming encodes at
most these two blocks again, and is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor

from saebench.errors import DataError
from saebench.stores.blocks import Block, StreamSettings, seed_of
from saebench.stores.survey import Survey, labels_of
from saebench.stores.tensor import TensorActivationStore
from saebench.stores.texts import Division, Part, Text


class DataExhausted(RuntimeError):  # noqa: N818 - a state of the stream, like StopIteration
    """Raised when every text has been read: the dataset ended, or the cap on examples is reached."""


class StreamedRows:
    """The mini-batches of a stream of texts for one trial. `texts` starts a new pass over the (clean) texts, `embed`
    encodes."""

    def __init__(
        self,
        texts: Callable[[], Iterator[Text]],
        embed: Callable[[list[str]], Tensor],
        settings: StreamSettings,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        self._texts, self._embed = texts, embed
        self._division = Division(settings.validation, settings.test)
        self._survey: Survey | None = None
        self._held: dict[Part, Tensor] = {}
        self._width: int | None = None
        self._aside: frozenset[int] = frozenset()
        self._begin(Block(0, 0, 0), Block(0, 0, 0), 0)

    def _begin(self, before: Block, current: Block, offset: int) -> None:
        """Set the position to row `offset` of the pool that consists of `current` and the half kept from `before`."""
        self._stream: Iterator[Text] = iter(())
        self._at = Block(-1, 0, 0)
        self._blocks = before, current
        self._offset = offset
        self._pool = torch.empty(0, 0, dtype=torch.float32)
        self._later = torch.empty(0, 0, dtype=torch.float32)
        if current.count or before.count:
            self._later = self._split(before)[1] if before.count else self._later
            self._pool = self._mix(current)

    # --- the store of a trial ----------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        if self._width is None:
            self._width = int(self._embed(["What does one row hold?"]).shape[1])
        return self._width

    @property
    def num_train(self) -> int:
        """Number of training texts; the first call reads all texts, without encoding them."""
        return self._surveyed().train

    @property
    def num_validation(self) -> int:
        """Number of validation texts kept; the first call reads all texts."""
        return len(self._surveyed().held["validation"])

    @property
    def num_test(self) -> int:
        """Number of test texts kept; the first call reads all texts."""
        return len(self._surveyed().held["test"])

    def next_batch(self) -> Tensor:
        """Return (batch_size, d_in) float32. At the end of a stream that does not repeat, return the remaining rows,
        then raise DataExhausted."""
        parts: list[Tensor] = []
        missing = self.settings.batch_size
        while missing:
            if self._offset >= len(self._pool):
                try:
                    self.next_pool()
                except DataExhausted:
                    if parts:
                        break
                    raise
            parts.append(self._pool[self._offset : self._offset + missing])
            self._offset += len(parts[-1])
            missing -= len(parts[-1])
        return torch.cat(parts).to(self.device)

    def next_pool(self) -> Tensor:
        """Return the next shuffled pool of rows, which `next_batch` then serves; drop the rest of the current pool."""
        before = self._blocks[1]
        while True:
            start = self._at
            try:
                rows = self.fill()
                current = Block(self._at.epoch, self._at.start + self._at.count - len(rows), len(rows))
                break
            except DataExhausted:
                if len(self._later):
                    rows, current = self._later[:0], Block(self._at.epoch, self._at.start + self._at.count, 0)
                    break
                if not self.settings.endless:
                    raise
                if start == Block(self._at.epoch, 0, 0):
                    raise DataError(
                        "data.dataset: no text to train on; check its path, split and text column"
                    ) from None
                self._open(self._at.epoch + 1, 0)
        self._blocks, self._offset = (before, current), 0
        self._pool = self._mix(current, rows)
        return self._pool

    def fill(self) -> Tensor:
        """Encode the next block: up to batches_in_buffer batches of texts, (rows, d_in). Raises DataExhausted."""
        texts: list[str] = []
        for _ in range(self.settings.batches_in_buffer):
            try:
                texts += self.next_texts()
            except DataExhausted:
                break
        if not texts:
            raise DataExhausted("every text has been read: the dataset ended or its cap is reached")
        return self._embed(texts)

    def next_texts(self) -> list[str]:
        """Return up to encode_batch training texts, in the order of the stream. Raises DataExhausted at its end."""
        if self._at.epoch < 0:
            self._open(0, 0)
        texts = [text.text for text in islice(self._stream, self.settings.encode_batch)]
        if not texts:
            raise DataExhausted("every text has been read: the dataset ended or its cap is reached")
        self._at = Block(self._at.epoch, self._at.start, self._at.count + len(texts))
        return texts

    def sample(self, n: int) -> Tensor:
        """Return (min(n, num_train), d_in) training rows: those of the lowest text hashes, in the stream's order."""
        return self._embed_all(self._surveyed(n).sample).to(self.device)

    def set_aside(self, n: int, places: Tensor) -> None:
        """From now on `next_batch` returns none of these rows of `sample(n)`, unless there are no others; see
        `_training`."""
        sample = self._surveyed(n).sample
        aside = frozenset(sample[place].hash for place in places.tolist())
        if aside == self._aside:
            return
        self._aside, at = aside, self._at
        self._begin(*self._blocks, self._offset)
        if at.epoch >= 0:
            self._open(at.epoch, at.start + at.count)

    def sample_labels(self, n: int) -> list[Any] | None:
        return labels_of(self._surveyed(n).sample)

    def part(self, part: Part, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows of validation or test (at most survey.PART_LIMIT), which are encoded once."""
        if part not in self._held:
            self._held[part] = self._embed_all(self._surveyed().held[part])
        for start in range(0, len(self._held[part]), batch_size):
            yield self._held[part][start : start + batch_size].to(self.device)

    def labels(self, part: Part) -> list[Any] | None:
        """Return the labels in the order of `part()`."""
        return labels_of(self._surveyed().held[part])

    def state_dict(self) -> dict[str, Any]:
        """Return the position, two blocks and an offset, as JSON-able values."""
        before, current = self._blocks
        blocks = {"before": asdict(before), "current": asdict(current)}
        return {"kind": "streamed", **asdict(self.settings), **blocks, "offset": self._offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position: read the texts again up to it and encode at most two blocks. Raises DataError if settings
        or texts differ."""
        for key, value in {"kind": "streamed", **asdict(self.settings)}.items():
            if state.get(key) != value:
                raise DataError(
                    f"saved position: {key}: {state.get(key)!r}, but this store has {value!r}; load it into a store "
                    "with the same settings"
                )
        self._begin(Block(**state["before"]), Block(**state["current"]), int(state["offset"]))

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _open(self, epoch: int, skip: int) -> None:
        """Start a pass over the training texts and skip the first `skip`."""
        self._stream = self._training()
        found = sum(1 for _ in islice(self._stream, skip))
        if found < skip:
            raise DataError(
                f"data.dataset: has {found:,} training texts, but {skip:,} were read before the saved position: it has "
                "changed; restore it, or start without the saved position"
            )
        self._at = Block(epoch, skip, 0)

    def _training(self) -> Iterator[Text]:
        """Yield the training texts of a pass. Each text that is set aside is replaced by the last one before it that is
        not (at the start: the first that is not), so that every text keeps its number."""
        free: Text | None = None
        waiting: list[Text] = []
        for text in self._texts():
            if self._division.part(text.hash) != "train":
                continue
            if text.hash not in self._aside:
                free = text
                yield from repeat(free, len(waiting) + 1)
                waiting.clear()
            elif free is not None:
                yield free
            else:
                waiting.append(text)
        yield from waiting  # there are no others

    def _again(self, block: Block) -> Tensor:
        """Encode again a block that was used before."""
        if (self._at.epoch, self._at.start + self._at.count) != (block.epoch, block.start):
            self._open(block.epoch, block.start)
        if block.count == 0:
            return torch.empty(0, self.d_in, dtype=torch.float32)
        rows = self.fill()
        if len(rows) != block.count:
            raise DataError(
                "saved position: the dataset has changed since; restore it, or start without the saved position"
            )
        return rows

    def _split(self, block: Block, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return two random halves of a block: (to use now, to keep)."""
        rows = self._again(block) if rows is None else rows
        if len(rows) == 0:
            return rows, rows
        buffer = TensorActivationStore(
            len(rows), rows.shape[1], device=rows.device, seed=seed_of(self.settings, block, 0)
        )
        buffer.extend(rows)
        buffer.shuffle()
        mixed = buffer[:].squeeze(1)
        return mixed[: (len(mixed) + 1) // 2], mixed[(len(mixed) + 1) // 2 :]

    def _mix(self, block: Block, rows: Tensor | None = None) -> Tensor:
        """Return the next pool: half of this block, shuffled with the half kept from the block before."""
        now, later = self._split(block, rows)
        pool = torch.cat([part for part in (self._later, now) if len(part)])
        self._later = later
        generator = torch.Generator().manual_seed(seed_of(self.settings, block, 1))
        return pool[torch.randperm(len(pool), generator=generator).to(pool.device)]

    # --- parts and sample -----------------------------------------------------------------------------------------

    def _surveyed(self, sample: int = 0) -> Survey:
        """Return a survey with a sample of that size; with any size for 0."""
        if self._survey is None or sample not in (0, self._survey.asked):
            self._survey = Survey.of(self._texts(), self._division, sample)
        return self._survey

    def _embed_all(self, texts: Sequence[Text]) -> Tensor:
        size = self.settings.encode_batch * self.settings.batches_in_buffer
        parts = [
            self._embed([text.text for text in texts[start : start + size]]) for start in range(0, len(texts), size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.d_in, dtype=torch.float32)
