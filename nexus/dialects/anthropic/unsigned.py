"""Thinking that no vendor has signed: a translation has made it of another server's reasoning.

A client sends it back with the conversation. Anthropic's servers refuse a signature that is not
theirs, and with it the whole conversation, so they do not get such blocks.
"""

from __future__ import annotations

import msgspec

from nexus.dialects.json_body import Raw, with_items

SIGNATURE = "nexus"
"""The signature of such thinking, or its first word."""
_MARK = b'"nexus'

_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_message = msgspec.json.Decoder(dict[str, Raw]).decode


class _Block(msgspec.Struct):
    type: str = ""
    signature: str = ""


_decode_block = msgspec.json.Decoder(_Block).decode


def signature(wanted_by: str | None = None) -> str:
    """The signature of such thinking.

    `wanted_by`: the model, if its server calls the reasoning `reasoning_content`. Some of those
    refuse a conversation without it, and servers of other models refuse one with it.
    """
    return SIGNATURE if wanted_by is None else f"{SIGNATURE} reasoning_content {wanted_by}"


def without_unsigned(body: bytes) -> bytes:
    """A body that was parsed, without such thinking. All other blocks keep their bytes.

    A message with nothing else goes as a whole.
    """
    return with_items(body, "messages", _MARK, _kept)


def _kept(message: Raw) -> Raw | None:
    """A message without such thinking; None if it has nothing else."""
    fields = _decode_message(message)
    if bytes(fields.get("content", b""))[:1] != b"[":
        return message
    blocks = _decode_list(fields["content"])
    left = [block for block in blocks if not _is_unsigned(block)]
    if len(left) == len(blocks):
        return message
    fields["content"] = Raw(msgspec.json.encode(left))
    return Raw(msgspec.json.encode(fields)) if left else None


def _is_unsigned(block: Raw) -> bool:
    if _MARK not in bytes(block):
        return False
    try:
        found = _decode_block(block)
    except msgspec.ValidationError:
        return False
    return found.type == "thinking" and found.signature.partition(" ")[0] == SIGNATURE
