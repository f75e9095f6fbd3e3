"""Makes text safe to show: escapes unprintable characters, and masks secrets."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable

MASK = "***"
_SHORTEST_SECRET = 8
"""Shorter values are not masked: they would hide ordinary words."""
_BLOCK = 8
"""A quote of twice this length contains a block that starts at a multiple of it."""
_secrets: list[str] = []
"""The forms of every secret that this process has read, longest first."""


def printable(text: str, *, keep: str = "") -> str:
    r"""`text` with unprintable characters, except those in `keep`, escaped as `\uXXXX`.

    These include control characters (C0, DEL, C1), line separators, and bidirectional overrides.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(rf"\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def remember_secret(value: str) -> None:
    """Let `redact` mask this value, also if it is quoted, or split at white space."""
    forms = {value, repr(value)[1:-1], json.dumps(value)[1:-1], *re.findall(r"[!-~]+", value)}
    new = {form for form in forms if len(form) >= _SHORTEST_SECRET}.difference(_secrets)
    if new:
        _secrets[:] = sorted({*_secrets, *new}, key=len, reverse=True)


def redact(text: str) -> str:
    """`text` with every secret that this process has read masked."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def mask_key(content: bytes, key: str | None) -> bytes:
    """`content` with this key masked, even if a JSON encoder escaped its `/`."""
    if not key:
        return content
    for form in {key, key.replace("/", "\\/")}:
        content = content.replace(form.encode(), MASK.encode())
    return content


def mask_quotes(text: str, source: bytes, *, keep: str = "") -> str:
    """`text` with what it quotes of `source`, which may be JSON, masked.

    A quote has 16 characters or more. One that is a part of `keep` is not masked.
    """

    def is_quoted(piece: str) -> bool:
        forms = {piece, json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1]}
        return any(form.encode(errors="replace") in source for form in forms)

    masked, done, at = "", 0, 0
    while at + _BLOCK <= len(text):
        first, last = at, at + _BLOCK
        at = last
        if not is_quoted(text[first:last]):
            continue
        # What a quote holds is quoted, too. Each look reads the whole source.
        starts, ends = range(done, first), range(last + 1, len(text) + 1)
        first = done + bisect_left(starts, True, key=lambda start: is_quoted(text[start:last]))
        last += bisect_left(ends, True, key=lambda end: not is_quoted(text[first:end]))
        at = last
        if last - first >= 2 * _BLOCK and text[first:last].strip("\"'` ") not in keep:
            masked, done = masked + text[done:first] + MASK, last
    return masked + text[done:]


def suggest(name: str, known: Iterable[str]) -> str | None:
    """`did you mean …?` for a misspelt name; None if no known name is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else None
