"""Mask passwords and tokens in all output: addresses, specs, error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, unquote_plus

MASK = "***"
_DATABASE = re.compile(r"(?:postgres|mysql|mariadb|mssql|oracle|redis|mongodb|snowflake|redshift|cockroachdb)", re.I)
"""Schemes whose user name is not a secret; over http a user name may be a token."""
_ADDRESS = re.compile(
    r"(?<![\w+.-])([A-Za-z][\w+.-]*)://("
    r"(?:[^\s\"/?#@:]{0,200}:(?:[^\s\"/?#]{0,200}|[^\s\"/?#@:)][^\n\"/?#@:]{0,200})@)?[^\s\"'<>`|\\]+)"
)
"""In other text. A quote, bracket, backslash or space ends it, but not between a user name's colon and the @."""
_WHOLE = re.compile(r"([A-Za-z][\w+.-]*)://(\S+|[^\s/?#@:]*:\S.*@[^\s@]+)")
"""A text that is one address: there a password may contain any character, including a space."""
_KEY = re.compile(
    r"^pass$|passw|passphrase|pwd|token(?!iz)|secret|credential|signature|^sig$|auth(?!or(?!iz))|api.?key|"
    r"access.?key|private.?key|^key$|odbc_connect",
    re.I,
)
"""Names of query parameters that hold a secret, percent signs decoded."""
_PARAMETER = re.compile(r"([?&;#])([^=&;#?\s\"'<>]+)=([^&;#\s\"'<>]*?)(?=[).,:\]}]*(?:[&;#\s\"'<>]|$))")
_WHOLE_PARAMETER = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
"""The same for a text that is one address."""
_LEAST = 3
"""Least length of a secret's part that is masked in other text: shorter ones would match everywhere."""


def mask(text: str, *addresses: str) -> str:
    """Return `text` with the secrets of every address in it masked, and those of `addresses` at any position.

    Masked are the password of a database's address (`user:***@host`), everything before the `@` of any other address
    (a server's user name may be a token), and query parameters that are named like a secret.
    """
    whole = _one_address(text)
    masked = _mask_address(whole, _WHOLE_PARAMETER) if whole else _ADDRESS.sub(_mask_address, text)
    for secret in sorted({s for address in addresses for s in secrets_of(address)}, key=len, reverse=True):
        masked = masked.replace(secret, MASK)
    return masked


def mask_all(value: Any) -> Any:
    """Return JSON-like `value` with `mask` applied to every string in it."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: mask_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_all(item) for item in value]
    return value


def has_secret(text: str) -> bool:
    """Return whether `text` contains an address with a secret."""
    return mask(text) != text


def is_masked(text: str) -> bool:
    """Return whether this address was stored with a masked secret."""
    return f"{MASK}@" in text or f"={MASK}" in text


def secrets_of(address: str) -> Iterator[str]:
    """Yield the secrets of one address as they may stand in a message about it: as written, decoded, and cut at @."""
    found = _WHOLE.fullmatch(address)
    if not found:
        return
    userinfo, _ = _split(found[1], found[2])
    parts = [] if userinfo is None else [userinfo.partition(":")[2]] if _is_database(found[1]) else [userinfo]
    parts += [value for _, key, value in _WHOLE_PARAMETER.findall(found[2]) if _KEY.search(unquote(key))]
    parts += [decoded for part in parts for decoded in (unquote(part), unquote_plus(part))]
    parts += [quoted for part in parts for quoted in (part.replace("'", "''"), json.dumps(part)[1:-1])]
    for part in {piece for whole in parts for piece in (whole, *re.split(r"[:@/?#=;\s]", whole))}:
        if len(part) >= _LEAST and part != MASK:
            yield part


def _one_address(text: str) -> re.Match[str] | None:
    """Match text that is one address and nothing else: no space in it, no second address."""
    found = _WHOLE.fullmatch(text)
    return None if found is None or "://" in found[2] else found


def _mask_address(match: re.Match[str], parameter: re.Pattern[str] = _PARAMETER) -> str:
    scheme, rest = match[1], match[2]
    userinfo, host = _split(scheme, rest)
    if userinfo is not None:
        user, colon, _ = userinfo.partition(":")
        kept = f"{user}:{MASK}@" if colon and _is_database(scheme) else f"{user}@" if _is_database(scheme) else ""
        rest = f"{kept or f'{MASK}@'}{host}"
    return f"{scheme}://{parameter.sub(_mask_parameter, rest)}"


def _is_database(scheme: str) -> bool:
    return bool(_DATABASE.match(scheme))


def _split(scheme: str, rest: str) -> tuple[str | None, str]:
    """(user and password, what follows their @); None for an address without them. A password may hold @, and, in the
    address of a database or by mistake, / ? and #: what follows the colon is then no port."""
    authority = re.match(r"[^/?#]*", rest)
    assert authority is not None
    if "@" in authority[0]:
        userinfo, _, host = authority[0].rpartition("@")
        later = rest[authority.end() :]
        if _is_database(scheme) and "@" in (path := later.partition("?")[0]):
            more, _, host_and_rest = path.rpartition("@")
            return f"{authority[0]}{more}", host_and_rest + later[len(path) :]
        return userinfo, host + later
    name, colon, port = authority[0].partition(":")
    # a password may begin like a port: an @ behind one is taken for the end of a password, not for a part of a path
    later = rest if port and not port.isdigit() else rest.partition("?")[0]
    if name and colon and "@" in later:
        userinfo, _, host = rest.rpartition("@")
        return userinfo, host
    return None, rest


def _mask_parameter(match: re.Match[str]) -> str:
    separator, key, value = match.groups()
    return f"{separator}{key}={MASK if value and _KEY.search(unquote(key)) else value}"
