"""Settings of a sweep outside its trials: search, pruning, budget, failures, executors, tracking, metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from saebench.config import Config, Fraction, PositiveFloat, PositiveInt

TPE_STARTUP = 10
"""Points that the sampler tpe takes from the shared sequence before it uses earlier results."""


class SearchConfig(Config):
    """How points are drawn within a stratum."""

    sampler: Literal["grid", "random", "qmc", "tpe", "cmaes"] = "tpe"
    """Optuna sampler. grid tries all combinations of the listed values and takes no ranges."""
    points: PositiveInt | None = None
    """Points per stratum in total: a resumed sweep continues up to this number. null: one, for grid all
    combinations."""
    refine: Annotated[int, Field(ge=0)] = 4
    """Most points per stratum to add around the best one if ranges are searched; fewer if the optimum is located
    sooner."""
    objective: str = "eval/fvu"
    """Metric to optimise, measured on the validation part."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether smaller or larger values of the objective are better."""
    seed: int = 0
    """Seed of the samplers. Strata with the same search space draw the same points."""
    strata: tuple[str, ...] | None = None
    """Parameters that define a stratum; null: type, the sparsity parameter and the width."""
    storage: str | None = None
    """Storage of Optuna's journal: postgresql://user@host/database; null: a file in the sweep's directory."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Points to try first; each is used in the strata that have its parameters."""


