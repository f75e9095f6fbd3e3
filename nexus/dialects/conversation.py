"""What the turns of one conversation have in common, read from the raw fields of a body."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nexus.dialects.json_body import Raw

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_SYSTEM = re.compile(rb'"role"\s*:\s*"(?:system|developer)"')
_BILLING = re.compile(rb'"x-anthropic-billing-header:(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LONGEST_FIELD = 4096
_BILLING_WITHIN = 512
"""The first system text begins within so many bytes of its field."""
_FIRST_BYTES = 16 * 1024
"""The end of the first message is looked for in so many bytes."""


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


def prompt_start(fields: Sequence[bytes], most: int) -> tuple[bytes, int]:
    """See `Prompt.start`. `fields`: raw JSON in the order in which a model reads it; the messages
    come last.

    A system text in which Claude Code counts its requests is left out, because it differs each
    time.
    """
    start = b""
    for raw in fields[:-1]:
        start += bytes(memoryview(raw)[: most - len(start)])
    before = len(start)
    start += bytes(memoryview(fields[-1])[: most - before])
    end = before + _end_of_first_message(start[before : before + _FIRST_BYTES])
    if (found := _BILLING.search(start, 0, before + _BILLING_WITHIN)) is not None:
        start = start[: found.start()] + start[found.end() :]
        end -= len(found[0])
    return start, end


def _end_of_first_message(messages: bytes) -> int:
    """Where the first message ends that is not the system's; the length if that is not seen."""
    depth = begun = 0
    for token in _TOKEN.finditer(messages):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
            if depth == 2:
                begun = token.start()
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth == 1 and not _SYSTEM.search(messages, begun, token.end()):
                return token.end()
    return len(messages)
