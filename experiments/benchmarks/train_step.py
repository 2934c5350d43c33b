"""Time one full optimiser step of our trainer beside other projects' trainers, on the same tensors, in turns.

    python experiments/benchmarks/train_step.py --batchtopk CHECKOUT --out table.md
    python experiments/benchmarks/train_step.py --quick
    python experiments/benchmarks/train_step.py --parts 6144 12288 24576 --types topk batchtopk

Installs nothing: it uses those of sae-lens, dictionary-learning, eai-sparsify and overcomplete that are importable, and
BatchTopK's code from the folder given, and says what is missing. A step is forward, loss, backward, clipping, decoder
norm and Adam, each by the project's own step where it has one apart from its language model (sae-lens, overcomplete,
dictionary-learning: yes; eai-sparsify, BatchTopK: their loop's lines, around their modules). No latent is dead in
any yet, so AuxK rests in all. Every round times each contestant once; the table has medians over the rounds, and ratios
of medians, which hold on a busy machine when times do not.
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
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import step_parts
import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS, DataConfig, DatasetConfig, TrainConfig, TrialConfig
from saebench.trainer import Training

Step = Callable[[], object]
TYPES = ("topk", "batchtopk", "vanilla", "jumprelu", "matryoshka")
STEPS = 1_000_000
"""Length of the run that schedules are made for; nobody gets there."""


@dataclass(frozen=True)
class Work:
    """The same for every contestant."""

    batch: int
    d_in: int
    dict_size: int
    k: int
    rows: Tensor

    def batches(self) -> Iterator[Tensor]:
        while True:
            yield from self.rows.split(self.batch)


def make_work(batch: int, d_in: int, dict_size: int, k: int) -> Work:
    """Unit vectors around a common mean, as sentence embeddings are."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * batch, d_in, generator=g) @ torch.randn(d_in, d_in, generator=g) + 3.0
    return Work(batch, d_in, dict_size, k, torch.nn.functional.normalize(rows, dim=1))


# --- contestants -----------------------------------------------------------------------------------------------------


class _Rows:
    """A store that holds the rows of the work."""

    def __init__(self, work: Work) -> None:
        self.d_in, self.num_train, self._rows = work.d_in, len(work.rows), work.rows
        self._batches = work.batches()

    def next_batch(self) -> Tensor:
        return next(self._batches)

    def sample(self, n: int) -> Tensor:
        return self._rows[:n]

    def holdout(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(self._rows.split(batch_size))


def saebench(kind: str, work: Work, precision: str = "float32") -> Step:
    sparsity: dict[str, Any] = {"k": work.k} if kind in ("topk", "batchtopk", "matryoshka") else {"target_l0": work.k}
    config = TrialConfig.model_validate(
        {
            "sweep": "benchmark",
            "number": 0,
            "stratum": kind,
            "point": "0",
            "seed": 0,
            "data": DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=len(work.rows)),
            "sae": SAE_CONFIGS[kind](dict_size=work.dict_size, **sparsity),
            "train": TrainConfig.model_validate(
                {
                    "samples": STEPS * work.batch,
                    "batch_size": work.batch,
                    "precision": precision,
                    "dead_after": STEPS * work.batch,
                }
            ),
        }
    )
    store = _Rows(work)
    training = Training.start(config, store)
    return lambda: training.advance(store.next_batch())


def dictionary_learning(kind: str, work: Work) -> Step:
    from dictionary_learning.trainers import batch_top_k, jumprelu, standard, top_k

    common = {"steps": STEPS, "activation_dim": work.d_in, "dict_size": work.dict_size, "layer": 0, "lm_name": "none"}
    trainer = {
        "topk": lambda: top_k.TopKTrainer(k=work.k, device="cpu", **common),
        "batchtopk": lambda: batch_top_k.BatchTopKTrainer(k=work.k, device="cpu", **common),
        "vanilla": lambda: standard.StandardTrainer(device="cpu", **common),
        "jumprelu": lambda: jumprelu.JumpReluTrainer(device="cpu", target_l0=work.k, **common),
    }[kind]()
    batches, numbers = work.batches(), iter(range(STEPS))
    return lambda: trainer.update(next(numbers), next(batches))


