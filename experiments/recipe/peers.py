"""Other projects' SAEs, trained by their own trainers on the rows of the study.

Every peer gets rows centred and scaled as it expects them (SAELens: mean length sqrt(d_in); dictionary-learning: mean
squared length 1; BatchTopK's code normalises each row by itself), and, where its trainer has them, a warm-up over a
twentieth of the run and a fall over its last fifth. What its code keeps of a batch on the hold-out is what is measured:
batch-wise types need no threshold there, which favours them a little. The folder of BatchTopK's code
(github.com/bartbussmann/BatchTopK) is $BATCHTOPK_CODE.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from corpora import Corpus, Rows
from torch import Tensor

MATRYOSHKA = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


class Peer(NamedTuple):
    step: Callable[[Tensor], None]
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Rows as the peer sees them to (reconstruction, codes)."""
    length: float
    """Root mean square length of the rows that it expects."""


class Run(NamedTuple):
    kind: str
    d_in: int
    dict_size: int
    k: int
    lr: float
    steps: int
    batch: int
    coeff: float | None
    seed: int


def sae_lens(run: Run) -> Peer:
    import sae_lens as lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(run.seed)
    shape: dict[str, Any] = {"d_in": run.d_in, "d_sae": run.dict_size, "device": "cpu"}
    widths = [run.dict_size * share // 16 for share in (1, 2, 4, 8, 16)]
    ramp = {"l1_coefficient": run.coeff, "l1_warm_up_steps": run.steps // 10}
    l0 = {"l0_coefficient": run.coeff, "l0_warm_up_steps": run.steps // 10}
    sae = {
        "topk": lambda: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=run.k, **shape)),
        "batchtopk": lambda: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=run.k, **shape)),
        "matryoshka": lambda: lens.MatryoshkaBatchTopKTrainingSAE(
            lens.MatryoshkaBatchTopKTrainingSAEConfig(k=run.k, matryoshka_widths=widths, **shape)
        ),
        "vanilla": lambda: lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**ramp, **shape)),
        "gated": lambda: lens.GatedTrainingSAE(lens.GatedTrainingSAEConfig(**ramp, **shape)),
        "jumprelu": lambda: lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**l0, **shape)),
    }[run.kind]()
    settings = SAETrainerConfig(
        run.steps * run.batch,
        run.batch,
        lr=run.lr,
        lr_end=run.lr / 10,
        lr_warm_up_steps=run.steps // 20,
        lr_decay_steps=run.steps // 5,
        dead_feature_window=max(5, min(run.steps // 4, 100)),
    )
    trainer = SAETrainer(settings, sae, iter(()))

    def step(x: Tensor) -> None:
        trainer._train_step(sae, x)
        trainer.n_training_steps += 1

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        sae.eval()
        codes = sae.encode_with_hidden_pre(x)[0]
        return sae.decode(codes), codes

    return Peer(step, reconstruct, run.d_in**0.5)


def dictionary_learning(run: Run) -> Peer:
    from dictionary_learning.trainers import (
        batch_top_k,
        gdm,
        jumprelu,
        matryoshka_batch_top_k,
        p_anneal,
        standard,
        top_k,
    )

    common: dict[str, Any] = {"steps": run.steps, "activation_dim": run.d_in, "dict_size": run.dict_size, "lr": run.lr}
    common |= {"layer": 0, "lm_name": "none", "device": "cpu", "seed": run.seed}
    common |= {"warmup_steps": run.steps // 20, "decay_start": run.steps * 4 // 5}
    ramp = {"sparsity_warmup_steps": run.steps // 10}
    sparse = {"k": run.k, "threshold_start_step": run.steps // 10}
    trainer = {
        "topk": lambda: top_k.TopKTrainer(**sparse, **common),
        "batchtopk": lambda: batch_top_k.BatchTopKTrainer(**sparse, **common),
        "matryoshka": lambda: matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(
            group_fractions=MATRYOSHKA, **sparse, **common
        ),
        "vanilla": lambda: standard.StandardTrainer(l1_penalty=run.coeff, **ramp, **common),
        "gated": lambda: gdm.GatedSAETrainer(l1_penalty=run.coeff, **ramp, **common),
        "p_anneal": lambda: p_anneal.PAnnealTrainer(
            initial_sparsity_penalty=run.coeff, anneal_start=run.steps // 3, p_end=0.2, **ramp, **common
        ),
        "jumprelu": lambda: jumprelu.JumpReluTrainer(
            target_l0=run.k, sparsity_penalty=run.coeff, bandwidth=0.01, **ramp, **common
        ),
    }[run.kind]()
    number = iter(range(run.steps))

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = trainer.ae.encode(x, use_threshold=False) if "top" in type(trainer).__module__ else trainer.ae.encode(x)
        return trainer.ae.decode(codes), codes

    return Peer(lambda x: trainer.update(next(number), x), reconstruct, 1.0)


def batchtopk_code(run: Run) -> Peer:
    folder = os.environ["BATCHTOPK_CODE"]
    sys.path.insert(0, folder)
    try:
        import sae as theirs
    finally:
        sys.path.remove(folder)
    settings: dict[str, Any] = {"seed": run.seed, "device": "cpu", "dtype": torch.float32, "input_unit_norm": True}
    settings |= {"l1_coeff": run.coeff or 0.0, "bandwidth": 1e-3, "act_size": run.d_in, "dict_size": run.dict_size}
    settings |= {"top_k": run.k, "batch_size": run.batch, "top_k_aux": 512, "aux_penalty": 1 / 32}
    settings |= {"n_batches_to_dead": 20}
    kinds = {"topk": "TopKSAE", "batchtopk": "BatchTopKSAE", "vanilla": "VanillaSAE", "jumprelu": "JumpReLUSAE"}
    sae = getattr(theirs, kinds[run.kind])(settings)
    adam = torch.optim.Adam(sae.parameters(), lr=run.lr, betas=(0.9, 0.99))

    def step(x: Tensor) -> None:
        sae(x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 100_000)
        sae.make_decoder_weights_and_grad_unit_norm()
        adam.step()
        adam.zero_grad()

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae(x)
        return out["sae_out"], out["feature_acts"]

    return Peer(step, reconstruct, 1.0)


PEERS: dict[str, Callable[[Run], Peer]] = {
    "SAELens": sae_lens,
    "dictionary-learning": dictionary_learning,
    "BatchTopK's code": batchtopk_code,
}


def train_peer(s: dict[str, Any], texts: Corpus) -> dict[str, float]:
    """As `study.run`: s has peer, kind, dict_size, k, lr, batch_size, samples, seed and, for a penalty, coeff."""
    steps, d_in = -(-s["samples"] // s["batch_size"]), texts.train.shape[1]
    run = Run(s["kind"], d_in, s["dict_size"], s["k"], s["lr"], steps, s["batch_size"], s.get("coeff"), s["seed"])
    peer, store = PEERS[s["peer"]](run), Rows(texts, run.batch, run.seed)
    mean = texts.train.mean(0)
    scale = peer.length / float((texts.train - mean).square().sum(1).mean().sqrt())
    started = time.process_time()
    for _ in range(steps):
        peer.step((store.next_batch() - mean) * scale)
    seconds = time.process_time() - started
    return measure_peer(peer, texts, mean, scale) | {"lr": run.lr, "steps": steps, "seconds": seconds}


@torch.no_grad()
def measure_peer(peer: Peer, texts: Corpus, mean: Tensor, scale: float) -> dict[str, float]:
    """Hold-out FVU in the original space, L0, latents that never fire."""
    error = fires = 0.0
    counts: list[Tensor] = []
    for x in torch.split(texts.holdout, 2048):
        x_hat, codes = peer.reconstruct((x - mean) * scale)
        codes = codes.to_dense() if codes.is_sparse else codes
        error += float((x_hat / scale + mean - x).double().square().sum())
        fires += float((codes != 0).sum())
        counts.append((codes != 0).sum(0))
    rows = texts.holdout.double()
    variance = float((rows - rows.mean(0)).square().sum())
    dead = int((torch.stack(counts).sum(0) == 0).sum())
    return {"fvu": error / variance, "l0": fires / len(rows), "dead": float(dead)}
