"""The training steps that are timed: ours in several ways, those of other projects (peers.py), and a yardstick.

A step is forward, loss, backward, clipping, decoder norm and Adam. Everything is on the device of the work's rows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import PEERS, batchtopk_code
from timing import Arithmetic, Contestant, Step, reason
from torch import Tensor
from work import STEPS, Work

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.trial.trainer import Training

OURS = "saebench"
PRODUCT = "encoder product"
K_SPARSE = ("topk", "batchtopk", "matryoshka")


def encoder_product(work: Work, arithmetic: Arithmetic = "float32") -> Contestant:
    """The yardstick: x @ W_enc + b_enc, as torch does it."""
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    weight = torch.randn(work.d_in, work.dict_size, device=work.device, dtype=dtype)
    bias, x = torch.zeros(work.dict_size, device=work.device, dtype=dtype), work.rows[: work.batch].to(dtype)
    return Contestant(lambda: torch.addmm(bias, x, weight), arithmetic, tf32=arithmetic == "tf32")


def products(work: Work) -> dict[str, Callable[[], Contestant]]:
    """In float32, and on a GPU in what its matrix units are for."""
    found: dict[str, Callable[[], Contestant]] = {PRODUCT: partial(encoder_product, work)}
    lower: tuple[Arithmetic, ...] = ("tf32", "bfloat16") if work.device.type == "cuda" else ()
    return found | {f"{PRODUCT}, {arithmetic}": partial(encoder_product, work, arithmetic) for arithmetic in lower}


# --- ours ------------------------------------------------------------------------------------------------------------


class Rows:
    """A store that holds the rows of the work."""

    def __init__(self, work: Work) -> None:
        self.d_in, self.num_train, self._rows = work.d_in, len(work.rows), work.rows
        self._batches = work.batches()

    def next_batch(self) -> Tensor:
        return next(self._batches)

    def sample(self, n: int) -> Tensor:
        return self._rows[:n]

    def set_aside(self, n: int, places: Tensor) -> None:
        del n, places  # every contestant is fed the same batches

    def train_labels(self, n: int) -> None:
        del n

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(torch.split(self._rows, batch_size))

    def test(self, batch_size: int = 8192) -> Iterator[torch.Tensor]:
        return self.validation(batch_size)

    def test_labels(self) -> None:
        return None

    def validation_labels(self) -> None:
        return None


def start(
    kind: str, work: Work, train: dict[str, Any] | None = None, sae: dict[str, Any] | None = None
) -> tuple[Training, Step]:
    """A training of ours and its step; `train` are fields of TrainConfig, `sae` of the SAE. No latent is ever dead
    where `train` does not name dead_after."""
    sparsity: dict[str, Any] = {"k": work.k} if kind in (*K_SPARSE, "omp") else {"target_l0": work.k}
    length = {"samples": STEPS * work.batch, "batch_size": work.batch, "dead_after": STEPS * work.batch}
    config = SAE_CONFIGS[kind](dict_size=work.dict_size, **sparsity, **(sae or {}))
    store = Rows(work)
    training = Training.start(config, TrainConfig.model_validate(length | (train or {})), 0, store, work.device)
    return training, lambda: training.advance(store.next_batch())


def variants(kind: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """Name -> fields of TrainConfig of the ways in which ours is measured."""
    gpu = device.type == "cuda"
    found: dict[str, dict[str, Any]] = {OURS: {}}
    if gpu or kind in K_SPARSE:
        found[f"{OURS} bf16"] = {"precision": "bfloat16"}
    if gpu and "cuda_graph" in TrainConfig.model_fields:
        found[f"{OURS}, no CUDA graph"] = {"cuda_graph": False}
    if gpu and kind in K_SPARSE:
        found[f"{OURS}, AuxK at work"] = {"dead_after": 100_000}
    return found


def ours(kind: str, work: Work) -> dict[str, Callable[[], Contestant]]:
    """Every variant, and on a GPU one with tf32 allowed, which a user of ours would have to allow to torch."""

    def make(train: dict[str, Any], tf32: bool = False) -> Contestant:
        arithmetic: Arithmetic = "tf32" if tf32 else train.get("precision", "float32")
        return Contestant(start(kind, work, train)[1], arithmetic, tf32)

    found = {name: partial(make, train) for name, train in variants(kind, work.device).items()}
    if work.device.type == "cuda":
        found[f"{OURS}, tf32 allowed"] = partial(make, {}, tf32=True)
    return dict(found)


# --- all -------------------------------------------------------------------------------------------------------------


def contestants_for(
    kind: str, work: Work, checkout: Path | None, missing: set[str], failed: dict[str, str]
) -> dict[str, Contestant]:
    """All that can be made. `missing` gets the projects that are not installed, `failed` reasons by name."""
    makers: dict[str, Callable[[], Contestant]] = {**products(work), **ours(kind, work)}
    makers |= {name: partial(make, kind, work) for name, make in PEERS.items()}
    makers["BatchTopK"] = partial(batchtopk_code, kind, work, checkout)
    found: dict[str, Contestant] = {}
    for name, make in makers.items():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some print what they lack when they are imported
                found[name] = make()
        except ModuleNotFoundError as error:
            missing.add(f"{name}: {error}")
        except NotImplementedError:
            continue
        except Exception as error:  # foreign code on a device it may not have been tried on
            failed[name] = reason(error)
    return found
