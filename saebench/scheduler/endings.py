"""What follows when an attempt ends: its trial is complete, pruned, interrupted, retried or failed, and a device on
which attempts keep crashing is taken out of service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saebench.executors import Executor, ExitMessage, Slot
from saebench.runs.events import FailureKind, Verdict
from saebench.scheduler.failures import FAULTLESS, DeviceRecord, abort_reason, may_retry
from saebench.scheduler.ledger import Ledger, reason_of
from saebench.scheduler.placement import Active, Job, Queue
from saebench.scheduler.protocols import View
from saebench.scheduler.requests import Halt
from saebench.sweep_config import FailuresConfig


class Endings:
    """Record the ends of attempts in the ledger and queue retries; `stop` halts the sweep, `note` shows a line."""

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        view: View,
        waiting: Queue,
        failures: FailuresConfig,
        *,
        stop: Callable[[Halt], None],
        note: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._executor = executor
        self._view = view
        self._waiting = waiting
        self._failures = failures
        self._devices = DeviceRecord(failures)
        self._stop = stop
        self._note = note

    def record(self, active: Active, message: ExitMessage, *, halting: bool) -> None:
        """Record the end of an attempt. `halting`: the sweep is stopping, so nothing is retried now."""
        kind, detail = _cause(active, message, asked=bool(active.why or halting))
        if kind is None:
            self._ended(active)
        else:
            self._failed(active, kind, detail, halting)

    def abort_reason(self) -> str:
        """Return why the sweep gives up; empty if it does not."""
        at_fault = sum(self._ledger.states[n].kind not in FAULTLESS for n in self._ledger.failures)
        return abort_reason(at_fault, self._ledger.ended, self._failures)

    def _ended(self, active: Active) -> None:
        """Record an attempt that did not fail."""
        number, state = active.number, self._ledger.states[active.number]
        if active.end is not None:
            self._devices.note(active.slot.device, number, None)
        if active.end is not None and active.end.type == "done":
            self._ledger.finish(number, "complete")
        elif state.verdict.get("verdict") == Verdict.PRUNE:
            self._ledger.finish(number, "pruned", f"weak at {state.judged:,} samples")
        else:
            self._ledger.interrupt(number, active.why or "it left")
        self._view.ended(state)

    def _failed(self, active: Active, kind: FailureKind, detail: str, halting: bool) -> None:
        number, state, device = active.number, self._ledger.states[active.number], active.slot.device
        if kind == "no_space":  # not the trial's fault, and the next one would fail in the same way
            self._stop(Halt(f"{self._ledger.paths.root}: no space left for trial {number:04d}: {detail}", 75))
            self._ledger.interrupt(number, reason_of(kind, detail))
            return
        shared = not active.alone and sum(s.device == device for s in self._executor.slots) > 1
        state.close_attempt(kind, detail)
        reason = reason_of(kind, detail)
        if not may_retry(kind, state, self._failures.retries, shared=shared):
            self._ledger.finish(number, "failed", reason, kind)
            self._view.ended(state)
        elif halting:
            self._note(f"trial {number:04d}: {reason}; it is resumed at the next start")
            self._ledger.interrupt(number, reason)
        else:
            self._note(f"trial {number:04d}: {reason}; it is retried")
            self._ledger.fail_attempt(number, kind, detail)
            alone = device if kind == "cuda_oom" else ""
            self._waiting.put(Job(number, avoid=device if kind in ("crash", "stall") else "", alone=alone), first=True)
        if kind == "user_error" and not self._ledger.numbers("complete", "pruned"):
            brief = f"trial {number:04d} cannot run as the spec asks"
            self._stop(Halt(f"trial {number:04d}: {detail}", 4, now=True, brief=brief))
        if self._devices.note(device, number, kind):
            self._quarantine(active.slot)

    def _quarantine(self, slot: Slot) -> None:
        """Take a device out of service, unless it is the last: then `failures.abort_fraction` decides when to stop."""
        if len({s.device for s in self._executor.slots}) > 1:
            self._executor.quarantine(slot)
            self._note(f"{slot.name}: {self._failures.quarantine_after} crashes in a row; taken out of the pool")


def _cause(active: Active, message: ExitMessage, *, asked: bool) -> tuple[FailureKind | None, str]:
    """Return the kind and detail of the failure that ended an attempt; the kind is None if it did not fail. `asked`: it
    was asked to leave, or the sweep is stopping."""
    kind: FailureKind | None = "stall" if active.stalled else message.kind
    if kind is None and active.end is None:
        kind = "crash"
    if kind is None and active.end is not None and active.end.info.get("why") == "leave" and not asked:
        kind, message = "killed", replace(message, detail="it left without being asked to (a signal?)")
    if kind == "killed" and asked:
        kind = None
    return kind, message.detail or "it ended without a result"
