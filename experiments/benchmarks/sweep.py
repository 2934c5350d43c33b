"""Wall-clock of a 12-trial sweep against the same 12 trials with encoding in each, as shell loops do it.

    python experiments/benchmarks/sweep.py [--texts 2000]

Every trial passes once over the texts, as a script that streams them does (a second pass would encode them a second
time there). Both sides train the same trials from the same spec, from an empty cache, one after the other in one run;
the only difference is `data.cache`. Needs the encoder of the extra [demo].
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import saebench

GLOSSES = Path(__file__).parents[2] / "sweeps" / "data" / "wordnet_glosses.parquet"
SPEC = """
name: {name}
data:
  model: sentence-transformers/all-MiniLM-L6-v2
  dataset: {{path: parquet, data_files: {glosses}, text_column: text}}
  num_examples: {texts}
  cache: {cache}
sae:
  - {{type: topk, k: [16, 32], dict_size: [768, 1536]}}
  - {{type: batchtopk, k: [16, 32], dict_size: 768}}
train: {{samples: {samples}, batch_size: 256, lr: 1e-3, eval_every: {samples}}}
seeds: [0, 1]
search: {{sampler: grid}}
prune: {{pruner: none}}
run: {{devices: cpu, per_device: {per_device}}}
eval: {{extra: none}}
"""


def measure(cache: bool, args: argparse.Namespace, folder: Path) -> float:
    """Seconds that one sweep of 12 trials takes from an empty cache."""
    name = "encode_once" if cache else "encode_in_every_trial"
    spec = folder / f"{name}.yaml"
    spec.write_text(
        SPEC.format(
            name=name,
            glosses=GLOSSES,
            texts=args.texts,
            samples=args.texts * 85 // 100,
            per_device=args.per_device,
            cache="on" if cache else "off",
        )
    )
    start = time.perf_counter()
    result = saebench.run_sweep(
        spec,
        runs_dir=folder / "runs",
        cache_dir=folder / f"cache_{name}",
        overrides=[f"tracking.uri=sqlite:///{folder / name}.db"],
    )
    seconds = time.perf_counter() - start
    if result.exit_code != 0 or result.counts.get("complete") != 12:
        raise SystemExit(f"{name}: {result.counts}")
    return seconds


def main() -> None:
    """Measure both ways and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--per-device", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        once = measure(True, args, Path(folder))
        each = measure(False, args, Path(folder))
    machine = platform.processor() or platform.machine()
    print(f"\n12 trials, {args.texts} texts, one pass each; {machine}\n")
    print("| way | seconds | ratio |\n| --- | --- | --- |")
    print(f"| encode once (saebench) | {once:.0f} | 1 |")
    print(f"| encode in every trial | {each:.0f} | {each / once:.1f} |")


if __name__ == "__main__":
    main()
