"""The line at the start of the system text in which Claude Code names its version.

It differs from request to request, so no server can reuse its cache of the prompt behind it.
"""

from __future__ import annotations

import re

import msgspec

from nexus.dialects.json_body import has_more_values, read_fields, with_field, without_fields

_MARK = b"x-anthropic-billing-header:"
_LINE = re.compile(rb'"' + _MARK + rb'(?:[^"\\]++|\\[^n])*+(?:\\n)*+')
_MOST_VALUES = 10_000
"""System text with more is left as it is."""
_decode_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Block(msgspec.Struct):
    text: msgspec.Raw


_decode_block = msgspec.json.Decoder(_Block).decode


def without_attribution(body: bytes) -> bytes:
    """A body that was parsed, without that line in its system text. All other bytes stay.

    A block with nothing else goes as a whole, as does `system` if nothing is left.
    """
    if _MARK not in body or (raw := read_fields(body).get("system")) is None:
        return body
    system = bytes(raw)
    left = _rest(system) if system.startswith(b'"') else _without_blocks(system)
    if left in (b'""', b"[]"):
        return without_fields(body, ("system",))
    return body if left == system else with_field(body, "system", left)


def _rest(text: bytes) -> bytes:
    """A JSON string without that line."""
    line = _LINE.match(text)
    return text if line is None else b'"' + text[line.end() :]


def _without_blocks(system: bytes) -> bytes:
    """A list of blocks without that line in any of them."""
    if has_more_values(system, _MOST_VALUES):
        return system
    try:
        blocks = _decode_blocks(system)
    except msgspec.DecodeError:
        return system
    spans, at = [], 0
    for block in map(bytes, blocks):
        start = system.index(block, at)
        at = start + len(block)
        spans.append((start, at))
    following = -1  # where the next block that stays starts
    for n, (start, end) in reversed([*enumerate(spans)]):
        left = _block_without(system[start:end])
        if left is not None:
            system, following = system[:start] + left + system[end:], start
        elif following >= 0:
            system = system[:start] + system[following:]
            following = start
        else:
            system = system[: spans[n - 1][1] if n else start] + system[end:]
    return system if following >= 0 else b"[]"


def _block_without(block: bytes) -> bytes | None:
    """A block without that line; None if nothing else is in its text."""
    if _MARK not in block:
        return block
    try:
        text = bytes(_decode_block(block).text)
    except msgspec.DecodeError:
        return block
    left = _rest(text)
    if left == text:
        return block
    return None if left == b'""' else with_field(block, "text", left)
