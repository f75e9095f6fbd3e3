"""Reasoning as a text, which a translation or a server of open models has put into a response.

A client sends it back with the conversation. OpenAI's service has its own reasoning only encrypted,
and refuses any text of it, and with it the whole conversation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.json_body import Raw, has_more_values, read_fields, with_field
from nexus.dialects.lenient_json import UNREADABLE

_MARK = b'"reasoning_text"'
_MOST_VALUES = 200_000
"""A conversation with more is left as it is."""


class _Item(msgspec.Struct):
    type: Any = None
    content: Any = None


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_item = msgspec.json.Decoder(_Item).decode


def without_plain_reasoning(body: bytes) -> bytes:
    """A body that was parsed, without such reasoning. All other items keep their bytes."""
    if _MARK not in body or (raw := read_fields(body).get("input")) is None:
        return body
    if has_more_values(bytes(raw), _MOST_VALUES):
        return body
    try:
        items = _decode_list(raw)
        left = [item for item in items if not _is_plain(item)]
        if len(left) == len(items):
            return body
        return with_field(body, "input", msgspec.json.encode(left))
    except UNREADABLE:
        return body  # the backend says what is wrong with it


def _is_plain(raw: Raw) -> bool:
    if _MARK not in bytes(raw):
        return False
    item = _decode_item(raw)
    return item.type == "reasoning" and bool(item.content)
