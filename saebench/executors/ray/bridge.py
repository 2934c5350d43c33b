"""`python -m saebench.executors.ray.bridge FD`: the Ray driver of a sweep, a process of its own.

Ray replaces signal handlers, prints to stdout, starts threads and aborts its process when it gives up, so it runs
outside the scheduler. FD is a socket with JSON lines in both directions; the first line received is the setup. End of
file means that the scheduler has died: the bridge exits, Ray ends the agents of its job, and their trials write a
checkpoint and exit.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any

from saebench import telemetry
from saebench.errors import UserError
from saebench.executors.ray.fleet import Fleet
from saebench.executors.ray.setup import Setup
from saebench.sweep_config import RunConfig

LONGEST = 64 << 20


async def serve(channel: socket.socket) -> None:
    """Run a fleet as the scheduler asks, until it closes."""
    reader, writer = await asyncio.open_connection(sock=channel, limit=LONGEST)

    def send(message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\n")

    lines = _lines(reader)
    try:
        opened = await anext(lines)
        fleet, cluster = await _open(opened, send)
    except UserError as error:
        send({"type": "refused", "text": str(error)})
        await writer.drain()
        return
    send({"type": "open"})
    recovering: asyncio.Task[None] | None = None
    async for message in lines:
        operation = message.pop("op")
        if operation == "start":
            fleet.start(message)
        elif operation == "order":
            fleet.order(message)
        elif operation == "child":
            fleet.encode(message)
        elif operation == "demand":
            fleet.set_demand(message["slots"], message["give_back"])
        elif operation == "recover":
            recovering = asyncio.create_task(fleet.recover(message))
        elif operation == "close":
            await fleet.close()
            cluster.close()
            return
    del recovering
    fleet.forget()
    os._exit(0)  # the scheduler is dead: agents end with this job, and their trials leave with a checkpoint


async def _open(opened: dict[str, Any], send: Any) -> tuple[Fleet, Any]:
    from saebench.executors.ray.cluster import RayCluster

    run = RunConfig.model_validate(opened["run"])
    cluster = RayCluster(run.address, insecure=run.insecure)
    for name in ("SIGTERM", "SIGINT"):  # of the scheduler's terminal; it says what is to be done
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    fleet = Fleet(cluster, Setup(run, opened["cache_dir"], opened["target"], opened["lease"]), send)
    await fleet.open()
    return fleet, cluster


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while line := await reader.readline():
        yield json.loads(line)


def main() -> None:
    """See above."""
    telemetry.disable()
    status = 1
    try:
        asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # without Ray's exit handlers, which may hang


if __name__ == "__main__":
    main()
