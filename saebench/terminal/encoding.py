"""Text on a stream that cannot encode it, as under LC_ALL=C: replaced by ASCII, never an error."""

from __future__ import annotations

import codecs
import io

_NAME = "saebench.ascii"
_PLAIN = {"•": "*", "±": "+-", "×": "x", "…": "...", "−": "-", "→": "->", "─": "-"}  # noqa: RUF001
"""Characters in saebench's own texts and tables -> ASCII."""


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle an encoding error: keep the bytes of a file name, write the characters of `_PLAIN` in ASCII and others as
    escapes such as \\xe9."""
    if isinstance(error, UnicodeEncodeError):
        error.end = error.start + 1
        if sign := _PLAIN.get(error.object[error.start]):
            return sign, error.end
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_NAME, _replace)


def allow_unencodable(stream: object) -> None:
    """Let a text stream of this process write any text: replace characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_NAME)


def encodable(text: str, encoding: str) -> str:
    """Return `text` with every character that the encoding lacks replaced by ASCII or an escape."""
    ours = {ord(sign): plain for sign, plain in _PLAIN.items()}
    return text.translate(ours).encode(encoding, "backslashreplace").decode(encoding)
