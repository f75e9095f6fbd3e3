"""What the turns of one conversation have in common, read from the raw fields of a body."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nexus.dialects.json_body import Raw

_USER, _ROLE = b'"user"', b'"role"'
_BETWEEN = 64
"""Bytes of punctuation and white space that may stand between them, and between messages."""
_BILLING = re.compile(rb'"x-anthropic-billing-header:(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BILLING_START = b'"x-anthropic-billing-header:'
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


def prompt_start(pieces: Sequence[bytes], most: int) -> tuple[memoryview, int]:
    """The first bytes of a prompt, and where its messages begin. `pieces`: as of `Prompt`.

    A system text in which Claude Code counts its requests is left out, because it differs each
    time.
    """
    if len(pieces) == 1:
        view = memoryview(pieces[0])[:most]
        if bytes(view[:_BILLING_WITHIN]).find(_BILLING_START) < 0:
            return view, 0
    start, messages_at = b"", 0
    for raw in pieces:
        messages_at = len(start)
        piece = bytes(memoryview(raw)[: most - messages_at])
        if piece.find(_BILLING_START, 0, _BILLING_WITHIN) >= 0:
            piece = _BILLING.sub(b"", piece, count=1)
        start += piece
    return memoryview(start), messages_at


def first_message_end(start: memoryview, messages_at: int, most: int) -> int:
    """Where the first message of the user ends in a prompt, within `most` bytes of its messages.

    Each turn of a conversation gives the same number. Quotes within strings are escaped in JSON,
    so a search for quoted words finds no text that speaks of them, and is faster than a parser.
    """
    prompt = bytes(start[: messages_at + most + _BETWEEN])
    limit = min(len(prompt), messages_at + most)
    user = prompt.find(_USER, messages_at, limit)
    if user < 0:
        return limit
    role = prompt.rfind(_ROLE, max(user - _BETWEEN, messages_at), user)
    if not prompt[max(role - _BETWEEN, 0) : role].rstrip().endswith(b"{"):
        end = prompt.find(b"}", user, limit)  # the role is written after the content
        return end + 1 if end >= 0 else limit
    following = prompt.find(_ROLE, user, limit + _BETWEEN)
    if following < 0 and len(prompt) > limit:
        return limit
    end = prompt.rfind(b"}", user, following if following >= 0 else limit)
    return min(end + 1, limit) if end >= 0 else limit