class PruneConfig(Config):
    """When a trial is stopped early."""

    pruner: Literal["none", "median", "asha", "hyperband", "threshold", "pareto"] = "median"
    """Rule that stops trials. Trials are compared within their stratum, at the same number of examples."""
    warmup: PositiveInt | None = None
    """Examples before a trial may be stopped; null: a fifth of `train.samples`. No trial is stopped during lr warm-up,
    the sparsity ramp or the first `dead_after` examples."""
    startup_trials: Annotated[int, Field(ge=0)] = 2
    """For median: complete trials in a stratum before the first trial is stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """For asha and hyperband: one trial in this many continues beyond a rung."""
    upper: float | None = None
    """For threshold: stop a trial if the objective is above this value."""
    lower: float | None = None
    """For threshold: stop a trial if the objective is below this value."""
    margin: Annotated[float, Field(ge=0)] = 0.05
    """For pareto: stop a trial if another is better in both L0 and FVU by this fraction."""


class BudgetConfig(Config):
    """Limits that end the sweep; it can be resumed."""

    wall_hours: PositiveFloat | None = None
    """Most hours that one start of the sweep may run; null: no limit."""
    trial_minutes: PositiveFloat | None = None
    """Most minutes that one trial may train; null: no limit."""
    samples: PositiveInt | None = None
    """Most examples that all trials together may train on; null: no limit."""


class RetriesConfig(Config):
    """Further attempts of a trial, by the cause of its failure."""

    crash: Annotated[int, Field(ge=0)] = 2
    """The worker raised an exception or was ended by a signal other than SIGKILL."""
    host_oom: Annotated[int, Field(ge=0)] = 1
    """Memory did not suffice, or the worker was ended by SIGKILL, which the kernel sends when memory runs out."""
    stall: Annotated[int, Field(ge=0)] = 1
    """The worker sent nothing for `stall_after` seconds."""
    cuda_oom: Annotated[int, Field(ge=0)] = 1
    """The GPU ran out of memory while the trial shared it; alone on a GPU, a trial is not retried."""
    diverged: Annotated[int, Field(ge=0)] = 0
    """A loss or metric became NaN or infinite."""
    collapsed: Annotated[int, Field(ge=0)] = 0
    """Training without a penalty ended with a training FVU far above an earlier one."""
    lost: Annotated[int, Field(ge=0)] = 20
    """The machine of the trial is gone or cannot be reached."""
    preempted: Annotated[int, Field(ge=0)] = 20
    """The cluster reclaimed the machine and the trial wrote a checkpoint."""


class FailuresConfig(Config):
    """Retries, and when a device or the whole sweep is given up."""

    retries: RetriesConfig = RetriesConfig()
    """Further attempts by class of failure."""
    stall_after: PositiveFloat = 600
    """Seconds without an event or heartbeat after which a worker is killed."""
    quarantine_after: PositiveInt = 3
    """Consecutive crashes after which a device is no longer used."""
    abort_fraction: Fraction = 0.5
    """The sweep ends if this share of trials failed and at least `abort_min` trials have ended."""
    abort_min: PositiveInt = 10
    """Ended trials before `abort_fraction` is checked."""


class RunConfig(Config):
    """Where and how trials run."""

    executor: Literal["local", "in_process", "ray"] = "local"
    """local: processes on this machine. in_process: threads of the sweep's own process, on the CPU, for debuggers. ray:
    processes on the machines of a Ray cluster (docs/cluster.md). May differ at every start."""
    devices: Literal["auto", "cpu", "mps"] | tuple[int | str, ...] = "auto"
    """auto: the first kind that is available of CUDA, MPS, CPU. A list names GPUs by index or UUID."""
    per_device: PositiveInt | None = None
    """Concurrent trials per device; null: 1 on a GPU, one per two cores on the CPU."""
    threads: PositiveInt | None = None
    """CPU threads per trial; null: the machine's cores divided by its concurrent trials. Fixed at the first start
    because the last bits of sums on the CPU depend on it."""
    grace: PositiveFloat = 60
    """Seconds that a trial has to write a checkpoint and exit before it is killed. Choose less than the site allows
    (Slurm's KillWait, Kubernetes' terminationGracePeriodSeconds). May differ at every start."""
    address: str | None = None
    """For ray: HOST:PORT of the head; null: RAY_ADDRESS, else the cluster on this machine. May differ at every
    start."""
    agents: Literal["auto"] | PositiveInt = "auto"
    """For ray: number of devices (on the CPU: machines, or shares of per_device x threads cores) to request; auto: all
    of the cluster, including those that join later. May differ at every start."""
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] | None = None
    """For ray: share of a GPU per trial; null: 1 / per_device. May differ at every start."""
    storage: Literal["auto", "shared", "streamed"] = "auto"
    """For ray. shared: all machines see the sweep's directory under the same path. streamed: they do not, so files are
    copied. auto: detect it for each machine. May differ at every start."""
    transfer_mbps: PositiveFloat = 50
    """For ray: limit in megabytes per second on all copies of checkpoints together, if storage is streamed. May differ
    at every start."""
    insecure: bool = False
    """For ray: accept a cluster without token authentication; anybody who reaches its ports can run code on it. May
    differ at every start."""
    failures: FailuresConfig = FailuresConfig()
    """Retries, stalled workers and when to give up."""


class TrackingConfig(Config):
    """Where metrics and SAEs are recorded in MLflow."""

    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else MLflow's own default, made absolute."""
    experiment: str | None = None
    """MLflow experiment; null: MLFLOW_EXPERIMENT_NAME, else the sweep's name."""
    log_sae: Literal["all", "best", "none"] = "all"
    """SAEs to copy to MLflow's artifacts. all: of every trial; best: at the end, of the best trial of each stratum;
    none. The sweep's directory keeps every SAE; logs and evaluations are always copied. May differ at every start."""
    log_model: bool = False
    """Also log the copied SAEs as MLflow models (pyfunc)."""


class EvalConfig(Config):
    """Additional metrics, and how the verdict uses them."""

    extra: Literal["none", "final"] = "final"
    """When `metrics` are computed. final: at the end of every trial; none: never."""
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
    """Additional metrics to compute. coherence, example_auroc and label_match (docs/latents.md) need `data.cache`."""
    second_encoder: str | None = None
    """Name or path of the SentenceTransformer that example_auroc is computed with; it also encodes all texts once."""
    primary: tuple[str, ...] = ("fvu",)
    """Metrics that the verdict is about, without prefix. They do not change `search.objective`."""
    margin: Annotated[float, Field(ge=0)] = 0.005
    """Differences below this count as equal: 0.005 means 0.5% of FVU, or 0.005 of a score such as a cosine or an
    AUC."""
