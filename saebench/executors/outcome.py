"""How an attempt ended, by its last event: the same for every executor."""

from __future__ import annotations

from saebench.runs.events import Event, FailureKind

NO_RESULT = "exited with status 0 but recorded neither a result nor a checkpoint"


def recorded_outcome(last: Event | None, *, killed: bool) -> tuple[FailureKind | None, str] | None:
    """Return (kind, one line of detail) from the last event or from the request to kill; None if there is neither. A
    recorded event takes precedence over how the process ended after it."""
    if last is not None and last.type in ("done", "left"):
        return None, str(last.info.get("why", last.type))
    if last is not None and last.type == "failed":
        return last.info["kind"], last.info["message"]
    return ("killed", "killed") if killed else None