def sae_lens(kind: str, work: Work) -> Step:
    import sae_lens as lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = {
        "topk": lambda **c: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=work.k, **c)),
        "batchtopk": lambda **c: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=work.k, **c)),
        "vanilla": lambda **c: lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**c)),
        "jumprelu": lambda **c: lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**c)),
    }[kind]
    sae = config(d_in=work.d_in, d_sae=work.dict_size)
    settings = SAETrainerConfig(STEPS * work.batch, work.batch, lr=3e-4, lr_end=3e-5)
    trainer = SAETrainer(settings, sae, work.batches())
    return lambda: trainer._train_step(sae, next(trainer.data_provider))


def eai_sparsify(kind: str, work: Work) -> Step:
    if kind != "topk":
        raise NotImplementedError(f"has no {kind}")
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(work.d_in, SparseCoderConfig(num_latents=work.dict_size, k=work.k))
    adam, batches = torch.optim.Adam(sae.parameters(), lr=1e-3), work.batches()

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(next(batches)).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def overcomplete(kind: str, work: Work) -> Step:
    with _without_torchvision():
        from overcomplete import sae as oc

    shape = {"input_shape": work.d_in, "nb_concepts": work.dict_size}
    model = {
        "topk": lambda: oc.TopKSAE(**shape, top_k=work.k),
        "batchtopk": lambda: oc.BatchTopKSAE(**shape, top_k=work.k * work.batch),
        "vanilla": lambda: oc.SAE(**shape),
        "jumprelu": lambda: oc.JumpSAE(**shape),
    }[kind]()
    adam, batches = torch.optim.Adam(model.parameters(), lr=1e-3), work.batches()
    criterion = oc.mse_l1 if kind in ("vanilla", "jumprelu") else (lambda x, x_hat, *_: (x - x_hat).square().mean())
    return lambda: oc.train_sae(model, [next(batches)], criterion, adam, nb_epochs=1, monitoring=0)


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


def batchtopk_code(kind: str, work: Work, checkout: Path | None) -> Step:
    if checkout is None:
        raise ModuleNotFoundError("no checkout given (--batchtopk)")
    sys.path.insert(0, str(checkout))
    try:
        import sae as theirs
    finally:
        sys.path.remove(str(checkout))
    settings = {"seed": 0, "device": "cpu", "dtype": torch.float32, "input_unit_norm": True, "l1_coeff": 0.0}
    settings |= {"act_size": work.d_in, "dict_size": work.dict_size, "top_k": work.k, "batch_size": work.batch}
    settings |= {"top_k_aux": 256, "aux_penalty": 1 / 32, "n_batches_to_dead": STEPS, "bandwidth": 1e-3}
    names = {"topk": "TopKSAE", "batchtopk": "BatchTopKSAE", "vanilla": "VanillaSAE", "jumprelu": "JumpReLUSAE"}
    sae = getattr(theirs, names[kind])(settings)
    adam, batches = torch.optim.Adam(sae.parameters(), lr=3e-4, betas=(0.9, 0.99)), work.batches()

    def step() -> None:
        sae(next(batches))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1e5)
        sae.make_decoder_weights_and_grad_unit_norm()
        adam.step()
        adam.zero_grad()

    return step


PEERS: dict[str, Callable[[str, Work], Step]] = {
    "eai-sparsify": eai_sparsify,
    "overcomplete": overcomplete,
    "dictionary-learning": dictionary_learning,
    "sae-lens": sae_lens,
}


# --- measuring -------------------------------------------------------------------------------------------------------


