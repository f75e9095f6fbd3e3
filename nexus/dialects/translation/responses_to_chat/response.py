"""Translates a whole chat completion into a response, and what whole ones and streams share."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects import openai
from nexus.dialects.base import Usage
from nexus.dialects.translation.chat_blocks import Kind
from nexus.dialects.translation.completion import (
    Completion,
    Function,
    arguments_in,
    call_id,
    first_choice,
    reasoning_of,
    text_in,
    text_of,
)
from nexus.dialects.translation.translation import ClientContext

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons that leave a response incomplete, and what it says of them. Others complete it."""
_PREFIXES: dict[Kind, str] = {"thinking": "rs", "tool_use": "fc"}
_NO_ARGUMENTS = "{}"
"""What a call without arguments gets: clients parse them."""


def translate_response(response: bytes, context: ClientContext) -> bytes:
    """The response that a whole completion is. Raises `BadResponse`."""
    completion, choice, said = first_choice(response)
    message_id = text_in(completion.id)
    reason = incomplete_reason(choice.finish_reason)
    output: list[dict[str, Any]] = []

    def add(kind: Kind, text: str, **more: Any) -> None:
        item_id = item_name(kind, message_id, len(output))
        output.append(item(kind, item_id, text, status="completed", **more))

    if text := reasoning_of(said):
        add("thinking", text)
    if text := text_of(said):
        add("text", text)
    if text := text_in(said.refusal):
        add("refusal", text)
    for n, call in enumerate(said.tool_calls or ()):
        function = call.function or Function()
        given = arguments_in(function.arguments)
        names = tool_fields(text_in(function.name), context)
        add("tool_use", given, call_id=call_id(call.id, message_id, n), names=names)
    status = "incomplete" if reason else "completed"
    if output:
        output[-1]["status"] = status
    usage = openai.usage_in_response(response, lenient=True)
    return response_object(
        completion, context, status=status, reason=reason, output=output, usage=usage
    )


def incomplete_reason(finish: Any) -> str | None:
    """Why a response is incomplete; None if it is complete."""
    return _INCOMPLETE.get(finish) if isinstance(finish, str) else None


def item_name(kind: Kind, message_id: str, index: int) -> str:
    """The id of an item: it follows from the backend's id and the index."""
    return f"{_PREFIXES.get(kind, 'msg')}_{message_id}_{index}"


def tool_fields(name: str, context: ClientContext) -> dict[str, str]:
    """The name of a function as the client knows it, with its namespace if it has one."""
    if (original := context.tools.get(name)) is None:
        return {"name": name}
    return {"namespace": original[0], "name": original[1]}


def item(
    kind: Kind,
    item_id: str,
    text: str,
    *,
    status: str,
    call_id: str = "",
    names: dict[str, str] | None = None,
) -> dict[str, Any]:
    """An item of a response. One that is in progress has no content yet."""
    fields: dict[str, Any] = {"id": item_id, "type": "message", "status": status}
    started = status == "in_progress"
    if kind == "tool_use":
        arguments = "" if started else text or _NO_ARGUMENTS
        return (
            fields
            | {"type": "function_call", "call_id": call_id, "arguments": arguments}
            | (names or {})
        )
    content = [] if started else [part(kind, text)]
    if kind == "thinking":
        return fields | {"type": "reasoning", "summary": [], "content": content}
    return fields | {"role": "assistant", "content": content}


def part(kind: Kind, text: str) -> dict[str, Any]:
    """A part of an item's content."""
    if kind == "thinking":
        return {"type": "reasoning_text", "text": text}
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response_object(
    completion: Completion,
    context: ClientContext,
    *,
    status: str,
    reason: str | None = None,
    output: list[dict[str, Any]],
    usage: Usage | None = None,
) -> bytes:
    """A response as JSON. Its id begins with `resp_`; no backend knows it by that."""
    fields: dict[str, Any] = {
        "id": f"resp_{text_in(completion.id)}",
        "object": "response",
        "created_at": completion.created if type(completion.created) is int else 0,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": text_in(completion.model),
        "output": output,
        "previous_response_id": None,
        "store": False,
        "usage": usage_fields(usage) if usage is not None else None,
    }
    return msgspec.json.encode(fields)[:-1] + b"," + context.repeated + b"}"


def usage_fields(usage: Usage) -> dict[str, Any]:
    """The tokens as a response reports them. A count that the backend does not tell is 0."""
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": prompt + completion,
    }
