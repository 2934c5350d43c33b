"""Conversion of messages to JSON values, for the bridge and for Ray."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from saebench.config import TrialConfig
from saebench.devices import Slot
from saebench.executors import Attempt, EventMessage, ExitMessage, Message
from saebench.runs.events import Event
from saebench.runs.paths import TrialPaths

Json = dict[str, Any]


def slot_to_json(slot: Slot) -> Json:
    return asdict(slot)


def slot_from_json(value: Json) -> Slot:
    return Slot(**value)


def attempt_to_json(attempt: Attempt) -> Json:
    return {
        "number": attempt.number,
        "attempt": attempt.attempt,
        "config": attempt.config.model_dump(mode="json"),
        "root": str(attempt.paths.root),
    }


def attempt_from_json(value: Json) -> Attempt:
    config = TrialConfig.model_validate(value["config"])
    return Attempt(value["number"], value["attempt"], config, TrialPaths(Path(value["root"])))


def message_to_json(message: Message) -> Json:
    """Return an agent's message. An event keeps the line that the worker recorded, with its checksum."""
    if isinstance(message, EventMessage):
        event = message.event
        return {"type": "event", "number": message.number, "line": event.to_line(), "of": event.type}
    if isinstance(message, ExitMessage):
        return {"type": "exit", "number": message.number, "kind": message.kind, "detail": message.detail}
    return {"type": "note", "text": message.text}


def event_of(message: Json) -> Event:
    """Return the event of a message. Raises ValueError if its checksum is wrong."""
    return Event.from_line(message["line"])
