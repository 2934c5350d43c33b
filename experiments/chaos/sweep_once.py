"""One life of a scheduler: `python sweep_once.py NAME RUNS CACHE URI`. No main guard, on purpose."""

import sys
from pathlib import Path

from saebench import run_sweep
from saebench.errors import UserError
from saebench.terminal.views import PlainView

name, runs, cache, uri = sys.argv[1:]
try:
    result = run_sweep(
        Path(__file__).parent / "spec.yaml",
        overrides=[f"name={name}", f"tracking.uri={uri}", "tracking.experiment=chaos"],
        runs_dir=runs,
        cache_dir=cache,
        view=PlainView(),
        target="chaos_target:run_trial",
    )
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
sys.exit(result.exit_code)
