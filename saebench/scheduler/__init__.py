"""The loop that runs a sweep's trials, what it writes down, and how it goes on after its own death."""

from saebench.scheduler.loop import Scheduler
from saebench.scheduler.requests import Halt

__all__ = ["Halt", "Scheduler"]
