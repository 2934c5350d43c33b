"""Where a secret has got to: files, and the command lines that `ps` shows to every user of the machine."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def files_with(folder: Path, secret: str, *but: Path) -> list[Path]:
    """Files under `folder`, `but` for these, that hold the secret in their content or in their name."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path not in but]
    return [path for path in files if secret in str(path) or secret.encode() in path.read_bytes()]


class CommandLines:
    """Looks at the command lines of all processes ten times a second, as long as the block lasts."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: set[str] = set()
        """Those that held the secret."""
        self.looked = 0
        """Command lines that were read."""

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = path.read_bytes()
                    self.looked += 1
                    if self._secret in line:
                        self.seen.add(line.replace(b"\0", b" ").decode("utf-8", "replace"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
