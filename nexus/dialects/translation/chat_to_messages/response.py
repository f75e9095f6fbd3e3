"""Translates a whole message into a chat completion, and what whole ones and streams share."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects import anthropic
from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.completion import text_in
from nexus.dialects.translation.rules import NULL, BadResponse
from nexus.dialects.translation.translation import ClientContext

FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""All others, such as `end_turn`, are `stop`."""


class Block(msgspec.Struct):
    """A block of a message."""

    type: Any = None
    text: Any = None
    thinking: Any = None
    id: Any = None
    name: Any = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class Message(msgspec.Struct):
    """A message, or its start."""

    id: Any = None
    model: Any = None
    content: list[Block] | None = None
    stop_reason: Any = None


_decode = lenient(msgspec.json.Decoder(Message).decode)


def translate_response(response: bytes, _context: ClientContext) -> bytes:
    """The chat completion that a whole message is. Raises `BadResponse`."""
    try:
        message = _decode(response)
    except UNREADABLE as error:
        raise BadResponse("it is no message") from error
    if message.content is None:
        raise BadResponse("it has no content")
    blocks = message.content
    text = "".join([text_in(one.text) for one in blocks if one.type == "text"])
    thinking = "".join([text_in(one.thinking) for one in blocks if one.type == "thinking"])
    calls = [_call(one) for one in blocks if one.type == "tool_use"]
    said: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if thinking:
        said["reasoning_content"] = thinking
    if calls:
        said["tool_calls"] = calls
    finish = finish_reason(message.stop_reason)
    completion = frame("chat.completion", message.id, message.model)
    completion["choices"] = [{"index": 0, "message": said, "finish_reason": finish}]
    if (usage := anthropic.usage_in_response(response, lenient=True)) is not None:
        completion["usage"] = usage_fields(usage)
    return msgspec.json.encode(completion)


def frame(kind: str, message_id: Any, model: Any) -> dict[str, Any]:
    """The fields that a completion and its chunks share. No message says when it was made."""
    return {"id": message_id, "object": kind, "created": 0, "model": model}


def finish_reason(stop: Any) -> str:
    return FINISH_REASONS.get(stop, "stop") if isinstance(stop, str) else "stop"


def usage_fields(usage: Usage) -> dict[str, Any]:
    """The tokens as a completion reports them: the prompt's with those of the cache."""
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    fields: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
    }
    if usage.reasoning_tokens is not None:
        fields["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return fields


def arguments_of(block: Block) -> str:
    """The arguments of a call, if its block has them all."""
    return "{}" if block.input == NULL else bytes(block.input).decode(errors="replace")


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block.name, "arguments": arguments_of(block)}
    return {"id": block.id, "type": "function", "function": function}
