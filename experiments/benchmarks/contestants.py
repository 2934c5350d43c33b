"""The training steps that are timed: ours, and those of other projects, each as its own code runs it.

A step is forward, loss, backward, clipping, decoder norm and Adam, by the project's own step where it has one apart
from its language model (sae-lens, overcomplete, dictionary-learning: yes; eai-sparsify, BatchTopK: their loop's lines,
around their modules). Everything is on the device of the work's rows. Nothing that a project has on by itself is
switched off: eai-sparsify computes in bfloat16 on a GPU, decodes by Triton where that is installed, and its trainer
allows tf32.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Arithmetic, Contestant, Step, reason
from torch import Tensor

from saebench.config import SAE_CONFIGS, DataConfig, DatasetConfig, TrainConfig, TrialConfig
from saebench.trainer import Training

STEPS = 1_000_000
"""Length of the run that schedules are made for; nobody gets there."""
OURS = "saebench"
PRODUCT = "encoder product"
K_SPARSE = ("topk", "batchtopk", "matryoshka")


@dataclass(frozen=True)
class Work:
    """The same for every contestant."""

    batch: int
    d_in: int
    dict_size: int
    k: int
    rows: Tensor
    """(4 batches, d_in) float32, on the device that is measured."""

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def batches(self) -> Iterator[Tensor]:
        while True:
            yield from torch.split(self.rows, self.batch)

    def __str__(self) -> str:
        return f"Batch {self.batch}, d_in {self.d_in}, dict_size {self.dict_size}, k {self.k}"


def make_work(batch: int, d_in: int, dict_size: int, k: int, device: str = "cpu") -> Work:
    """Unit vectors around a common mean, as sentence embeddings are; the same on every device."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * batch, d_in, generator=g) @ torch.randn(d_in, d_in, generator=g) + 3.0
    return Work(batch, d_in, dict_size, k, torch.nn.functional.normalize(rows, dim=1).to(device))


def encoder_product(work: Work) -> Contestant:
    """The yardstick: x @ W_enc + b_enc in float32, as torch does it."""
    weight = torch.randn(work.d_in, work.dict_size, device=work.device)
    bias, x = torch.zeros(work.dict_size, device=work.device), work.rows[: work.batch]
    return Contestant(lambda: torch.addmm(bias, x, weight))


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

    def train_labels(self, n: int) -> None:
        del n

    def holdout(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(torch.split(self._rows, batch_size))

    def holdout_labels(self) -> None:
        return None


def start(kind: str, work: Work, train: dict[str, Any] | None = None) -> tuple[Training, Step]:
    """A training of ours and its step; `train` are fields of TrainConfig. No latent is ever dead where it does not name
    dead_after."""
    sparsity: dict[str, Any] = {"k": work.k} if kind in K_SPARSE else {"target_l0": work.k}
    length = {"samples": STEPS * work.batch, "batch_size": work.batch, "dead_after": STEPS * work.batch}
    config = TrialConfig.model_validate(
        {
            "sweep": "benchmark",
            "number": 0,
            "stratum": kind,
            "point": "0",
            "seed": 0,
            "data": DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=len(work.rows)),
            "sae": SAE_CONFIGS[kind](dict_size=work.dict_size, **sparsity),
            "train": TrainConfig.model_validate(length | (train or {})),
        }
    )
    store = Rows(work)
    training = Training.start(config, store, work.device)
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


# --- theirs ----------------------------------------------------------------------------------------------------------


def dictionary_learning(kind: str, work: Work) -> Contestant:
    from dictionary_learning.trainers import batch_top_k, jumprelu, standard, top_k

    common: dict[str, Any] = {"steps": STEPS, "activation_dim": work.d_in, "dict_size": work.dict_size}
    common |= {"layer": 0, "lm_name": "none", "device": str(work.device)}
    trainer = _of_kind(
        kind,
        topk=lambda: top_k.TopKTrainer(k=work.k, **common),
        batchtopk=lambda: batch_top_k.BatchTopKTrainer(k=work.k, **common),
        vanilla=lambda: standard.StandardTrainer(**common),
        jumprelu=lambda: jumprelu.JumpReluTrainer(target_l0=work.k, **common),
    )
    batches, numbers = work.batches(), iter(range(STEPS))
    return Contestant(lambda: trainer.update(next(numbers), next(batches)))