def encoder_product(work: Work) -> Step:
    """The yardstick: x @ W_enc + b_enc in float32, as torch does it."""
    weight, bias, x = torch.randn(work.d_in, work.dict_size), torch.zeros(work.dict_size), work.rows[: work.batch]
    return lambda: torch.addmm(bias, x, weight)


def measure(contestants: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds; every round gives each contestant one timed step, the first two untimed ones before."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, step in contestants.items():
            for _ in range(0 if number else 2):
                step()
            start = clock()
            step()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def contestants_for(kind: str, work: Work, checkout: Path | None, missing: set[str]) -> dict[str, Step]:
    found = {"encoder product": encoder_product(work), "saebench": saebench(kind, work)}
    if kind in ("topk", "batchtopk"):
        found["saebench bf16"] = saebench(kind, work, "bfloat16")
    for name, make in {**PEERS, "BatchTopK": lambda k, w: batchtopk_code(k, w, checkout)}.items():
        try:
            found[name] = make(kind, work)
        except ModuleNotFoundError as error:
            missing.add(f"{name}: {error}")
        except NotImplementedError:
            continue
    return found


def table(results: dict[str, dict[str, float]]) -> list[str]:
    kinds = list(results)
    names = list(dict.fromkeys(name for kind in kinds for name in results[kind]))
    lines = [f"| ms per step | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}"]
    for name in names:
        cells = [f"{results[k][name]:.0f}" if name in results[k] else "" for k in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, f"| fastest peer / saebench | {' | '.join(_lead(results[k]) for k in kinds)} |"]


def _lead(times: dict[str, float]) -> str:
    peers = {n: t for n, t in times.items() if not n.startswith(("saebench", "encoder"))}
    if not peers:
        return "no peer"
    fastest = min(peers, key=lambda name: peers[name])
    return f"{peers[fastest] / times['saebench']:.1f}x ({fastest})"


def parts(kinds: list[str], shape: tuple[int, ...], widths: list[int], rounds: int) -> list[str]:
    """A table for each type; the floor of a part, where it has one, in brackets."""
    batch, d_in, _, k = shape
    lines = []
    for kind in kinds:
        measured = {}
        for width in widths:
            step = saebench(kind, make_work(batch, d_in, width, k))
            measured[width] = step_parts.measure_parts(step, rounds), step_parts.floors(batch, d_in, width)
        lines += [*step_parts.parts_table(kind, measured), ""]
    return lines


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return (
        f"{os.cpu_count()} cores {model or platform.processor()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> str:
    known = []
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(known) or "no peer installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batchtopk", type=Path, help="checkout of bartbussmann/BatchTopK")
    parser.add_argument("--types", nargs="+", default=list(TYPES[:4]), choices=TYPES, help="architectures")
    parser.add_argument("--work", nargs=4, type=int, default=(2048, 384, 6144, 32), metavar=("BATCH", "D", "F", "K"))
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time on one thread, for a busy machine"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each contestant")
    parser.add_argument(
        "--parts",
        nargs="+",
        type=int,
        metavar="F",
        help="instead: our step part by part at these widths, on one thread",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds of small work: does it run?")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    shape, rounds = ((256, 64, 512, 8), 2) if arguments.quick else (tuple(arguments.work), arguments.rounds)
    if arguments.clock == "cpu":
        torch.set_num_threads(1)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    if arguments.parts:
        print("\n".join([f"{machine()}.", "", *parts(arguments.types, shape, arguments.parts, rounds)]))
        return
    work, missing = make_work(*shape), set[str]()
    results: dict[str, dict[str, float]] = {}
    for kind in arguments.types:
        torch.manual_seed(0)
        results[kind] = measure(contestants_for(kind, work, arguments.batchtopk, missing), rounds, clock)
    head = "Batch {}, d_in {}, dict_size {}, k {}, float32".format(*shape)
    lines = [
        f"{head}; median of {rounds} steps, {arguments.clock} time. {machine()}.",
        f"{versions()}.",
        "",
        *table(results),
        *(f"Missing: {what}." for what in sorted(missing)),
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
