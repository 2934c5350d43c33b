"""Text on a stream that cannot encode it, as under LC_ALL=C: shown somehow, never an error."""

from __future__ import annotations

import codecs
import io

_NAME = "saebench.somehow"


_PLAIN = {"•": "*", "±": "+-", "×": "x", "…": "...", "−": "-", "→": "->", "─": "-"}  # noqa: RUF001 - that is the point
"""What our own texts and tables have, in ASCII."""


def _somehow(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name as they are, our own signs in ASCII, other characters by their number: \\xe9."""
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
        if sign := _PLAIN.get(error.object[error.start]):
            return sign, error.end
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
    """`text` with what the encoding lacks in ASCII, or by its number."""
    ours = {ord(sign): plain for sign, plain in _PLAIN.items()}
    return text.translate(ours).encode(encoding, "backslashreplace").decode(encoding)
