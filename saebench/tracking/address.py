"""Which address a start of a sweep uses: the one it began at, as long as that is there."""

from __future__ import annotations

from collections.abc import Callable

from saebench.sweep_config import TrackingConfig
from saebench.tracking.database import file_of
from saebench.tracking.server import resolve_uri, without_password


def address(tracking: TrackingConfig, before: str | None, note: Callable[[str], None]) -> str:
    """The spec's URI, or what it resolves to; `before`, where the sweep began, wins over an address that only the
    environment or the working directory gives (unless it was a file which is gone: a project's folder may be moved, or
    had a password, which is not kept). What was not to be expected is told to `note`."""
    uri = resolve_uri(tracking)
    shown = without_password(uri)
    if tracking.uri or not before or before == shown or "***" in before:
        return uri
    file = file_of(before)
    if file is not None and not file.exists():
        note(f"tracking goes on at {shown}: {file}, where this sweep began, is not there")
        return uri
    note(f"tracking stays at {before}, where this sweep began")
    return before
