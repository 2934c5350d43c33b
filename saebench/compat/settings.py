"""The flat dictionary `cfg` that configures some SAE code for sentence embeddings.

    cfg = get_default_cfg()
    cfg.update({"sae_type": "batchtopk", "top_k": 16, "act_size": 384, ...})
    cfg = post_init_cfg(cfg)

One dictionary serves every type, the activation store and `train_sae`; keys that a type does not use, and unknown keys,
are ignored. `Settings` documents the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench.config import Coefficient, PositiveFloat, PositiveInt
from saebench.errors import UserError

Share = Annotated[float, Field(ge=0, lt=1)]


class SettingsError(UserError, ValueError):
    """Raised for a cfg with invalid values: one line per key."""


class Settings(BaseModel):
    """Every key, its default and its meaning in saebench."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    sae_type: Literal["vanilla", "topk", "batchtopk", "jumprelu"] = "topk"
    """Which of `sae_classes`."""
    seed: Annotated[int, Field(ge=0)] = 49
    """Fixes the decoder's directions; no global random number is touched."""
    model_name: str = "sentence-transformers/paraphrase-mpnet-base-v2"
    """Used in run names and records; the store gets the model itself."""
    dataset_path: str = "UniverseTBD/arxiv-bit-flip-cs.LG"
    """For the store: `datasets.load_dataset(dataset_path, streaming=True)`."""
    act_size: PositiveInt = 768
    """Width of an embedding."""
    dict_size: PositiveInt = 6144
    """Number of latents."""
    device: str = "auto"
    """Device of the SAE; `get_default_cfg` sets cuda:0 if there is one, else cpu."""
    input_unit_norm: bool = True
    """Subtract from each embedding its mean over the dimensions and divide by the length of the result (a layer norm,
    despite the key's name), undone in `sae_out`; false: embeddings unchanged."""
    batch_size: PositiveInt = 32
    """Embeddings per step; for the store and `train_sae`."""
    num_examples: PositiveInt = 100_000
    """Texts of the run."""
    model_batch_size: PositiveInt = 256
    """Texts per call of the encoder; for the store."""
    num_batches_in_buffer: PositiveInt = 4
    """Number of such calls whose embeddings are shuffled together; for the store."""
    lr: PositiveFloat = 3e-4
    """Learning rate of `train_sae`."""
    beta1: Share = 0.9
    """Adam's first decay."""
    beta2: Share = 0.999
    """Adam's second decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Largest norm of the gradient in `train_sae`."""
    l1_coeff: Coefficient = 0.0
    """vanilla: weight of sum_i |f_i|; jumprelu: weight of the L0; relative to the mean squared error per element."""
    top_k: PositiveFloat = 32
    """topk: latents per example; batchtopk: the same on average over the batch, may be fractional."""
    top_k_aux: PositiveInt = 512
    """topk, batchtopk: number of dead latents that reconstruct the residual (AuxK)."""
    aux_penalty: Coefficient = 1 / 32
    """topk, batchtopk: weight of the AuxK loss, which is a share of the residual's variance; 0: off."""
    n_batches_to_dead: PositiveInt = 5
    """Training batches without firing after which a latent is dead."""
    bandwidth: PositiveFloat = 0.1
    """jumprelu: width of the estimator's kernel in standard deviations of the pre-activations."""
    perf_log_freq: PositiveInt = 1000
    """Steps of `train_sae` between two records."""
    wandb_project: str | None = None
    """Project in Weights & Biases that `train_sae` mirrors the run to; needs the extra [wandb]."""
    name: str = ""
    """Name of the run; `post_init_cfg` sets it."""


def get_default_cfg() -> dict[str, Any]:
    """Return all keys with their defaults, as a dictionary to update."""
    cfg = Settings().model_dump()
    cfg["device"] = resolve_device("auto")
    return cfg


def post_init_cfg(cfg: dict[str, Any]) -> dict[str, Any]:
    """Check `cfg` and set its `name`, which differs between runs with different settings; return the same dictionary.

    Raises SettingsError, a ValueError, with one line per invalid value.
    """
    settings = read_settings(cfg)
    sparsity = f"k{settings.top_k:g}" if "topk" in settings.sae_type else f"c{settings.l1_coeff:g}"
    model = settings.model_name.rstrip("/").rpartition("/")[2]
    parts = (model, settings.sae_type, sparsity, f"n{settings.dict_size}", f"lr{settings.lr:g}", f"s{settings.seed}")
    cfg["name"] = "_".join(parts)
    return cfg


def read_settings(cfg: Mapping[str, Any]) -> Settings:
    """Return `cfg` as checked settings. Raises SettingsError."""
    try:
        settings = Settings.model_validate(dict(cfg))
    except ValidationError as error:
        lines = [f"cfg: {'.'.join(map(str, e['loc']))}: {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    if "topk" in settings.sae_type and settings.top_k > settings.dict_size:
        raise SettingsError(f"cfg: top_k: {settings.top_k:g}: must not exceed dict_size {settings.dict_size}")
    if settings.sae_type == "topk" and not settings.top_k.is_integer():
        raise SettingsError(f"cfg: top_k: {settings.top_k:g}: a whole number for topk; batchtopk takes fractions")
    if "float32" not in str(cfg.get("dtype", "float32")):
        raise SettingsError(f"cfg: dtype: {cfg['dtype']}: SAEs are trained in float32")
    return settings


def resolve_device(device: str) -> str:
    """Resolve `auto` to cuda:0 if there is one, else cpu."""
    import torch

    return device if device != "auto" else "cuda:0" if torch.cuda.is_available() else "cpu"
