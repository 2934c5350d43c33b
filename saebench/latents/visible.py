"""Make texts of a corpus safe to print: a corpus may contain anything."""

from __future__ import annotations

from saebench.escape import escape_controls


def visible(text: str, characters: int = 0) -> str:
    """One line without control characters (an escape sequence would control the terminal) or lone surrogates; of at
    most so many characters of the text, the last one an ellipsis if something was cut (0: all). It is cut between
    words, unless that would lose a third of it."""
    if characters and len(text) > characters:
        kept = text[: characters - 1]
        between = kept.rfind(" ") if text[characters - 1] != " " else characters - 1
        text = f"{kept[:between].rstrip(' ,')} …" if between >= 2 * characters // 3 else f"{kept}…"
    return escape_controls(text.replace("\n", " ").replace("\t", " ").encode("utf-8", "replace").decode())
