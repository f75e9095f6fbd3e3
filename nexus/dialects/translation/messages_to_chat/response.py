"""Translates a whole chat completion into a message, and what whole ones and streams share."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects import openai
from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.rules import BadResponse

SIGNATURE = "nexus"
"""The mark of reasoning that no Anthropic server has signed."""
STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class Function(msgspec.Struct):
    """The function of a call, or a piece of it."""

    name: Any = None
    arguments: Any = None


class Call(msgspec.Struct):
    """A call of a tool, or a piece of it."""

    index: Any = None
    id: Any = None
    function: Function | None = None


class Text(msgspec.Struct):
    """What a completion says, or a piece of it. Backends call reasoning by two names."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    """One of the completions; `stop_reason` is vLLM's, the text at which it stopped."""

    index: Any = 0
    message: Text | None = None
    delta: Text | None = None
    finish_reason: Any = None
    stop_reason: Any = None


class Completion(msgspec.Struct):
    """A completion, or a chunk of one."""

    id: Any = None
    model: Any = None
    choices: list[Choice] | None = None


decode = lenient(msgspec.json.Decoder(Completion).decode)
_decode_input = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def translate_response(response: bytes) -> bytes:
    """The message that a whole completion is. Raises `BadResponse`."""
    try:
        completion = decode(response)
    except UNREADABLE as error:
        raise BadResponse("it is no chat completion") from error
    choice = next((one for one in completion.choices or () if one.index in (0, None)), None)
    if choice is None or choice.message is None:
        raise BadResponse("it has no message")
    said, content = choice.message, []
    if thinking := text_in(said.reasoning_content) or text_in(said.reasoning):
        content.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
    if text := text_in(said.content) or text_in(said.refusal):
        content.append({"type": "text", "text": text})
    calls = said.tool_calls or []
    message_id = text_in(completion.id)
    content += [_tool_use(call, call_id(call.id, message_id, n)) for n, call in enumerate(calls)]
    usage = openai.usage_in_response(response, lenient=True)
    reason, sequence = stop(
        choice.finish_reason,
        choice.stop_reason,
        calls=bool(calls),
        refused=bool(text_in(said.refusal)),
    )
    return msgspec.json.encode(
        message_fields(message_id, text_in(completion.model))
        | {
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_fields(usage),
        }
    )


def message_fields(message_id: str, model: str) -> dict[str, Any]:
    """The fields of a message that are known before its content."""
    return {
        "id": message_id or "msg",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_fields(None),
    }


def usage_fields(usage: Usage | None) -> dict[str, int]:
    """The tokens as a message reports them: those that were read from a cache count apart.

    A count that the backend does not tell is 0, because a client needs one.
    """
    usage = usage or Usage()
    cached = usage.cached_tokens or 0
    return {
        "input_tokens": max(0, (usage.prompt_tokens or 0) - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens or 0,
    }


def stop(finish: Any, sequence: Any, *, calls: bool, refused: bool) -> tuple[str, str | None]:
    """The stop reason, and the stop sequence if the backend tells it."""
    reason = STOP_REASONS.get(finish) if isinstance(finish, str) else None
    if reason is None and calls:  # some servers say `stop`
        return "tool_use", None
    if reason is not None:
        return reason, None
    if refused:
        return "refusal", None
    return ("stop_sequence", sequence) if text_in(sequence) else ("end_turn", None)


def call_id(given: Any, message_id: str, number: int) -> str:
    """The id of a call. Some servers give none, and a client needs one for the result."""
    return text_in(given) or f"call_{message_id}_{number}"


def text_in(value: Any) -> str:
    """A text; empty if it is anything else."""
    return value if isinstance(value, str) else ""


def _tool_use(call: Call, tool_id: str) -> dict[str, Any]:
    function = call.function or Function()
    arguments = function.arguments
    try:
        if isinstance(arguments, dict):
            given: Any = arguments
        else:
            given = _decode_input(text_in(arguments).encode() or b"{}")
    except UNREADABLE as error:
        raise BadResponse("the arguments of a tool call are no JSON object") from error
    return {"type": "tool_use", "id": tool_id, "name": text_in(function.name), "input": given}
