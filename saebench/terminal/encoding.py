"""Text on a stream that cannot encode it, as under LC_ALL=C: shown somehow, never an error."""

from __future__ import annotations

import codecs
import io

_NAME = "saebench.somehow"


def _somehow(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name as they are, other characters by their number: \\xe9."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_NAME, _somehow)


def forgive(stream: object) -> None:
    """Let a text stream of ours write whatever it is given."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_NAME)


def encodable(text: str, encoding: str) -> str:
    """`text` with what the encoding lacks by its number."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
