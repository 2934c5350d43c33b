"""The parts of a sweep around its trials: search, pruning, budget, failures, where it runs, tracking, metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from saebench.config import Config, Fraction, PositiveFloat, PositiveInt

TPE_STARTUP = 10
"""Points of the shared sequence with which the sampler tpe begins before it learns."""


class SearchConfig(Config):
    """How points are drawn inside a stratum."""

    sampler: Literal["grid", "random", "qmc", "tpe", "cmaes"] = "tpe"
    """Optuna sampler; grid crosses every list."""
    points: PositiveInt | None = None
    """Points drawn per stratum, a target (not that many more on resume); null: one, or the whole grid."""
    refine: Annotated[int, Field(ge=0)] = 4
    """Points that may be added per stratum around the best one, where ranges are searched; fewer once it is located."""
    objective: str = "eval/fvu"
    """Metric to improve, measured on the validation part."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better."""
    seed: int = 0
    """Seed of the samplers. Strata that search the same space draw the same points."""
    strata: tuple[str, ...] | None = None
    """Stratum axes; null: type, the sparsity parameter and the width."""
    storage: str | None = None
    """Where Optuna's journal lies: null for a file of the sweep, or postgresql://user@host/database."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Known-good points to try first; each applies to the strata that have its parameters."""


class PruneConfig(Config):
    """When a trial is stopped early."""

    pruner: Literal["none", "median", "asha", "hyperband", "threshold", "pareto"] = "median"
    """Rule of the verdict; trials are compared inside their stratum, at the same number of examples."""
    warmup: PositiveInt | None = None
    """Examples before the first verdict; null: a fifth of the budget. Never within lr warm-up, sparsity ramp and the
    first dead window."""
    startup_trials: Annotated[int, Field(ge=0)] = 2
    """Complete trials a stratum needs before median prunes."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Of asha and hyperband: the share kept at a rung is 1 / this."""
    upper: float | None = None
    """Of threshold: stop above this value."""
    lower: float | None = None
    """Of threshold: stop below this value."""
    margin: Annotated[float, Field(ge=0)] = 0.05
    """Of pareto: by how much another trial must be better in both L0 and FVU, relative."""


class BudgetConfig(Config):
    """Limits after which the sweep ends cleanly, resumable."""

    wall_hours: PositiveFloat | None = None
    """Hours the scheduler runs."""
    trial_minutes: PositiveFloat | None = None
    """Minutes one trial may train."""
    samples: PositiveInt | None = None
    """Examples trained on, over all trials."""


class RetriesConfig(Config):
    """Further attempts a trial gets, by what ended it."""

    crash: Annotated[int, Field(ge=0)] = 2
    """The worker raised, or died of a signal other than SIGKILL."""
    host_oom: Annotated[int, Field(ge=0)] = 1
    """The worker was killed by SIGKILL, as the kernel does when memory ends."""
    stall: Annotated[int, Field(ge=0)] = 1
    """No sign of life for `stall_after` seconds."""
    cuda_oom: Annotated[int, Field(ge=0)] = 1
    """Only when the trial shared its device; alone on it, more attempts would end the same way."""
    diverged: Annotated[int, Field(ge=0)] = 0
    """A loss or metric became NaN or infinite."""
    collapsed: Annotated[int, Field(ge=0)] = 0
    """A training without a penalty ended with a training FVU far above what it had been."""
    lost: Annotated[int, Field(ge=0)] = 20
    """The machine it ran on is gone or cannot be reached."""
    preempted: Annotated[int, Field(ge=0)] = 20
    """Its machine was taken back by the cluster, and it left with a checkpoint."""


class FailuresConfig(Config):
    """What happens when trials fail."""

    retries: RetriesConfig = RetriesConfig()
    """Attempts per class of failure."""
    stall_after: PositiveFloat = 600
    """Seconds without a sign of life after which a worker is killed."""
    quarantine_after: PositiveInt = 3
    """Crashes in a row after which a device is taken out of the pool."""
    abort_fraction: Fraction = 0.5
    """Share of failed trials at which the sweep gives up, once `abort_min` trials have ended."""
    abort_min: PositiveInt = 10
    """Ended trials before `abort_fraction` counts."""


