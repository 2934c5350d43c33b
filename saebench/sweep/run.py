"""`run_sweep`: from a spec to the last trial, and the same call again to resume.

First everything that can fail is checked (spec, tracking server, devices, texts and encoder, widths), then the sweep's
directory gets its lock.json, and only then trials start. A sweep that fails earlier leaves no files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench import telemetry
from saebench.errors import PreflightError, StorageLostError, environment_error_message
from saebench.executors import TARGET
from saebench.runs import paths as places
from saebench.runs.holder import hold_sweep_dir
from saebench.runs.paths import SweepPaths
from saebench.scheduler.interrupts import Interrupts
from saebench.scheduler.ledger import MovedError
from saebench.spec import SweepSpec
from saebench.sweep.embeddings import StoppedError
from saebench.sweep.given import given_spec
from saebench.sweep.life import SweepRun
from saebench.sweep.result import SweepResult
from saebench.terminal.views import LoggedView, View, choose_view

if TYPE_CHECKING:
    from saebench.executors import Executor


def run_sweep(
    spec: str | Path | SweepSpec | Mapping[str, Any],
    *,
    runs_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    extend: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    view: View | None = None,
    target: str = TARGET,
    executor: Executor | None = None,
    circular_anyway: bool = False,
) -> SweepResult:
    """Run a sweep, or resume it. Works from a script (no main guard), a notebook or a thread.

    spec: a file, a mapping as YAML would give it, or a `SweepSpec`. overrides: "key=value" as for `--set`. extend: add
    seeds, points, devices or budget to an existing sweep. retry_failed: retry failed trials. target: "module:function"
    that a worker runs for a trial, with the signature of `trial.run_trial`. executor: an object of the protocol
    `executors.Executor` to use instead of `run.executor`; it is closed at the end. circular_anyway: allow `data.model`
    itself as `eval.second_encoder`.

    Raises SpecError, PreflightError or LockedError (all UserErrors, one clear line) before anything is started.
    """
    telemetry.disable()
    with preflight():
        given = given_spec(spec, overrides)
        paths = SweepPaths(places.runs_dir(runs_dir) / given.spec.name)
    with (
        Interrupts() as signals,
        hold_sweep_dir(paths),
        LoggedView(view or choose_view(quiet=quiet), paths.log) as shown,
    ):
        work = SweepRun(given, paths, places.cache_dir(cache_dir), shown, signals, target, executor, circular_anyway)
        try:
            return work.run(extend, retry_failed)
        except KeyboardInterrupt:
            shown.say(f"{signals.why or 'interrupted'}: ended at once")
            return SweepResult(paths.name, paths.root, signals.exit_code, signals.why)
        except StoppedError:
            shown.say("ended early: saebench stop; run the same command to resume")
            return SweepResult(paths.name, paths.root, 75, "saebench stop")
        except StorageLostError as error:
            if not work.begun:
                raise PreflightError(str(error)) from None
            shown.say(f"ended early: {error}; run the same command to resume")
            return SweepResult(paths.name, paths.root, 75, str(error))
        except MovedError as error:
            shown.say(f"ended early: {error}; move it back, or resume it from where it is now")
            return SweepResult(paths.name, paths.root, 75, str(error))
        except (OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, FileNotFoundError) and work.begun and not paths.lock.exists():
                moved = f"{paths.root}: was moved or deleted while the sweep ran"
                shown.say(f"ended early: {moved}; move it back, or resume it from where it is now")
                return SweepResult(paths.name, paths.root, 75, moved)
            message = environment_error_message(error)
            if message is None:
                raise
            if getattr(error, "filename", None) is None:
                message = f"{paths.root}: {message}"
            if not paths.lock.exists():
                raise PreflightError(message) from error
            shown.say(f"ended early: {message}; fix that, then run the same command to resume")
            return SweepResult(paths.name, paths.root, 75, message)
        finally:
            work.close()


@contextlib.contextmanager
def preflight() -> Iterator[None]:
    """Turn an error of the machine before the start into a PreflightError."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if (message := environment_error_message(error)) is None:
            raise
        raise PreflightError(message) from error