def sae_lens(kind: str, work: Work) -> Contestant:
    import sae_lens as lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    shape: dict[str, Any] = {"d_in": work.d_in, "d_sae": work.dict_size, "device": str(work.device)}
    sae = _of_kind(
        kind,
        topk=lambda: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=work.k, **shape)),
        batchtopk=lambda: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=work.k, **shape)),
        vanilla=lambda: lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**shape)),
        jumprelu=lambda: lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**shape)),
    )
    settings = SAETrainerConfig(STEPS * work.batch, work.batch, lr=3e-4, lr_end=3e-5, device=str(work.device))
    trainer = SAETrainer(settings, sae, work.batches())
    return Contestant(lambda: trainer._train_step(sae, next(trainer.data_provider)))


def eai_sparsify(kind: str, work: Work) -> Contestant:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=work.dict_size, k=work.k)
    sae = _of_kind(kind, topk=lambda: SparseCoder(work.d_in, config, device=work.device))
    adam, batches = torch.optim.Adam(sae.parameters(), lr=1e-3), work.batches()

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(next(batches)).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    lower = work.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Contestant(step, "bfloat16" if lower else "float32", tf32=True)


def overcomplete(kind: str, work: Work) -> Contestant:
    with _without_torchvision():
        from overcomplete import sae as oc

    device = str(work.device)
    shape: dict[str, Any] = {"input_shape": work.d_in, "nb_concepts": work.dict_size, "device": device}
    model = _of_kind(
        kind,
        topk=lambda: oc.TopKSAE(**shape, top_k=work.k),
        batchtopk=lambda: oc.BatchTopKSAE(**shape, top_k=work.k * work.batch),
        vanilla=lambda: oc.SAE(**shape),
        jumprelu=lambda: oc.JumpSAE(**shape),
    )
    adam, batches = torch.optim.Adam(model.parameters(), lr=1e-3), work.batches()
    criterion = oc.mse_l1 if kind in ("vanilla", "jumprelu") else (lambda x, x_hat, *_: (x - x_hat).square().mean())
    options: dict[str, Any] = {"nb_epochs": 1, "monitoring": 0, "device": device}
    return Contestant(lambda: oc.train_sae(model, [next(batches)], criterion, adam, **options))


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    """overcomplete's package also holds vision models; its SAEs do not need torchvision, so an empty one will do."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        empty = types.ModuleType("torchvision")
        empty.transforms = types.ModuleType("transforms")  # type: ignore[attr-defined]
        sys.modules["torchvision"] = empty
        try:
            yield
        finally:
            del sys.modules["torchvision"]
    else:
        yield


def batchtopk_code(kind: str, work: Work, checkout: Path | None) -> Contestant:
    if checkout is None:
        raise ModuleNotFoundError("no checkout given (--batchtopk)")
    sys.path.insert(0, str(checkout))
    try:
        import sae as theirs
    finally:
        sys.path.remove(str(checkout))
    settings: dict[str, Any] = {"seed": 0, "device": str(work.device), "dtype": torch.float32}
    settings |= {"input_unit_norm": True, "l1_coeff": 0.0, "bandwidth": 1e-3}
    settings |= {"act_size": work.d_in, "dict_size": work.dict_size, "top_k": work.k, "batch_size": work.batch}
    settings |= {"top_k_aux": 256, "aux_penalty": 1 / 32, "n_batches_to_dead": STEPS}
    sae = _of_kind(
        kind,
        topk=lambda: theirs.TopKSAE(settings),
        batchtopk=lambda: theirs.BatchTopKSAE(settings),
        vanilla=lambda: theirs.VanillaSAE(settings),
        jumprelu=lambda: theirs.JumpReLUSAE(settings),
    )
    adam, batches = torch.optim.Adam(sae.parameters(), lr=3e-4, betas=(0.9, 0.99)), work.batches()

    def step() -> None:
        sae(next(batches))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1e5)
        sae.make_decoder_weights_and_grad_unit_norm()
        adam.step()
        adam.zero_grad()

    return Contestant(step)


def _of_kind(kind: str, **makers: Callable[[], Any]) -> Any:
    if kind not in makers:
        raise NotImplementedError(f"has no {kind}")
    return makers[kind]()


PEERS: dict[str, Callable[[str, Work], Contestant]] = {
    "eai-sparsify": eai_sparsify,
    "overcomplete": overcomplete,
    "dictionary-learning": dictionary_learning,
    "sae-lens": sae_lens,
}


def contestants_for(
    kind: str, work: Work, checkout: Path | None, missing: set[str], failed: dict[str, str]
) -> dict[str, Contestant]:
    """All that can be made. `missing` gets the projects that are not installed, `failed` reasons by name."""
    makers: dict[str, Callable[[], Contestant]] = {PRODUCT: partial(encoder_product, work), **ours(kind, work)}
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
