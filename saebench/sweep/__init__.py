"""A sweep's life, from preflight to the end."""

from saebench.sweep.given import spec_of as spec_of
from saebench.sweep.result import SweepResult as SweepResult
from saebench.sweep.run import run_sweep as run_sweep
