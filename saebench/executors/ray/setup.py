"""The settings of an agent and its trials."""

from __future__ import annotations

import json
from dataclasses import dataclass

from saebench.executors.ray.shares import Share
from saebench.sweep_config import RunConfig


@dataclass(frozen=True)
class Setup:
    """Settings that all agents of a sweep share."""

    run: RunConfig
    cache_dir: str
    """The scheduler's cache."""
    target: str
    """module:function of a trial."""
    lease: float
    """Seconds without a poll after which an agent ends."""

    def for_agent(self, share: Share, epoch: str, nonce: str) -> str:
        """Return an agent's setup as JSON: that of a local executor with the share's slots. nonce: name of a file in
        the scheduler's cache, by which an agent checks that it sees that cache."""
        slots = {"devices": "auto" if share.gpus else "cpu", "per_device": share.slots, "threads": share.threads}
        run = self.run.model_copy(update={"executor": "local", **slots})
        settings = {
            "run": run.model_dump(mode="json"),
            "cache_dir": self.cache_dir,
            "cache_nonce": nonce,
            "target": self.target,
            "lease": self.lease,
            "grace": self.run.grace,
            "storage": self.run.storage,
            "epoch": epoch,
        }
        return json.dumps(settings)
