"""Translates the stream of a chat completion into that of a message."""

from __future__ import annotations

import msgspec

from nexus.dialects.anthropic.unsigned import signature
from nexus.dialects.base import Usage
from nexus.dialects.translation.chat_blocks import Block, BlockEvents, Kind
from nexus.dialects.translation.completion import Completion, text_in
from nexus.dialects.translation.messages_to_chat.response import (
    message_fields,
    stop,
    usage_fields,
)
from nexus.dialects.translation.translation import ClientContext

_encode = msgspec.json.encode
_DELTA_START = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":'
)
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_TYPES: dict[Kind, tuple[bytes, bytes]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
_STARTS = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


class MessageEvents(BlockEvents):
    """Makes the events of one message. `EventTranslator` documents the interface.

    A message has one block at a time, whose index grows by one. A refusal is a text.
    """

    def __init__(self, context: ClientContext) -> None:
        super().__init__()
        self._context = context
        self._before = b""

    def _start(self, first: Completion) -> bytes:
        message = message_fields(self._id, text_in(first.model))
        start = {"type": "message_start", "message": message}
        return b"event: message_start\ndata: " + _encode(start) + b"\n\n"

    def _add(self, kind: Kind, text: str) -> None:
        super()._add("text" if kind == "refusal" else kind, text)

    def _block_start(self, block: Block) -> bytes:
        content: dict[str, object] = dict(_STARTS.get(block.kind, {}))
        if not content:
            content = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        start = {"type": "content_block_start", "index": self._index, "content_block": content}
        delta, field = _TYPES[block.kind]
        self._before = _DELTA_START % (self._index, delta, field)
        return b"event: content_block_start\ndata: " + _encode(start) + b"\n\n"

    def _piece(self, piece: str) -> bytes:
        return self._before + _encode(piece) + b"}}\n\n"

    def _block_end(self, block: Block) -> bytes:
        shown = _STOP % self._index
        if block.kind == "thinking":
            delta = _DELTA_START % (self._index, b"signature_delta", b"signature")
            signed = signature(self._context.model if block.wanted_back else None)
            shown = delta + _encode(signed) + b"}}\n\n" + shown
        return shown

    def _finish_events(self, usage: Usage | None) -> bytes:
        reason, sequence = stop(
            self._finish, self._sequence, calls=self._called, refused=self._refused
        )
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_fields(usage),
        }
        return b"event: message_delta\ndata: " + _encode(delta) + b"\n\n" + _MESSAGE_STOP
