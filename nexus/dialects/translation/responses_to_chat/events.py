"""Translates the stream of a chat completion into that of a response."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.translation.chat_blocks import Block, BlockEvents, Kind
from nexus.dialects.translation.completion import Completion
from nexus.dialects.translation.responses_to_chat.response import (
    incomplete_reason,
    item,
    item_name,
    part,
    response_object,
    tool_fields,
)
from nexus.dialects.translation.translation import ClientContext

_encode = msgspec.json.encode
_NAMES: dict[Kind, str] = {
    "text": "output_text",
    "thinking": "reasoning_text",
    "refusal": "refusal",
    "tool_use": "function_call_arguments",
}
"""Kinds of blocks → the names of the events of their pieces."""
_FIELDS: dict[Kind, str] = {"tool_use": "arguments", "refusal": "refusal"}
"""Where the event after the last piece has the whole, if it is not `text`."""


class ResponseEvents(BlockEvents):
    """Makes the events of one response. `EventTranslator` documents the interface.

    Each block is an item of the output. Events have numbers that grow by one.
    """

    def __init__(self, context: ClientContext) -> None:
        super().__init__()
        self._context = context
        self._first = Completion()
        self._output: list[dict[str, Any]] = []
        self._said: list[str] = []
        self._place: dict[str, Any] = {}
        self._before = self._after = b""

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        fields = {"type": f"response.{kind}", **fields, "sequence_number": self.number}
        self.number += 1
        return b"event: response.%b\ndata: %b\n\n" % (kind.encode(), _encode(fields))

    def _response_event(self, kind: str, status: str, **more: Any) -> bytes:
        response = response_object(
            self._first, self._context, status=status, output=self._output, **more
        )
        return self._event(kind, {"response": msgspec.Raw(response)})

    def _start(self, first: Completion) -> bytes:
        self._first = first
        shown = self._response_event("created", "in_progress")
        return shown + self._response_event("in_progress", "in_progress")

    def _block_start(self, block: Block) -> bytes:
        kind, index = block.kind, self._index
        self._said = []
        item_id = item_name(kind, self._id, index)
        self._place = {"item_id": item_id, "output_index": index}
        shown = self._event(
            "output_item.added",
            {"output_index": index, "item": self._item(block, "in_progress")},
        )
        if kind != "tool_use":
            self._place["content_index"] = 0
            shown += self._event("content_part.added", self._place | {"part": part(kind, "")})
        name = f"response.{_NAMES[kind]}.delta"
        fields = _encode({"type": name} | self._place)
        self._before = b'event: %b\ndata: %b,"delta":' % (name.encode(), fields[:-1])
        self._after = b',"logprobs":[]' if kind == "text" else b""
        self._after += b',"sequence_number":%d}\n\n'
        return shown

    def _piece(self, piece: str) -> bytes:
        self._said.append(piece)
        number = self.number
        self.number = number + 1
        return self._before + _encode(piece) + self._after % number

    def _block_end(self, block: Block) -> bytes:
        kind, shown = block.kind, b""
        if not self._said and kind == "tool_use":
            shown = self._piece("{}")
        cut = block is self._blocks[-1] and incomplete_reason(self._finish)
        done = self._item(block, "incomplete" if cut else "completed")
        self._output.append(done)
        whole: dict[str, Any] = {_FIELDS.get(kind, "text"): "".join(self._said)}
        if kind == "text":
            whole["logprobs"] = []
        elif kind == "tool_use":
            whole["name"] = done["name"]
        shown += self._event(f"{_NAMES[kind]}.done", self._place | whole)
        if kind != "tool_use":
            shown += self._event("content_part.done", self._place | {"part": done["content"][0]})
        return shown + self._event("output_item.done", {"output_index": self._index, "item": done})

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        text = "".join(self._said)
        names = tool_fields(block.name, self._context)
        item_id = self._place["item_id"]
        return item(block.kind, item_id, text, status=status, call_id=block.id, names=names)

    def _finish_events(self, usage: Usage | None) -> bytes:
        reason = incomplete_reason(self._finish)
        status = "incomplete" if reason else "completed"
        return self._response_event(status, status, reason=reason, usage=usage)
