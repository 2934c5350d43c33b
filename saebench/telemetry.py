"""Turn off libraries' reports of their use to their makers, in every process of ours."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` asks s3.amazonaws.com for every local file it reads
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow writes an installation id to the home folder and asks the DNS
}


def disable() -> None:
    """Set the variables that switch telemetry off. Call it before the libraries are imported; one that the user has
    set stays as it is."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
