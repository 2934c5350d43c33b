"""Sweeps of sparse autoencoders over sentence embeddings.

Everything here is imported on first use, so that `import saebench`, the scheduler and the command line do not import
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench import report as report
    from saebench.compat import BatchTopKSAE as BatchTopKSAE
    from saebench.compat import JumpReLUSAE as JumpReLUSAE
    from saebench.compat import TopKSAE as TopKSAE
    from saebench.compat import VanillaSAE as VanillaSAE
    from saebench.compat import get_default_cfg as get_default_cfg
    from saebench.compat import post_init_cfg as post_init_cfg
    from saebench.compat import sae_classes as sae_classes
    from saebench.compat import train_sae as train_sae
    from saebench.errors import UserError as UserError
    from saebench.plan import make_plan as make_plan
    from saebench.runs.state import trial_config as trial_config
    from saebench.saes import SAE as SAE
    from saebench.saes import load_sae as load_sae
    from saebench.saes import make_sae as make_sae
    from saebench.saes import save_sae as save_sae
    from saebench.spec import SweepSpec as SweepSpec
    from saebench.spec import load_spec as load_spec
    from saebench.sweep import SweepResult as SweepResult
    from saebench.sweep import run_sweep as run_sweep

_HOME = {
    "run_sweep": "saebench.sweep",
    "SweepResult": "saebench.sweep",
    "load_spec": "saebench.spec",
    "trial_config": "saebench.runs.state",
    "SweepSpec": "saebench.spec",
    "make_plan": "saebench.plan",
    "SAE": "saebench.saes",
    "make_sae": "saebench.saes",
    "load_sae": "saebench.saes",
    "save_sae": "saebench.saes",
    "UserError": "saebench.errors",
    "ActivationStore": "saebench.stores",
    "TensorActivationStore": "saebench.stores",
    "DiskActivationStore": "saebench.stores",
    "StoreFullError": "saebench.stores",
    "ActivationsStoreSBERT": "saebench.stores",
    "open_store": "saebench.stores",
    "Training": "saebench.trial.trainer",
    "train": "saebench.trial.trainer",
    "evaluate": "saebench.trial.evaluation",
    "VanillaSAE": "saebench.compat",
    "TopKSAE": "saebench.compat",
    "BatchTopKSAE": "saebench.compat",
    "JumpReLUSAE": "saebench.compat",
    "get_default_cfg": "saebench.compat",
    "post_init_cfg": "saebench.compat",
    "sae_classes": "saebench.compat",
    "train_sae": "saebench.compat",
}
"""Public name -> its module."""
_MODULES = ("report", "saes", "stores", "config", "errors")

__all__ = [*_HOME, "__version__", "report"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"saebench.{name}")
    raise AttributeError(f"module 'saebench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("saebench")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
