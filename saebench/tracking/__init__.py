"""MLflow: the only package that writes to it."""

from __future__ import annotations

from saebench.tracking.address import resolve_uri
from saebench.tracking.tracker import Lag, Tracker

__all__ = ["Lag", "Tracker", "resolve_uri"]
