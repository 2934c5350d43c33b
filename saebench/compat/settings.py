"""The flat dictionary `cfg` that one line of SAE code for sentence embeddings is configured by.

    cfg = get_default_cfg()
    cfg.update({"sae_type": "batchtopk", "top_k": 16, "act_size": 384, ...})
    cfg = post_init_cfg(cfg)

One dictionary serves every type, the activation store and `train_sae`; keys that a type does not use are ignored, and
so are keys that nobody here knows. `Settings` says what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench.config import Coefficient, PositiveFloat, PositiveInt
from saebench.errors import UserError

Share = Annotated[float, Field(ge=0, lt=1)]


class SettingsError(UserError, ValueError):
    """A cfg with a value that makes no sense: one line per key."""


class Settings(BaseModel):
    """Every key, its default, and what it means here."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    sae_type: Literal["vanilla", "topk", "batchtopk", "jumprelu"] = "topk"
    """Which of `sae_classes`."""
    seed: Annotated[int, Field(ge=0)] = 49
    """Fixes the decoder's directions; no global random number is touched."""
    model_name: str = "sentence-transformers/paraphrase-mpnet-base-v2"
    """Said in names and records; the store gets the model itself."""
    dataset_path: str = "UniverseTBD/arxiv-bit-flip-cs.LG"
    """For the store: `datasets.load_dataset(dataset_path, streaming=True)`."""
    act_size: PositiveInt = 768
    """Width of an embedding."""
    dict_size: PositiveInt = 6144
    """Number of latents."""
    device: str = "auto"
    """Where the SAE lives; `get_default_cfg` puts cuda:0 or cpu, whichever is there."""
    input_unit_norm: bool = True
    """Each embedding minus its mean over the dimensions, divided by the length of what remains (a layer norm,
    whatever the key says), and put back in `sae_out`; false: embeddings as they are."""
    batch_size: PositiveInt = 32
    """Embeddings per step; for the store and `train_sae`."""
    num_examples: PositiveInt = 100_000
    """Texts of the run."""
    model_batch_size: PositiveInt = 256
    """Texts per call of the encoder; for the store."""
    num_batches_in_buffer: PositiveInt = 4
    """Such calls that are mixed; for the store."""
    lr: PositiveFloat = 3e-4
    """Learning rate of `train_sae`."""
    beta1: Share = 0.9
    """Adam's first decay."""
    beta2: Share = 0.999
    """Adam's second decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Largest norm of the gradient in `train_sae`."""
    l1_coeff: Coefficient = 0.0
    """vanilla: weight of sum_i |f_i|; jumprelu: weight of the L0. Beside a mean squared error per element."""
    top_k: PositiveFloat = 32
    """topk: latents per example; batchtopk: the same on average over the batch, may be fractional."""
    top_k_aux: PositiveInt = 512
    """topk, batchtopk: dead latents that rebuild the residual."""
    aux_penalty: Coefficient = 1 / 32
    """topk, batchtopk: weight of that, as a share of the residual's variance; 0: off."""
    n_batches_to_dead: PositiveInt = 5
    """Training batches without firing after which a latent is dead."""
    bandwidth: PositiveFloat = 0.1
    """jumprelu: width of the estimator's kernel in standard deviations of the pre-activations."""
    perf_log_freq: PositiveInt = 1000
    """Steps of `train_sae` between two records."""
    wandb_project: str | None = None
    """Project in Weights & Biases that `train_sae` mirrors the run to; needs the extra [wandb]."""
    name: str = ""
    """Of the run; `post_init_cfg` fills it in."""


def get_default_cfg() -> dict[str, Any]:
    """All keys with their defaults; a dictionary to update."""
    cfg = Settings().model_dump()
    cfg["device"] = resolve_device("auto")
    return cfg


def post_init_cfg(cfg: dict[str, Any]) -> dict[str, Any]:
    """Check `cfg` and put `name` into it, which tells apart runs that differ; returns the same dictionary.

    Raises SettingsError, a ValueError, with one line per value that makes no sense.
    """
    settings = read_settings(cfg)
    sparsity = f"k{settings.top_k:g}" if "topk" in settings.sae_type else f"c{settings.l1_coeff:g}"
    model = settings.model_name.rstrip("/").rpartition("/")[2]
    parts = (model, settings.sae_type, sparsity, f"n{settings.dict_size}", f"lr{settings.lr:g}", f"s{settings.seed}")
    cfg["name"] = "_".join(parts)
    return cfg


def read_settings(cfg: Mapping[str, Any]) -> Settings:
    """`cfg`, checked. Raises SettingsError."""
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
    """`auto` to cuda:0 where there is one, else cpu."""
    import torch

    return device if device != "auto" else "cuda:0" if torch.cuda.is_available() else "cpu"
