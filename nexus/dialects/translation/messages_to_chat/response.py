"""Translates a whole chat completion into a message, and what whole ones and streams share."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects import openai
from nexus.dialects.anthropic.unsigned import signature
from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE
from nexus.dialects.translation.completion import (
    Call,
    Function,
    arguments_in,
    call_id,
    first_choice,
    reasoning_of,
    text_in,
    text_of,
)
from nexus.dialects.translation.rules import BadResponse
from nexus.dialects.translation.translation import ClientContext

STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


_decode_input = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def translate_response(response: bytes, context: ClientContext) -> bytes:
    """The message that a whole completion is. Raises `BadResponse`."""
    completion, choice, said = first_choice(response)
    content: list[dict[str, Any]] = []
    if thinking := reasoning_of(said):
        wanted_by = context.model if said.reasoning_content == thinking else None
        signed = signature(wanted_by)
        content.append({"type": "thinking", "thinking": thinking, "signature": signed})
    if text := text_of(said) + text_in(said.refusal):
        content.append({"type": "text", "text": text})
    calls = said.tool_calls or []
    message_id = text_in(completion.id)
    cut = choice.finish_reason in ("length", "content_filter")
    content += [
        _tool_use(call, call_id(call.id, message_id, n), cut=cut) for n, call in enumerate(calls)
    ]
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


def usage_fields(usage: Usage | None) -> dict[str, Any]:
    """The tokens as a message reports them: those that were read from a cache, or written to it,
    count apart.

    A count that the backend does not tell is 0, because a client needs one.
    """
    usage = usage or Usage()
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    fields: dict[str, Any] = {
        "input_tokens": max(0, (usage.prompt_tokens or 0) - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens or 0,
    }
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


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


def _tool_use(call: Call, tool_id: str, *, cut: bool) -> dict[str, Any]:
    """The block of a call. Arguments that the limit of tokens or a filter has cut off become an
    empty object: the stop reason says that they are incomplete. Raises `BadResponse`."""
    function = call.function or Function()
    try:
        given = _decode_input(arguments_in(function.arguments).encode() or b"{}")
    except UNREADABLE as error:
        if not cut:
            raise BadResponse("the arguments of a tool call are no JSON object") from error
        given = {}
    return {"type": "tool_use", "id": tool_id, "name": text_in(function.name), "input": given}
