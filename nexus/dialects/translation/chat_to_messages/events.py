"""Translates the stream of a message into that of a chat completion."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.chat_to_messages.response import (
    Block,
    Message,
    arguments_of,
    finish_reason,
    frame,
    usage_fields,
)
from nexus.dialects.translation.completion import text_in
from nexus.dialects.translation.translation import ClientContext

_encode = msgspec.json.encode


class _Delta(msgspec.Struct):
    type: Any = None
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: Any = None


class _Event(msgspec.Struct):
    type: Any = None
    message: Message | None = None
    index: int | str | None = None
    content_block: Block | None = None
    delta: _Delta | None = None


_decode = lenient(msgspec.json.Decoder(_Event).decode)


class ChunkEvents:
    """Makes the chunks of one completion. `EventTranslator` documents the interface.

    The last chunk has the finish reason and the usage. A chunk of usage alone has no choice, which
    clients do not expect that did not ask for it.
    """

    number = 0

    def __init__(self, _context: ClientContext) -> None:
        self._started = False
        self._before = b""
        self._calls: dict[object, int] = {}
        self._unsaid: dict[int, str] = {}
        """Call → its arguments, as long as no piece of them has come."""
        self._stop: Any = None
        self._start(None, None)

    def _start(self, message_id: Any, model: Any) -> None:
        fields = _encode(frame("chat.completion.chunk", message_id, model))
        self._before = b"data: " + fields[:-1] + b',"choices":[{"index":0,"delta":'

    def event(self, data: bytes) -> bytes:
        try:
            event = _decode(data)
        except UNREADABLE:
            return b""
        if event.type == "content_block_delta" and (delta := event.delta) is not None:
            shown = self._delta(event.index, delta)
            return shown if self._started else self._role() + shown
        if event.type == "message_start" and (message := event.message) is not None:
            self._start(message.id, message.model)
            return self._role()
        if event.type == "content_block_start" and (block := event.content_block) is not None:
            return self._block(event.index, block)
        if event.type == "content_block_stop":
            return self._rest(self._calls.get(event.index))
        if event.type == "message_delta" and event.delta is not None:
            self._stop = event.delta.stop_reason
        return b""

    def _role(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._chunk({"role": "assistant", "content": ""})

    def _block(self, index: object, block: Block) -> bytes:
        if said := text_in(block.text) or text_in(block.thinking):
            delta = _Delta(type=f"{block.type}_delta", text=said, thinking=said)
            return self._role() + self._delta(index, delta)
        name = text_in(block.name)
        if block.type != "tool_use" or not name:
            return b""
        number = self._calls[index] = len(self._calls)
        call_id = text_in(block.id) or f"call_{number}"
        self._unsaid[number] = arguments_of(block)
        function = {"name": name, "arguments": ""}
        call = {"index": number, "id": call_id, "type": "function", "function": function}
        return self._role() + self._chunk({"tool_calls": [call]})

    def _delta(self, index: object, delta: _Delta) -> bytes:
        if delta.type == "text_delta":
            return self._chunk({"content": text_in(delta.text)})
        if delta.type == "thinking_delta":
            return self._chunk({"reasoning_content": text_in(delta.thinking)})
        if delta.type == "input_json_delta" and (number := self._calls.get(index)) is not None:
            if said := text_in(delta.partial_json):
                self._unsaid.pop(number, None)
            return self._arguments(number, said)
        return b""

    def _arguments(self, number: int, said: str) -> bytes:
        piece = {"index": number, "function": {"arguments": said}}
        return self._chunk({"tool_calls": [piece]})

    def _rest(self, number: int | None) -> bytes:
        """The arguments of a call that came whole with its start: clients parse them, also if
        there are none."""
        said = None if number is None else self._unsaid.pop(number, None)
        return b"" if number is None or said is None else self._arguments(number, said)

    def _chunk(self, delta: dict[str, Any]) -> bytes:
        return self._before + _encode(delta) + b',"finish_reason":null}]}\n\n'

    def end(self, usage: Usage | None) -> bytes:
        reason = _encode(finish_reason(self._stop))
        last = self._before + b'{},"finish_reason":' + reason + b"}]"
        if usage is not None:
            last += b',"usage":' + _encode(usage_fields(usage))
        rest = b"".join([self._rest(number) for number in list(self._unsaid)])
        return self._role() + rest + last + b"}\n\ndata: [DONE]\n\n"
