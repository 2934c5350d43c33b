"""SAEs in the layout of SAELens 6: cfg.json beside sae_weights.safetensors.

    export_saelens(sae, folder)           # then in SAELens: sae_lens.SAE.load_from_disk(folder)
    sae = import_saelens(folder)          # a saebench SAE

vanilla and p_anneal become `standard`; topk and gated are `topk` and `gated`; jumprelu, and batchtopk and matryoshka
with their one calibrated threshold, become `jumprelu`. Codes and reconstructions are those of saebench: preprocessing
is folded into the weights (compat/plain.py); preprocessing per example raises LayoutError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from saebench.compat.plain import LayoutError, Plain, Rule, from_plain, plain, read_json, read_tensors
from saebench.runs.durable import write_json
from saebench.saes import SAE, load_sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUT = "6.0.0"
"""The release that defines this layout; without it SAELens reads cfg.json as one from before release 6."""
ARCHITECTURES: dict[Rule, str] = {"relu": "standard", "topk": "topk", "threshold": "jumprelu", "gated": "gated"}
TENSORS: dict[str, set[str]] = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"},
}
"""Architecture -> names of its tensors."""


def export_saelens(sae: SAE, folder: str | Path) -> list[Path]:
    """Write `sae` to `folder` (created if missing); return the files.

    Raises LayoutError for preprocess unit and layer_norm, NotCalibratedError for a threshold never calibrated.
    """
    form, folder = plain(sae), Path(folder)
    architecture = ARCHITECTURES[form.rule]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.dict_size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": LAYOUT, "trained_with": "saebench", "saebench_type": sae.config.type},
    }
    if form.rule == "topk":
        config |= {"k": form.k, "rescale_acts_by_decoder_norm": False}
    gate = {"b_gate": form.b_enc} if form.rule == "gated" else {"b_enc": form.b_enc}
    found = {**vars(form), **gate}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: found[name] for name in TENSORS[architecture]}, folder / WEIGHTS)
    write_json(folder / CONFIG, config)
    return [folder / CONFIG, folder / WEIGHTS]


def export(folder: Path, to: Path) -> list[Path]:
    """Convert the SAE that saebench saved in `folder` to this layout in `to`; `saebench export` calls this."""
    return export_saelens(load_sae(folder), to)


def import_saelens(folder: str | Path) -> SAE:
    """Return the SAE in a folder of this layout, ready to encode; jumprelu becomes a JumpReLUSAE, also if the SAE was
    trained as another type.

    Raises FileNotFoundError, or LayoutError for an architecture, an activation function, or a normalisation of the
    input that has no counterpart in saebench, and for tensors that are missing or unknown.
    """
    folder = Path(folder)
    config = _config(folder / CONFIG)
    architecture = config["architecture"]
    tensors = read_tensors(folder / WEIGHTS, TENSORS[architecture])
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    b_enc = tensors["b_gate"] if architecture == "gated" else tensors["b_enc"]
    b_mag, r_mag = tensors.get("b_mag"), tensors.get("r_mag")
    if not config.get("apply_b_dec_to_input", True):  # saebench always subtracts b_dec from the input
        moved = b_dec @ W_enc
        b_enc = b_enc + moved
        b_mag = None if b_mag is None or r_mag is None else b_mag + moved * r_mag.exp()
    if config.get("rescale_acts_by_decoder_norm"):  # SAELens then selects as if the rows had length 1
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None].clamp_min(1e-30)
    rule: Rule = next(rule for rule, name in ARCHITECTURES.items() if name == architecture)
    threshold: Tensor | None = tensors.get("threshold")
    return from_plain(
        Plain(rule, W_enc, b_enc, W_dec, b_dec, k=config.get("k"), threshold=threshold, r_mag=r_mag, b_mag=b_mag)
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise LayoutError(f"{path}: architecture: missing; only the layout of SAELens 6 and later is read")
    if config["architecture"] == "matching_pursuit":
        raise LayoutError(
            f"{path}: architecture: 'matching_pursuit' picks a latent again and never refits its values; "
            "omp does neither, so that its codes would differ"
        )
    if config["architecture"] not in TENSORS:
        raise LayoutError(f"{path}: architecture: {config['architecture']!r} must be one of {', '.join(TENSORS)}")
    for key, plain_value in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if (value := config.get(key, plain_value)) not in (plain_value, None):
            raise LayoutError(f"{path}: {key}: {value!r} has no counterpart here, only {plain_value!r} is read")
    if config.get("activation_fn", config.get("activation_fn_str", "relu")) != "relu":
        raise LayoutError(f"{path}: activation_fn: only relu is read; load it there and save it with SAELens 6")
    if config["architecture"] == "topk" and not (isinstance(config.get("k"), int) and config["k"] > 0):
        raise LayoutError(f"{path}: k: {config.get('k')!r}, expected a whole number above 0")
    return config
