"""Translates the stream of a chat completion into that of a message.

A message has one block at a time, whose index grows by one. What comes for a later block while the
first is incomplete is held back, so that calls of tools whose pieces interleave arrive in order.
"""

from __future__ import annotations

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE
from nexus.dialects.translation.messages_to_chat.response import (
    SIGNATURE,
    Call,
    Choice,
    Function,
    Text,
    call_id,
    decode,
    message_fields,
    stop,
    text_in,
    usage_fields,
)

_encode = msgspec.json.encode
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":%b}}\n\n'
)
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_TYPES = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
_STARTS = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


class _Block:
    """A block of the message.

    Attributes:
        kind: `text`, `thinking`, or `tool_use`.
        held: Pieces that the client has not got.
        said: All pieces of a tool's arguments.
    """

    __slots__ = ("held", "id", "kind", "name", "said", "started")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.id = self.name = ""
        self.held: list[str] = []
        self.said: list[str] = []
        self.started = False

    @property
    def complete(self) -> bool:
        """Whether nothing can follow once another block has started."""
        if self.kind != "tool_use":
            return True
        if not self.said or not self.said[-1].rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode("".join(self.said))
        except UNREADABLE:
            return False
        return True


class MessageEvents:
    """Makes the events of one message. `EventTranslator` documents the interface."""

    def __init__(self) -> None:
        self._started = False
        self._id = ""
        self._blocks: list[_Block] = []
        self._index = 0
        self._calls: dict[object, _Block] = {}
        self._call_count = 0
        self._finish: object = None
        self._sequence: object = None
        self._refused = False

    def event(self, data: bytes) -> bytes:
        try:
            chunk = decode(data)
        except UNREADABLE:
            return b""
        shown = b""
        if not self._started and chunk.choices is not None:
            shown = self._start(text_in(chunk.id), text_in(chunk.model))
        for choice in chunk.choices or ():
            if choice.index in (0, None):
                self._read(choice)
        return shown + self._ready() if self._blocks else shown

    def _start(self, message_id: str, model: str) -> bytes:
        self._started, self._id = True, message_id
        message = {"type": "message_start", "message": message_fields(message_id, model)}
        return b"event: message_start\ndata: " + _encode(message) + b"\n\n"

    def _read(self, choice: Choice) -> None:
        if choice.finish_reason is not None:
            self._finish, self._sequence = choice.finish_reason, choice.stop_reason
        if (said := choice.delta) is None:
            return
        self._add_texts(said)
        for n, call in enumerate(said.tool_calls or ()):
            self._add_call(call, n)

    def _add_texts(self, said: Text) -> None:
        if text := text_in(said.reasoning_content) or text_in(said.reasoning):
            self._add("thinking", text)
        if text := text_in(said.content):
            self._add("text", text)
        if text := text_in(said.refusal):
            self._refused = True
            self._add("text", text)

    def _add(self, kind: str, text: str) -> None:
        blocks = self._blocks
        if not blocks or blocks[-1].kind != kind:
            blocks.append(_Block(kind))
        blocks[-1].held.append(text)

    def _add_call(self, call: Call, n: int) -> None:
        function = call.function or Function()
        key = n if call.index is None else call.index
        block, given, name = self._calls.get(key), text_in(call.id), text_in(function.name)
        if block is None or (given and name and block.id != given and block.name):
            # Some servers give each of several calls the index 0.
            block = self._calls[key] = _Block("tool_use")
            block.id = call_id(given, self._id, self._call_count)
            self._call_count += 1
            self._blocks.append(block)
        block.name = block.name or name
        if piece := text_in(function.arguments):
            block.held.append(piece)
            block.said.append(piece)

    def _ready(self) -> bytes:
        """What the client can have now: the first block, and those after complete ones."""
        blocks, shown = self._blocks, b""
        while len(blocks) > 1 and blocks[0].complete:
            shown += self._close(blocks.pop(0))
        first = blocks[0]
        return shown + self._show(first) if first.name or first.kind != "tool_use" else shown

    def _show(self, block: _Block) -> bytes:
        shown = b""
        if not block.started:
            block.started = True
            shown = self._block_start(block)
        kind, field = _TYPES[block.kind]
        for piece in block.held:
            shown += _DELTA % (self._index, kind, field, _encode(piece))
        block.held.clear()
        return shown

    def _block_start(self, block: _Block) -> bytes:
        content: dict[str, object] = dict(_STARTS.get(block.kind, {}))
        if not content:
            content = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        start = {"type": "content_block_start", "index": self._index, "content_block": content}
        return b"event: content_block_start\ndata: " + _encode(start) + b"\n\n"

    def _close(self, block: _Block) -> bytes:
        shown = self._show(block)
        if block.kind == "thinking":
            shown += _DELTA % (self._index, b"signature_delta", b"signature", _encode(SIGNATURE))
        shown += _STOP % self._index
        self._index += 1
        return shown

    def end(self, usage: Usage | None) -> bytes:
        shown = b"" if self._started else self._start("", "")
        shown += b"".join([self._close(block) for block in self._blocks])
        self._blocks = []
        reason, sequence = stop(
            self._finish, self._sequence, calls=bool(self._call_count), refused=self._refused
        )
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_fields(usage),
        }
        return shown + b"event: message_delta\ndata: " + _encode(delta) + b"\n\n" + _MESSAGE_STOP
