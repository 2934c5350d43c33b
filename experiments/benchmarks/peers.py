"""Training steps of other projects, each as its own code runs it.

By the project's own step where it has one apart from its language model (sae-lens, overcomplete, dictionary-learning:
yes; eai-sparsify, BatchTopK: their loop's lines, around their modules). Nothing that a project has on by itself is
switched off: eai-sparsify computes in bfloat16 on a GPU, decodes by Triton where that is installed, and its trainer
allows tf32. A project that is not installed raises ModuleNotFoundError, a type that it does not have
NotImplementedError.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import Contestant
from torch import Tensor
from work import STEPS, Work


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
        omp=lambda: _matching_pursuit(lens, work.k, shape),
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
        omp=lambda: oc.OMPSAE(**shape, k=work.k),
    )
    adam, batches = torch.optim.Adam(model.parameters(), lr=1e-3), work.batches()
    criterion = oc.mse_l1 if kind in ("vanilla", "jumprelu") else (lambda x, x_hat, *_: (x - x_hat).square().mean())
    options: dict[str, Any] = {"nb_epochs": 1, "monitoring": 0, "device": device}
    return Contestant(lambda: oc.train_sae(model, [next(batches)], criterion, adam, **options))


def _matching_pursuit(lens: Any, k: int, shape: dict[str, Any]) -> Any:
    """k picks of every example, as the other contestants make."""
    settings = {"residual_threshold": 0.0, "stop_on_duplicate_support": False, "decoder_init_norm": 1.0}
    config = lens.saes.matching_pursuit_sae.MatchingPursuitTrainingSAEConfig
    return lens.saes.matching_pursuit_sae.MatchingPursuitTrainingSAE(config(max_iterations=k, **settings, **shape))


def pursuit_model(kind: str, d_in: int, dict_size: int, k: int) -> tuple[Any, Callable[[Any, Tensor], Tensor]]:
    """Return another project's pursuit ("omp", "mp": overcomplete; "lens": SAELens), and how it encodes."""
    if kind == "lens":
        import sae_lens as lens

        shape = {"d_in": d_in, "d_sae": dict_size, "device": "cpu"}
        return _matching_pursuit(lens, k, shape), lambda model, x: model.encode(x)
    with _without_torchvision():
        from overcomplete import sae as oc
    make = {"omp": oc.OMPSAE, "mp": oc.MpSAE}[kind]
    return make(d_in, dict_size, k=k), lambda model, x: model.encode(x)[1]


def _pursuit_of(kind: str) -> Callable[[Work], tuple[Callable[[], None], Callable[[Tensor], Tensor]]]:
    return lambda work: _pursuit(*pursuit_model(kind, work.d_in, work.dict_size, work.k), work)


def _pursuit(model: Any, encode: Callable[[Any, Tensor], Tensor], work: Work) -> tuple[Any, Any]:
    """A step in a plain Adam loop, and encoding: their pursuits, decoders and gradients, no trainer around them."""
    adam, batches = torch.optim.Adam(model.parameters(), lr=1e-3), work.batches()

    def step() -> None:
        x = next(batches)
        (x - model.decode(encode(model, x))).square().mean().backward()
        adam.step()
        adam.zero_grad()

    def encoded(x: Tensor) -> Tensor:
        with torch.no_grad():
            return encode(model, x)

    return step, encoded


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
PURSUITS: dict[str, Callable[[Work], tuple[Callable[[], None], Callable[[Tensor], Tensor]]]] = {
    "overcomplete OMPSAE": _pursuit_of("omp"),
    "overcomplete MpSAE": _pursuit_of("mp"),
    "sae-lens matching_pursuit": _pursuit_of("lens"),
}
"""Name -> (one training step, encode)."""
