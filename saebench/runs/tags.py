"""Names of the tags that saebench sets on runs in MLflow. The report reads what tracking writes, by these names."""

from __future__ import annotations


class Tag:
    """Names; never instantiated."""

    # on every run
    KIND = "saebench.kind"
    """sweep (a parent run) or trial."""
    SWEEP = "saebench.sweep"
    STATE = "saebench.state"
    HOST = "saebench.host"
    VERSION = "saebench.version"
    VERSIONS = "saebench.versions"

    # on a parent run
    ID = "saebench.id"
    """Id of the sweep's directory: finds the run if its id was not received or was lost."""
    OBJECTIVE = "saebench.objective"
    """With `direction`: for a report without the sweep's directory."""
    DIRECTION = "saebench.direction"
    PRIMARY = "saebench.primary"
    """eval.primary and eval.margin as JSON, for a report without the sweep's directory."""
    MARGIN = "saebench.margin"
    DESCRIPTION = "saebench.description"
    """The spec's description; `mlflow.note.content` has the verdict below it once the sweep has ended."""
    REPORT = "saebench.report"
    """The report's verdict in words, once the sweep has ended."""
    CHECKS = "saebench.checks"
    """The report's checks that failed, a line each."""
    BEST = "saebench.best"
    """saebench.best.k16: the best trial at that level of sparsity."""
    COUNTS = "saebench.counts"
    """Trials by state, as JSON, once the sweep has ended."""

    # on a trial's run
    TRIAL = "saebench.trial"
    STRATUM = "saebench.stratum"
    POINT = "saebench.point"
    SEED = "saebench.seed"
    TYPE = "saebench.type"
    ROLE = "saebench.role"
    """search (its value chose the point) or compare (it measures the chosen point)."""
    REFINED = "saebench.refined"
    """1: a point added around the best one, not drawn."""
    CHOICE = "saebench.choice"
    """Of a trial that measures the chosen point of its stratum: 1, or higher once another point was chosen later (more
    points were drawn); the highest of a stratum counts."""
    SEARCH_ERROR = "saebench.search_error"
    """Beside CHOICE, as JSON: gap (by how much the objective of the chosen point may be worse than the best of the
    ranges, as log-ratio or difference; null: unknown), edge (ranges at whose end the best point lies), needed (drawn
    points that would locate it, if there were too few), drawn, refined (points tried), searched (the ranges)."""
    SECONDS = "saebench.seconds"
    """Seconds that it trained, over all attempts, without the time between them."""
    REASON = "saebench.reason"
    """Reason for its state, in one line."""
    VERDICT = "saebench.verdict"
    """The pruner's numbers, as JSON."""
    FAILURE = "saebench.failure"
    ATTEMPT = "saebench.attempt"
    DEVICE = "saebench.device"
    NONFINITE = "saebench.nonfinite"
    """Metric -> examples at which it was first NaN or infinite, as JSON."""
    KEPT = "saebench.kept"
    """Examples after which the SAE that is kept was measured, if a mark before the last was better."""
    ARTIFACTS = "saebench.artifacts"
    """Why its files were not uploaded."""
