"""Small corpora, a quick encoder, and the processes of the cache as threads."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saebench.errors import DataError
from saebench.stores import child_process, encoder_process, reader_process

WORDS = (
    "anvil",
    "birch",
    "comet",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "islet",
    "jetty",
    "kelp",
    "lumen",
    "moss",
    "north",
    "opal",
    "prism",
)


class HashModel:
    """As much of a SentenceTransformer as the cache uses: a text's row is a function of its hash alone, except that
    "nan" in a text gives NaN. Counts the texts it was given."""

    max_seq_length = None
    seen: list[str]

    def __init__(self, d_in: int = 8) -> None:
        self.d_in, self.seen = d_in, []

    def eval(self) -> HashModel:
        return self

    def preprocess(self, texts: Sequence[str], prompt: str | None = None) -> dict[str, Any]:
        texts = [(prompt or "") + text for text in texts]
        self.seen += texts
        return {"rows": torch.stack([self.row(text) for text in texts])}

    def row(self, text: str) -> torch.Tensor:
        digest = hashlib.sha256(text.encode()).digest()[: self.d_in]
        return torch.tensor([float("nan") if "nan" in text else byte / 128 - 1 for byte in digest])

    def __call__(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": features["rows"]}

    def encode(self, texts: Sequence[str], **_: Any) -> torch.Tensor:
        with torch.inference_mode():
            return self(self.preprocess(texts))["sentence_embedding"]


class ThreadChild:
    """A child of the cache that is a thread of this process: same conversation, same code."""

    def __init__(self, module: str, name: str, _: Mapping[str, str], inbox: child_process.Inbox) -> None:
        self.name, self._inbox = name, inbox
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._serve = {
            "saebench.stores.reader_process": reader_process.serve,
            "saebench.stores.encoder_process": encoder_process.serve,
        }[module]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        why = "ended with status 0"
        try:
            self._serve(iter(self._requests.get, None), self._reply)
        except DataError as error:
            self._reply({"type": "error", "message": str(error)})
        except Exception as error:
            why = f"ended with status 1: {error}"
        self._reply({"type": "gone", "why": why})

    def _reply(self, message: dict[str, Any]) -> None:
        self._inbox.put((self, json.loads(json.dumps(message))))  # type: ignore[arg-type]

    def send(self, message: dict[str, Any]) -> None:
        self._requests.put(json.loads(json.dumps(message)))

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join()


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different short texts."""
    return [
        " ".join(WORDS[b % 16] for b in hashlib.md5(f"{seed} {i}".encode()).digest()[: 3 + i % 9]) + f" {i}"
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON lines; a string becomes {"text": ..., "label": its length}."""
    rows = [{"text": row, "label": len(row)} if isinstance(row, str) else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_static_model(folder: Path) -> str:
    """Write a SentenceTransformer that encodes thousands of texts a second: a table of word vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS, *map(str, range(10))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    table = torch.randn(len(vocabulary), 12, generator=torch.Generator().manual_seed(0))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu").save(str(folder))
    return str(folder)
