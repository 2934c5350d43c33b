"""The loop that runs a sweep's trials, its records, and its recovery after a crash."""

from saebench.scheduler.loop import Scheduler
from saebench.scheduler.requests import Halt

__all__ = ["Halt", "Scheduler"]
