"""One small config of every SAE type, for all tests that go through the types: one that is missing fails them."""

from __future__ import annotations

from typing import Any

from saebench.config import SAE_CONFIGS, KSparseConfig, SAEConfig

EXAMPLES: dict[str, dict[str, Any]] = {
    "vanilla": {"target_l0": 4.0},
    "topk": {"k": 4},
    "batchtopk": {"k": 4.0},
    "jumprelu": {"target_l0": 4.0},
    "gated": {"l1_coeff": 0.05},
    "matryoshka": {"k": 4.0},
    "p_anneal": {"target_l0": 4.0},
    "omp": {"k": 4, "refit_every": 2},
    "abs_topk": {"k": 4},
    "hierarchical_topk": {"k": 4},
}
assert EXAMPLES.keys() == SAE_CONFIGS.keys(), "a new type: give it an example here"
TYPES = tuple(EXAMPLES)
K_SPARSE = tuple(kind for kind in TYPES if issubclass(SAE_CONFIGS[kind], KSparseConfig))


def example(kind: str, **fields: Any) -> SAEConfig:
    """The example of a type with `fields` changed; a sparsity parameter among them replaces the example's own."""
    config = SAE_CONFIGS[kind]
    own = EXAMPLES[kind]
    if any(name in fields for name in config.sparsity):
        own = {name: value for name, value in own.items() if name not in config.sparsity}
    return config.model_validate({"dict_size": 48, **own, **fields})


PENALISED = tuple(kind for kind in TYPES if example(kind).penalty is not None)
