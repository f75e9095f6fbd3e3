"""What the turns of one conversation have in common, read from the raw fields of a body."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nexus.dialects.json_body import Raw

_SYSTEM_ROLES = (b'"system"', b'"developer"')
_ROLE = re.compile(rb'"role"\s*:\s*\Z')
_ROLE_WITHIN = 32
"""Before its value, the key `role` is looked for in so many bytes."""
_BILLING = re.compile(rb'"x-anthropic-billing-header:(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BILLING_START = b'"x-anthropic-billing-header:'
_OPEN, _CLOSE, _BETWEEN, _BACKSLASH = b"{[", b"}]", b":,", ord("\\")
_WITHIN_MESSAGE = 2
"""How deep a list's messages are nested."""
_LONGEST_FIELD = 4096
_BILLING_WITHIN = 512
"""The first system text begins within so many bytes of its field."""


def text_at(raw: Raw | None, keys: Sequence[str]) -> str | None:
    """The text in a field, or in an object of it; None if there is no text."""
    if raw is None or len(raw) > _LONGEST_FIELD:
        return None
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def prompt_start(fields: Sequence[bytes], most: int, first: int) -> tuple[bytes, int]:
    """See `Prompt.start`. `fields`: raw JSON in the order in which a model reads it; the messages
    come last.

    A system text in which Claude Code counts its requests is left out, because it differs each
    time.
    """
    start = b""
    for raw in fields[:-1]:
        if raw:
            start += bytes(memoryview(raw)[: most - len(start)])
    before = len(start)
    start += bytes(memoryview(fields[-1])[: most - before])
    end = before + _end_of_first_message(start[before : before + first])
    if start.find(_BILLING_START, 0, before + _BILLING_WITHIN) >= 0:
        found = _BILLING.search(start)
        if found is not None:
            start = start[: found.start()] + start[found.end() :]
            end -= len(found[0])
    return start, end


def _end_of_first_message(messages: bytes) -> int:
    """Where the first message ends that is not the system's; the length if that is not seen.

    Strings are skipped by `find`, which is much faster than to look at each byte.
    """
    depth = start_at = at = 0
    while at < len(messages):
        quote = messages.find(b'"', at)
        if at < quote <= at + 2 and messages[at] in _BETWEEN and messages[quote - 1] in b":, ":
            at = _end_of_string(messages, quote)
            continue
        for n in range(at, quote if quote >= 0 else len(messages)):
            mark = messages[n]
            if mark in _OPEN:
                depth += 1
                start_at = n if depth == _WITHIN_MESSAGE else start_at
            elif mark in _CLOSE:
                depth -= 1
                if depth == _WITHIN_MESSAGE - 1 and not _is_system(messages, start_at, n):
                    return n + 1
        at = _end_of_string(messages, quote) if quote >= 0 else len(messages)
    return len(messages)


def _end_of_string(text: bytes, quote: int) -> int:
    """Where the string ends that begins at `quote`; the length if that is not seen."""
    end = quote
    while (end := text.find(b'"', end + 1)) >= 0:
        backslashes = 1
        while text[end - backslashes] == _BACKSLASH:
            backslashes += 1
        if backslashes % 2:
            return end + 1
    return len(text)


def _is_system(messages: bytes, start_at: int, end: int) -> bool:
    for role in _SYSTEM_ROLES:
        at = messages.find(role, start_at, end)
        if at >= 0 and _ROLE.search(messages, max(start_at, at - _ROLE_WITHIN), at) is not None:
            return True
    return False
