"""Names from other tools and papers for keys of a spec."""

from __future__ import annotations

MEANT = {
    "accelerator": "run.devices",
    "activation_dim": "nothing: the width of the embeddings is the encoder's",
    "auxk_alpha": "aux_coeff, in an arm",
    "cuda": "run.devices",
    "d_hidden": "dict_size, in an arm",
    "d_in": "nothing: the width of the embeddings is the encoder's",
    "d_sae": "dict_size, in an arm",
    "device": "run.devices",
    "devices": "run.devices",
    "dict_mult": "expansion_factor, in an arm",
    "embedding_model": "data.model",
    "encoder": "data.model",
    "epochs": "train.samples: the budget, a number of embeddings",
    "gpu": "run.devices",
    "gpus": "run.devices",
    "l0_target": "target_l0, in an arm",
    "l1_coefficient": "l1_coeff, or better target_l0, in an arm",
    "l1_lambda": "l1_coeff, or better target_l0, in an arm",
    "learning_rate": "train.lr",
    "max_epochs": "train.samples: the budget, a number of embeddings",
    "max_steps": "train.samples: the budget, a number of embeddings",
    "n_epochs": "train.samples: the budget, a number of embeddings",
    "n_features": "dict_size, in an arm",
    "n_latents": "dict_size, in an arm",
    "n_samples": "train.samples, or data.num_examples for the texts",
    "n_steps": "train.samples: the budget, a number of embeddings",
    "num_epochs": "train.samples: the budget, a number of embeddings",
    "num_latents": "dict_size, in an arm",
    "random_seed": "seeds",
    "random_state": "seeds",
    "seed": "seeds",
    "sparsity": "k or target_l0, in an arm",
    "steps": "train.samples: the budget, a number of embeddings",
    "text_field": "data.dataset.text_column",
    "total_steps": "train.samples: the budget, a number of embeddings",
    "trials": "search.points",
    "n_trials": "search.points",
}
"""An unknown key -> the key of a spec with that meaning."""


def synonym_hint(name: str) -> str:
    """Return a hint for an unknown key, or ""."""
    key = MEANT.get(name.lower())
    return f"here that is {key}" if key else ""
