"""What one trial is made of: frozen, typed, without torch or MLflow.

Every field is declared here once. `spec/` lets the fields of an arm and of `train` be searched, `plan.py` turns the
result into `TrialConfig`s, a worker reads one of those and nothing else.
"""

from saebench.config.architectures import (
    AbsTopKConfig,
    BatchTopKConfig,
    GatedConfig,
    HierarchicalTopKConfig,
    JumpReLUConfig,
    KSparseConfig,
    MatryoshkaConfig,
    OMPConfig,
    PAnnealConfig,
    TopKConfig,
    VanillaConfig,
    nested_widths,
)
from saebench.config.base import Coefficient, Config, Fraction, PositiveFloat, PositiveInt
from saebench.config.data import FILE_FORMATS, LARGEST_CORPUS, DataConfig, DatasetConfig, HoldoutConfig, template_fields
from saebench.config.sae import SAE_CONFIGS, AnySAEConfig, Control, Penalty, Preprocess, SAEConfig, Start
from saebench.config.trial import (
    DEAD_WINDOW,
    FIXED_TRAIN_FIELDS,
    TrainConfig,
    TrialConfig,
    default_batch_size,
    default_eval_every,
    log_interval,
    marks,
)

__all__ = [
    "DEAD_WINDOW",
    "FILE_FORMATS",
    "FIXED_TRAIN_FIELDS",
    "LARGEST_CORPUS",
    "SAE_CONFIGS",
    "AbsTopKConfig",
    "AnySAEConfig",
    "BatchTopKConfig",
    "Coefficient",
    "Config",
    "Control",
    "DataConfig",
    "DatasetConfig",
    "Fraction",
    "GatedConfig",
    "HierarchicalTopKConfig",
    "HoldoutConfig",
    "JumpReLUConfig",
    "KSparseConfig",
    "MatryoshkaConfig",
    "OMPConfig",
    "PAnnealConfig",
    "Penalty",
    "PositiveFloat",
    "PositiveInt",
    "Preprocess",
    "SAEConfig",
    "Start",
    "TopKConfig",
    "TrainConfig",
    "TrialConfig",
    "VanillaConfig",
    "default_batch_size",
    "default_eval_every",
    "log_interval",
    "marks",
    "nested_widths",
    "template_fields",
]