class RunConfig(Config):
    """Where trials run."""

    executor: Literal["local", "in_process", "ray"] = "local"
    """local: processes on this machine. in_process: threads of the sweep's own process, on the CPU, for debuggers. ray:
    processes on the machines of a Ray cluster (docs/cluster.md). May differ at every start."""
    devices: Literal["auto", "cpu", "mps"] | tuple[int | str, ...] = "auto"
    """auto: CUDA, then MPS, then CPU; a list names GPUs by index or UUID."""
    per_device: PositiveInt | None = None
    """Trials at once on one device; null: 1 on a GPU, one per two cores on the CPU."""
    threads: PositiveInt | None = None
    """Cores of each trial; null: those of the machine divided by its slots. Fixed at the first start: on the CPU the
    last bits of a sum depend on it."""
    grace: PositiveFloat = 60
    """Seconds a trial has to write its checkpoint and leave before it is killed: below what the site gives (Slurm's
    KillWait, Kubernetes' terminationGracePeriodSeconds). May differ at every start."""
    address: str | None = None
    """Of ray: HOST:PORT of the head; null: RAY_ADDRESS, else the cluster of this machine. May differ at every start."""
    agents: Literal["auto"] | PositiveInt = "auto"
    """Of ray: how many devices (on the CPU: machines, or shares of per_device x threads cores) to ask for; auto: all
    there are, and those that join later. May differ at every start."""
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of ray: share of a GPU that a trial gets; null: a whole one, divided by per_device. May differ at every start."""
    storage: Literal["auto", "shared", "streamed"] = "auto"
    """Of ray: shared: machines see the sweep's directory under the same path. streamed: they do not, files are copied.
    auto: found out for each machine. May differ at every start."""
    transfer_mbps: PositiveFloat = 50
    """Of ray: megabytes per second that copies of checkpoints may take together, where they are copied. May differ at
    every start."""
    insecure: bool = False
    """Of ray: use a cluster without token authentication, where everybody who reaches its ports runs code. May differ
    at every start."""
    failures: FailuresConfig = FailuresConfig()
    """Retries, stalls and when to give up."""


class TrackingConfig(Config):
    """Where metrics are recorded."""

    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else MLflow's own default, made absolute."""
    experiment: str | None = None
    """MLflow experiment; null: MLFLOW_EXPERIMENT_NAME, else the sweep's name."""
    log_sae: Literal["all", "best", "none"] = "all"
    """Whose SAE is copied to MLflow's artifacts: every trial's, at the end the best one's of each stratum, nobody's.
    All of them are in the sweep's directory; logs and evaluations are always copied. May differ at every start."""
    log_model: bool = False
    """Log the SAEs that are copied as MLflow models (pyfunc) too."""


class EvalConfig(Config):
    """Embedding-aware metrics beyond the basic ones."""

    extra: Literal["none", "final"] = "final"
    """final: computed at the end of every trial."""
    metrics: tuple[
        Literal[
            "knn_overlap_at_10",
            "similarity_rank_correlation",
            "probing",
            "code_stability_duplicates",
            "coherence",
            "example_auroc",
            "label_match",
        ],
        ...,
    ] = ("knn_overlap_at_10",)
    """Which ones. coherence, example_auroc and label_match, of what latents mean (docs/latents.md), need the cache."""
    second_encoder: str | None = None
    """Another SentenceTransformer, by name or path, that judges example_auroc; it encodes all texts once, too."""
    primary: tuple[str, ...] = ("fvu",)
    """Metrics that the verdict is about, without prefix; the search's objective stays one metric."""
    margin: Annotated[float, Field(ge=0)] = 0.005
    """Differences below this do not matter: 0.005 is 0.5% of FVU, and 0.005 of a score such as a cosine or an AUC."""
