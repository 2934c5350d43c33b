"""`python -m saebench.worker zygote FD`, `once FD`, and on Windows `once -` with the socket described on stdin."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from saebench import telemetry
from saebench.worker import Request
from saebench.worker.process import run_worker
from saebench.worker.zygote import Zygote


def main(arguments: Sequence[str]) -> None:
    """See above."""
    telemetry.disable()
    mode, handle = arguments
    if mode == "zygote":
        Zygote(socket.socket(fileno=int(handle))).run()
        return
    channel = received() if handle == "-" else socket.socket(fileno=int(handle))
    request = Request.from_json(_read_line(channel))
    sys.path[:] = request.sys_path
    run_worker(request, channel)


def received() -> socket.socket:
    """A socket that a parent process on Windows shared through stdin."""
    share: bytes = sys.stdin.buffer.read()
    return socket.fromshare(share)  # type: ignore[attr-defined,no-any-return,unused-ignore]


def _read_line(channel: socket.socket) -> bytes:
    """Read exactly one line: the following bytes belong to the lifeline."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        if not byte:
            raise EOFError("the executor closed the channel before its request")
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main(sys.argv[1:])
