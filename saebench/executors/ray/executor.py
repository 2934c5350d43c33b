"""The executor of a Ray cluster, as the scheduler sees it. Imports no Ray: that is in the bridge."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saebench.devices import Slot
from saebench.errors import ExecutorLostError, PreflightError
from saebench.executors import TARGET, Attempt, EventMessage, ExitMessage, How, Message, NoteMessage, check_free
from saebench.executors.ray.demand import surplus
from saebench.executors.ray.encoders import ONE_THREAD, Encoders
from saebench.executors.ray.link import BRIDGE, Link, require_ray
from saebench.executors.ray.wire import Json, attempt_to_json, event_of, slot_from_json
from saebench.runs.durable import write_json, write_text
from saebench.runs.events import Event, EventLog, Verdict
from saebench.runs.files import DamagedError, read_object
from saebench.runs.paths import SweepPaths
from saebench.stores.child_process import Launch
from saebench.sweep_config import RunConfig

LEASE = 30.0
"""Seconds without a poll after which an agent stops its trials."""
OPENING = 120.0
"""Seconds that the bridge has to find the cluster and an agent; it gives up by itself long before."""
RECOVERY = 120.0
"""Seconds beyond the grace in which agents wait for old workers and copy their files."""


@dataclass
class _Running:
    attempt: Attempt
    slot: Slot
    log: EventLog | None
    """The record of the trial, if its node does not see the sweep's directory."""
    last: Event | None = None
    preempted: bool = False


@dataclass
class _Agent:
    slots: tuple[Slot, ...]
    ready: bool = False
    """Whether its slots may be used; before that they only show what there will be."""
    shared: bool = True


