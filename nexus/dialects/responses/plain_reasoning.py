"""Reasoning as a text, which a translation or a server of open models has put into a response.

A client sends it back with the conversation. OpenAI's service has its own reasoning only encrypted,
and refuses any text of it, and with it the whole conversation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.json_body import Raw, with_items

_MARK = b'"reasoning_text"'


class _Item(msgspec.Struct):
    type: Any = None
    content: Any = None


_decode_item = msgspec.json.Decoder(_Item).decode


def without_plain_reasoning(body: bytes) -> bytes:
    """A body that was parsed, without such reasoning. All other items keep their bytes."""
    return with_items(body, "input", _MARK, _unless_plain)


def _unless_plain(raw: Raw) -> Raw | None:
    item = _decode_item(raw)
    return None if item.type == "reasoning" and item.content else raw
