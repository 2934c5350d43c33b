"""The interfaces and file layouts of other SAE packages, implemented with saebench's SAEs.

This module: SAEs configured by one flat dictionary, for sentence embeddings.

    cfg = get_default_cfg()
    cfg.update({"sae_type": "batchtopk", "act_size": 384, "dict_size": 3072, "top_k": 16})
    cfg = post_init_cfg(cfg)
    sae = sae_classes[cfg["sae_type"]](cfg)
    train_sae(sae, ActivationsStoreSBERT(model=sbert, cfg=cfg), sbert, cfg)

compat/settings.py documents the keys, compat/modules.py the modules. See also compat/overcomplete.py (a BatchTopK
module with concepts and a dictionary layer), compat/saelens.py and compat/dictionary_learning.py (files).
"""

from __future__ import annotations

from saebench.compat.modules import BatchTopKSAE, JumpReLUSAE, TopKSAE, VanillaSAE
from saebench.compat.settings import SettingsError, get_default_cfg, post_init_cfg
from saebench.compat.trainable import TrainableSAE
from saebench.compat.training import train_sae

sae_classes: dict[str, type[TrainableSAE]] = {
    "vanilla": VanillaSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
}

__all__ = [
    "BatchTopKSAE",
    "JumpReLUSAE",
    "SettingsError",
    "TopKSAE",
    "TrainableSAE",
    "VanillaSAE",
    "get_default_cfg",
    "post_init_cfg",
    "sae_classes",
    "train_sae",
]