class RayExecutor:
    """See `Executor`. Raises PreflightError, one line, if the cluster cannot be used."""

    def __init__(
        self,
        run: RunConfig,
        cache_dir: Path,
        target: str = TARGET,
        *,
        lease: float = LEASE,
        bridge: Sequence[str] = BRIDGE,
    ) -> None:
        if bridge is BRIDGE:
            require_ray()
        self._agents: dict[int, _Agent] = {}
        self._running: dict[int, _Running] = {}
        self._quarantined: set[str] = set()
        self._messages: list[Message] = []
        self._opened = self._recovered = self._closed = False
        self._slots: tuple[Slot, ...] = ()
        self._demand: int | None = None
        self._link = Link(bridge)
        self._encoders = Encoders(self._link.send, self._take, self._link.wake)
        opening = {"run": run.model_dump(mode="json"), "cache_dir": str(cache_dir), "target": target, "lease": lease}
        self._grace = run.grace
        self._link.send(opening)
        try:
            self._wait_until(lambda: self._opened, OPENING, "run.address: the cluster does not answer")
        except BaseException:
            self.close()
            raise

    def _wait_until(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise PreflightError(f"{otherwise} (waited {seconds:g} s)")
            try:
                self._take(1.0)
            except ExecutorLostError as error:
                raise PreflightError(f"{otherwise}: {error}") from None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Before `recover` the expected slots, then those that may be used."""
        return self._slots

    def _find_slots(self) -> None:
        agents = (agent for agent in self._agents.values() if agent.ready or not self._recovered)
        self._slots = tuple(slot for agent in agents for slot in agent.slots if slot.device not in self._quarantined)

    def encoders(self) -> list[Launch]:
        """One for each GPU; without any, one for each core, single-threaded."""
        found, seen = [], set[str]()
        for number, agent in self._agents.items():
            for slot in agent.slots:
                inside = slot.device.removeprefix(f"{slot.node}/")
                if inside.startswith("cuda:") and slot.device not in seen:
                    seen.add(slot.device)
                    visible = {"CUDA_VISIBLE_DEVICES": inside.removeprefix("cuda:")}
                    found.append(self._encoders.launch(number, slot.device, "cuda:0", visible))
                elif inside == "cpu":
                    found += [self._encoders.launch(number, slot.name, "cpu", ONE_THREAD)] * slot.threads
        return found

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:
        """See `Executor`. Also finds out which nodes see the sweep's directory, by a file with a new name."""
        nonce = paths.root / f".nonce-{secrets.token_hex(6)}"
        paths.root.mkdir(parents=True, exist_ok=True)
        write_text(nonce, "", durable=False)
        sweep = {
            "root": str(paths.root),
            "nonce": nonce.name,
            "sweep_id": _identity(paths),
            "cache_keys": list(cache_keys),
        }
        try:
            self._link.send({"op": "recover", **sweep})
            self._wait_until(lambda: self._recovered, self._grace + RECOVERY, "run.executor: ray: agents do not answer")
        finally:
            nonce.unlink(missing_ok=True)
        messages, self._messages = self._messages, []
        for message in messages:
            if isinstance(message, NoteMessage):
                note(message.text)

    def start(self, attempt: Attempt, slot: Slot) -> None:
        check_free(attempt, slot, self.slots, {number: one.slot for number, one in self._running.items()})
        agent = self._agents[slot.id // 1000]
        attempt.paths.root.mkdir(parents=True, exist_ok=True)
        if agent.shared:  # an older attempt that still runs somewhere sees that it must not write any more
            write_text(attempt.paths.fence, str(attempt.attempt), durable=False)
        log = None if agent.shared else EventLog(attempt.paths.events)
        self._running[attempt.number] = _Running(attempt, slot, log)
        order = {"number": attempt.number, "slot": slot.id, "memory_fraction": slot.memory_fraction}
        self._link.send({"op": "start", **order, "attempt": attempt_to_json(attempt)})

    def poll(self, timeout: float) -> list[Message]:
        end = time.monotonic() + timeout
        while True:
            woken = self._take(0.0 if self._messages else end - time.monotonic())
            if self._messages or woken or time.monotonic() >= end:
                messages, self._messages = self._messages, []
                return messages

    def wake(self) -> None:
        self._link.wake()

    def answer(self, number: int, verdict: Verdict) -> None:
        if number in self._running:
            self._link.send({"op": "order", "do": "answer", "number": number, "verdict": verdict.value})

    def stop(self, number: int, how: How) -> None:
        if number in self._running:
            self._link.send({"op": "order", "do": "stop", "number": number, "how": how})

    def set_demand(self, trials: int) -> None:
        if trials != self._demand:
            self._demand = trials
            self._give_back()

    def _give_back(self) -> None:
        """Give back idle agents beyond the demand. Decided here and not in the bridge, so that no trial is started on
        an agent that is going."""
        if self._demand is None:
            return
        usable = {
            number: sum(slot.device not in self._quarantined for slot in agent.slots)
            for number, agent in self._agents.items()
        }
        busy = {one.slot.id // 1000 for one in self._running.values()}
        idle = [(number, slots) for number, slots in usable.items() if number not in busy]
        going = surplus(idle, sum(usable.values()) - self._demand)
        for number in going:
            del self._agents[number]
        self._find_slots()
        unusable = sum(len(agent.slots) - usable[number] for number, agent in self._agents.items())
        self._link.send({"op": "demand", "slots": self._demand + unusable, "give_back": going})

    def quarantine(self, slot: Slot) -> None:
        self._quarantined.add(slot.device)
        self._find_slots()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._link.send({"op": "close"})
        self._link.close()
        for one in self._running.values():
            if one.log is not None:
                one.log.close()
        self._running = {}

    # --- what the bridge says ----------------------------------------------------------------------------------------

    def _take(self, timeout: float) -> bool:
        """Handle received messages; return True after `wake`. Raises ExecutorLostError if the bridge has ended."""
        try:
            messages, woken = self._link.receive(timeout)
        except EOFError as error:
            raise ExecutorLostError(f"the connection to the Ray cluster ended: {error}") from None
        for message in messages:
            self._handle(message)
        return woken

    def _handle(self, message: Json) -> None:
        what = message["type"]
        if what == "event":
            self._on_event(message)
        elif what == "exit":
            self._on_exit(message)
        elif what == "note":
            self._messages.append(NoteMessage(message["text"]))
        elif what == "joined":
            self._agents[message["agent"]] = _Agent(tuple(slot_from_json(slot) for slot in message["slots"]))
        elif what == "ready":
            agent = self._agents[message["agent"]]
            agent.ready, agent.shared = True, message["shared"]
        elif what == "gone":
            self._agents.pop(message["agent"], None)
        elif what == "preempted" and message["number"] in self._running:
            self._running[message["number"]].preempted = True
        elif what == "open":
            self._opened = True
        elif what == "recovered":
            self._recovered = True
        elif what == "child":
            self._encoders.hear(message)
        elif what == "refused":
            raise PreflightError(message["text"])
        if what in ("joined", "ready", "gone", "recovered"):
            self._find_slots()
            if what == "ready":
                self._give_back()

    def _on_event(self, message: Json) -> None:
        running, event = self._running.get(message["number"]), event_of(message)
        if running is None:
            return
        running.last = event
        if running.log is not None:
            running.log.append(event)
        self._messages.append(EventMessage(message["number"], event))

    def _on_exit(self, message: Json) -> None:
        running = self._running.pop(message["number"], None)
        if running is None:
            return
        if running.log is not None:
            running.log.close()
        kind, detail, last = message["kind"], message["detail"], running.last
        if kind is None and running.preempted and last is not None and last.type == "left":
            kind, detail = "preempted", f"node {running.slot.node} is taken back by the cluster"
        self._messages.append(ExitMessage(message["number"], kind, detail))


def _identity(paths: SweepPaths) -> str:
    """Return an id that distinguishes this sweep's scratch folders from those of another sweep of the same name."""
    with contextlib.suppress(FileNotFoundError, DamagedError, KeyError):
        return str(read_object(paths.cluster)["id"])
    identity = f"{paths.name}-{secrets.token_hex(6)}"
    write_json(paths.cluster, {"id": identity})
    return identity
