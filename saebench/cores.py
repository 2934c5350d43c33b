"""The number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_cores() -> int:
    """Return the number of cores that affinity and the quota of the cgroup (a container's `--cpus`) allow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(cgroup_quota(_QUOTA))))


def cgroup_quota(path: Path) -> float:
    """Return the cores of a cgroup-2 `cpu.max` ("200000 100000" is 2); a large number if there is no limit."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return float(1 << 20)
